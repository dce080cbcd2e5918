"""The examples of the README work as they stand."""

import re
from pathlib import Path

import torch
from lightning.pytorch import Trainer

from locoprop_lightning import LocoPropModule
from locoprop_lightning.data import Digits
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
    solution = scope["HeavyBall"](iterations=100).solve(problem, record=Recording.CURVE)
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


def test_own_task_trains(tmp_path):
    scope = {}
    exec(BLOCKS[3], scope)
    module = LocoPropModule(MLP(64, 16, 1, 1), scope["Regression"](), ClosedForm(), 10, 100, objective="squared")
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = Trainer(max_epochs=2, accelerator="cpu", logger=False, default_root_dir=tmp_path, **quiet)
    x = torch.randn(256, 64)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, x[:, 0]), batch_size=64)
    trainer.fit(module, loader, loader)
    assert trainer.callback_metrics["val/loss"] < 0.45  # 0.5 of the square at first
