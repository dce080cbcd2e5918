"""The examples of the README work as they stand."""

import re
from pathlib import Path

import torch

from locoprop_lightning.local import LocalProblem, resolve_transfer

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
    solution = scope["HeavyBall"](iterations=100).solve(problem, record=True)
    assert torch.linalg.vector_norm(problem.gradient(solution.weight - w)) < 1e-10
    assert len(solution.losses) == 101
