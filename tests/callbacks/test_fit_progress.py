"""The row of progress, in a terminal and in a file."""

import io
import math
import re

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from rich.console import Console

from locoprop_lightning import LocoPropModule
from locoprop_lightning.callbacks import FitProgress
from locoprop_lightning.data import Digits
from locoprop_lightning.networks import MLP
from locoprop_lightning.solvers import ClosedForm
from locoprop_lightning.tasks import Classification
from tests.support import quiet_trainer

SHOWN = re.compile(
    r"Epoch (\d+)/4 +\d+%  loss [\d.e-]+ [↓↑→](  val/accuracy [\d.]+)?  [\d.]+ ms/step  \d:\d\d:\d\d left"
)


class Look(Callback):
    """Keeps the row at the end of each batch, as a terminal of some width shows it."""

    def __init__(self, bar, width):
        self.bar, self.width, self.rows = bar, width, []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        console = Console(file=io.StringIO(), width=self.width, force_terminal=True, color_system=None)
        console.print(self.bar.row())
        self.rows.append(console.file.getvalue())


def fit(bar, *callbacks, **settings):
    module = LocoPropModule(MLP(64, 16, 1), Classification(), ClosedForm(), 30.0, 10.0, objective="squared")
    trainer = quiet_trainer(callbacks=[bar, *callbacks], **{"max_epochs": 4, "enable_progress_bar": True} | settings)
    trainer.fit(module, Digits(batch_size=500))
    return trainer


@pytest.mark.parametrize("width", [80, 100, 160])
def test_a_terminal_shows_all_that_matters_in_one_row(width):
    bar = FitProgress()
    look = Look(bar, width)
    fit(bar, look)
    (last,) = look.rows[-1].splitlines()
    assert len(last) == width
    for text in ("Epoch 4/4 ", "━", "loss ", "val/accuracy 0.", " ms/step ", "0:00:00 left"):
        assert text in last
    assert all(len(row.splitlines()) == 1 for row in look.rows)


def test_a_file_has_a_line_at_each_tenth(capsys):
    fit(FitProgress())
    lines = capsys.readouterr().out.splitlines()
    told = [line for line in lines if line.startswith("Epoch")]
    assert len(told) == 10 and all(SHOWN.fullmatch(line) for line in told), told
    assert "val/accuracy" in told[-1] and told[-1].startswith("Epoch 4/4  100%")


def test_the_length_may_be_one_of_steps(capsys):
    fit(FitProgress(), max_epochs=-1, max_steps=5)
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Epoch")]
    assert [line.split("%")[0].split()[-1] for line in told] == ["20", "40", "60", "80", "100"]


@pytest.mark.parametrize(("losses", "arrow"), [((2.0, 1.0), "↓"), ((1.0, 2.0), "↑"), ((1.0, 1.0), "→")])
def test_the_arrow_says_where_the_loss_goes(losses, arrow):
    bar = FitProgress()
    trainer = fit(bar, max_steps=1)
    for loss in losses:
        bar.on_train_batch_end(trainer, trainer.lightning_module, {"loss": torch.tensor(loss)}, None, 0)
    bar._losses = None
    for loss in losses:
        bar.on_train_batch_end(trainer, trainer.lightning_module, {"loss": torch.tensor(loss)}, None, 0)
    bar._look()
    assert f" {arrow}" in bar.line()


def test_a_loss_that_is_not_finite_is_told():
    bar = FitProgress()
    trainer = fit(bar, max_steps=1)
    bar.on_train_batch_end(trainer, trainer.lightning_module, {"loss": torch.tensor(math.nan)}, None, 0)
    bar._look()
    assert "loss not finite" in bar.line()


def test_no_loss_is_shown_before_one_was_looked_at():
    bar = FitProgress()
    fit(bar, max_steps=1)
    bar._open("Epoch")
    bar._losses = torch.tensor(1.0), torch.tensor(1.0)
    told = bar.line()
    bar._close()
    assert "loss" not in told


def test_nothing_is_shown_where_it_is_disabled(capsys):
    bar = FitProgress()
    bar.disable()
    fit(bar)
    assert "Epoch" not in capsys.readouterr().out
