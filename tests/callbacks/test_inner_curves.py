"""Inner curves in logs other than TensorBoard's."""

import csv

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from locoprop_lightning import LocoPropModule
from locoprop_lightning.callbacks import LocalLossHistory, LocalLossMonitor
from locoprop_lightning.data import Digits
from locoprop_lightning.networks import MLP
from locoprop_lightning.solvers import FixedPointIteration
from locoprop_lightning.tasks import Classification
from tests.support import quiet_trainer

WHOLE = [0, 1, 2, 4]  # of six logged steps


class Memory(Logger):
    """A logger of somebody else."""

    name, version = "memory", 0

    def __init__(self):
        super().__init__()
        self.rows = {}

    def log_metrics(self, metrics, step=None):
        self.rows.setdefault(step, {}).update(metrics)

    def log_hyperparams(self, *arguments, **settings):
        pass


class Told(WandbLogger):
    """Weights & Biases without its package: takes down what it is asked to log."""

    experiment = None

    def __init__(self):
        self.tables, self.images, self.metrics = {}, {}, {}
        self._save_dir, self._version, self._name = ".", "0", "told"

    def log_metrics(self, metrics, step=None):
        self.metrics.setdefault(step, {}).update(metrics)

    def log_table(self, key, columns=None, data=None, dataframe=None, step=None):
        self.tables[step] = key, columns, data

    def log_image(self, key, images, step=None, **kwargs):
        self.images[step] = key, images

    def log_hyperparams(self, params):
        pass

    def finalize(self, status):
        pass


def fit(*loggers, **settings):
    torch.manual_seed(0)
    module = LocoPropModule(MLP(64, 16, 1), Classification(), FixedPointIteration(3), 30.0, 5000.0)
    history = LocalLossHistory()
    callbacks = [LocalLossMonitor(**{"every_n_steps": 1} | settings), history]
    quiet_trainer(max_steps=6, callbacks=callbacks, logger=list(loggers), log_every_n_steps=1).fit(
        module, Digits(batch_size=100, seed=0)
    )
    return history


def expected(history):
    return {(s, n, i): history[n][s, i].item() for s in WHOLE for n in ("1", "3") for i in range(4)}


@pytest.mark.filterwarnings("ignore:Experiment logs directory")
def test_a_csv_logger_has_a_file_of_them(tmp_path):
    logger = CSVLogger(str(tmp_path), name="run", version=0)
    history = fit(logger)
    with (tmp_path / "run" / "version_0" / "inner_curves.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    found = {(int(r["step"]), r["layer"], int(r["iteration"])): float(r["loss"]) for r in rows}
    assert len(rows) == len(found) == 4 * 2 * 4 and found == pytest.approx(expected(history))
    with (tmp_path / "run" / "version_0" / "metrics.csv").open(newline="") as stream:
        metrics = [row for row in csv.DictReader(stream) if row["local_loss/1/last"]]
    assert [float(row["local_loss/1/last"]) for row in metrics] == pytest.approx(history["1"][:, -1].tolist())


def test_weights_and_biases_has_a_table_and_an_image():
    logger = Told()
    history = fit(logger)
    assert list(logger.tables) == list(logger.images) == WHOLE and list(logger.metrics) >= [0]
    found = {}
    for key, columns, data in logger.tables.values():
        assert (key, columns) == ("inner_curves", ["step", "layer", "iteration", "loss"])
        found |= {(step, layer, i): loss for step, layer, i, loss in data}
    assert found == pytest.approx(expected(history))
    key, (image,) = logger.images[2]
    assert key == "local_loss/heat_map" and image.dtype == np.uint8 and image.shape[2] == 3


def test_any_other_logger_has_metrics():
    logger = Memory()
    history = fit(logger)
    found = {
        (step, *name.split("/")[1:2], int(name.split("/")[2])): value
        for step, row in logger.rows.items()
        for name, value in row.items()
        if name.startswith("inner/")
    }
    assert found == pytest.approx(expected(history))


def test_none_where_they_are_switched_off_and_none_twice(tmp_path):
    logger = Memory()
    fit(logger, curves=False)
    assert not any(name.startswith("inner/") for row in logger.rows.values() for name in row)
    both = Memory()
    fit(TensorBoardLogger(str(tmp_path)), both)
    assert len([name for name in both.rows[0] if name.startswith("inner/")]) == 2 * 4
    assert not list(tmp_path.rglob("inner_curves.csv"))
