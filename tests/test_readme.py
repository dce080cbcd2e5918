"""The examples of the README work as they stand."""

import re

import pytest
import yaml
from torch import nn

from locoprop_lightning.cli import LocoPropCLI
from tests.support import ROOT

TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
SETTINGS = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)


def test_python_example_trains(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    scope = {}
    (block,) = BLOCKS
    exec(block, scope)
    assert scope["trainer"].global_step == 2 * 12
    assert scope["trainer"].callback_metrics["val/accuracy"] > 0.5
    assert "smoothed" in capsys.readouterr().out


class Named(nn.Module):
    """A network with the names that the settings speak of."""

    def __init__(self):
        super().__init__()
        self.text = nn.ModuleDict({"embedding": nn.Embedding(17, 8)})
        self.mix, self.head = nn.Conv1d(8, 8, 1), nn.Linear(8, 10)

    def forward(self, x):
        tokens = (16 * x.flatten(1)).round().long()
        return self.head(self.mix(self.text["embedding"](tokens).transpose(1, 2)).mean(2))


@pytest.mark.parametrize(
    ("block", "expected"),
    [(SETTINGS[0], "SplitOptimizer, AdamW"), (SETTINGS[1], "SGD, RuledOptimizer")],
    ids=["optimizer", "rest_optimizer"],
)
def test_settings_stand_in_a_configuration(block, expected, folder):
    config = yaml.safe_load((ROOT / "configs" / "digits" / "foof.yaml").read_text())
    settings = config["model"]["init_args"]
    settings |= {"network": {"class_path": "tests.test_readme.Named"}} | yaml.safe_load(block)["model"]["init_args"]
    (folder / "mine.yaml").write_text(yaml.safe_dump(config))
    quick = {"trainer.max_steps": "1", "trainer.logger": "false", "trainer.accelerator": "cpu"}
    cli = LocoPropCLI.build(folder / "mine.yaml", quick)
    cli.trainer.fit(cli.model, cli.datamodule)
    assert ", ".join(type(one).__name__ for one in cli.trainer.optimizers) == expected
