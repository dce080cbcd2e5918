"""The configuration of a run, in a file."""

import itertools

import pytest
import yaml
from lightning.pytorch.loggers import Logger

from locoprop_lightning import load_run
from locoprop_lightning.cli import main
from locoprop_lightning.solvers import ClosedForm, Majorization

NUMBERS = itertools.count()


class OneFolder(Logger):
    """Keeps the logs of all runs in one folder, as that of Weights & Biases does."""

    save_dir, name, version = "logs", "project", None

    def __init__(self):
        super().__init__()
        self.version = f"run{next(NUMBERS)}"

    def log_metrics(self, metrics, step=None):
        pass

    def log_hyperparams(self, *arguments, **settings):
        pass


@pytest.fixture(autouse=True)
def counted(monkeypatch):
    monkeypatch.setattr("tests.callbacks.test_settings_file.NUMBERS", itertools.count())


def test_runs_whose_logs_share_a_folder_keep_a_configuration_each(folder, capsys):
    short = ["--trainer.max_steps=2", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    for name in ("foof", "locoprop_m_majorization"):
        main(
            [
                "fit",
                "--config",
                f"digits/{name}",
                "--trainer.logger=tests.callbacks.test_settings_file.OneFolder",
                *short,
            ]
        )
    told = capsys.readouterr().out
    for number, solver in enumerate((ClosedForm, Majorization)):
        run = folder / "logs" / "project" / f"run{number}"
        assert f"locoprop test --config {run.relative_to(folder)}/config.yaml" in told
        assert yaml.safe_load((run / "config.yaml").read_text())["model"]["class_path"].endswith("LocoPropModule")
        assert isinstance(load_run(run).module.solver, solver)
    assert not (folder / "logs" / "config.yaml").exists()
