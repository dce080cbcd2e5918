import math

import pytest
import torch

from locoprop_lightning.solvers import Outcome, Solution, Status
from locoprop_lightning.solvers.solution import judge
from tests.support import close


def outcome(norm=1.0, growth=-1.0):
    return Outcome(torch.tensor([[norm]]), torch.tensor(growth), None)


@pytest.mark.parametrize(
    ("norm", "growth", "status"),
    [
        (1.0, -1.0, Status.SOLVED),
        (0.0, 0.0, Status.SOLVED),
        (1.0, 1e-30, Status.DIVERGED),
        (math.nan, -1.0, Status.NONFINITE),
        (math.inf, 1.0, Status.NONFINITE),
        (1.0, math.nan, Status.NONFINITE),
        (1.0, math.inf, Status.NONFINITE),
        (1.0, -math.inf, Status.NONFINITE),
    ],
)
def test_judge(norm, growth, status):
    assert judge({"layer": outcome(norm, growth)}, lambda flags: flags) == {"layer": status}


def test_judge_asks_once_for_all_layers():
    asked = []

    def agree(flags):
        asked.append(flags)
        return flags + torch.tensor([[0.0, 0.0], [0.0, 2.0]])  # as another process has it

    found = judge({"a": outcome(), "b": outcome()}, agree)
    assert found == {"a": Status.SOLVED, "b": Status.DIVERGED} and len(asked) == 1
    assert judge({}, agree) == {} and len(asked) == 1


def test_outcome_teaches_nothing_unless_said():
    assert outcome().learnt is None


@pytest.mark.parametrize("bias", [True, False])
def test_weights_are_start_and_displacement(make_problem, bias):
    problem = make_problem(bias=bias)
    v = torch.randn_like(problem.zeros())
    solution = Solution(problem, v, Status.SOLVED, None)
    close(solution.weight, problem.weight + v[:, :5], 1e-15)
    if bias:
        close(solution.bias, problem.bias + v[:, 5], 1e-15)
    else:
        assert solution.bias is None
