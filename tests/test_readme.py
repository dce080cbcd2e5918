"""The examples of the README work as they stand."""

import re
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from locoprop_lightning import LocoPropModule
from locoprop_lightning.data import Digits
from locoprop_lightning.layers import kind
from locoprop_lightning.local import LocalProblem, resolve_transfer
from locoprop_lightning.networks import MLP
from locoprop_lightning.solvers import ClosedForm, Recording
from locoprop_lightning.tasks import Classification

BLOCKS = re.findall(r"```python\n(.*?)```", (Path(__file__).parents[1] / "README.md").read_text(), re.DOTALL)


def test_python_example_trains(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    scope = {}
    exec(BLOCKS[0], scope)
    assert scope["trainer"].global_step == 2 * 12
    assert scope["trainer"].callback_metrics["val/accuracy"] > 0.5
    assert "smoothed" in capsys.readouterr().out


def test_own_solver_reaches_the_minimum():
    scope = {}
    exec(BLOCKS[1], scope)
    y, d, w = (torch.randn(shape, dtype=torch.float64) for shape in ((20, 4), (20, 3), (3, 4)))
    problem = LocalProblem(y, y @ w.t(), d, w, None, resolve_transfer("tanh"), lambda_a=0.1, lambda_r=60.0)
    solution = scope["HeavyBall"](iterations=100).solve(problem, recording=Recording.CURVE)
    assert torch.linalg.vector_norm(problem.gradient(solution.weight - w)) < 1e-10
    assert len(solution.losses) == 101


def test_own_oracle_trains(tmp_path):
    scope = {}
    exec(BLOCKS[2], scope)
    module = LocoPropModule(
        MLP(64, 16, 1), Classification(), ClosedForm(), 0.1, 100, objective="squared", oracle=scope["SignOracle"]()
    )
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = Trainer(max_epochs=2, accelerator="cpu", logger=False, default_root_dir=tmp_path, **quiet)
    trainer.fit(module, Digits(batch_size=128, seed=0))
    assert trainer.callback_metrics["val/accuracy"] > 0.5


@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
def test_own_kind_of_layer_is_solved_exactly(monkeypatch, capsys):
    """One step of FOOF on it, against the formula; without the kind the rest optimizer trains it."""
    monkeypatch.setattr(kind, "_KINDS", list(kind._KINDS))
    scope = {"__name__": "own"}
    exec(BLOCKS[3], scope)
    layer = scope["Quadratic"](5, 3)
    network = nn.Sequential(layer, nn.Tanh(), nn.Linear(3, 4)).double()
    x, labels, before = torch.randn(30, 5).double(), torch.arange(30) % 4, layer.weight.detach().clone()
    nn.functional.cross_entropy(network(x), labels).backward()
    y = (x[:, :, None] * x[:, None]).flatten(1)
    c = y.T @ y + 2.0 * torch.eye(25, dtype=y.dtype)
    expected = before.flatten(1) - 0.7 * torch.linalg.solve(c, layer.weight.grad.flatten(1).T).T
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    module = LocoPropModule(network, Classification(4), ClosedForm(), 0.7, 2.0, objective="squared")
    trainer = Trainer(max_steps=1, accelerator="cpu", logger=False, **quiet)
    trainer.fit(module, torch.utils.data.DataLoader([(x, labels)], batch_size=None))
    torch.testing.assert_close(layer.weight.detach().flatten(1), expected, rtol=1e-10, atol=1e-10)
    rows = [line for line in capsys.readouterr().out.splitlines() if "Quadratic" in line]
    assert len(rows) == 1 and "ClosedForm" in rows[0] and "3x5x5" in rows[0]


def test_own_task_trains(tmp_path):
    scope = {}
    exec(BLOCKS[4], scope)
    module = LocoPropModule(MLP(64, 16, 1, 1), scope["Regression"](), ClosedForm(), 10, 100, objective="squared")
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = Trainer(max_epochs=2, accelerator="cpu", logger=False, default_root_dir=tmp_path, **quiet)
    x = torch.randn(256, 64)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, x[:, 0]), batch_size=64)
    trainer.fit(module, loader, loader)
    assert trainer.callback_metrics["val/loss"] < 0.45  # 0.5 of the square at first
