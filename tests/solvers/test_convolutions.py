"""Solvers on convolutions, against the same problem as a product with a matrix, and group by group."""

import pytest
import torch
from torch import nn

from locoprop_lightning.local import LocalProblem, resolve_transfer
from locoprop_lightning.solvers import ClosedForm, Majorization, Recording, Status
from tests import catalogue
from tests.catalogue import EVERY, SQUARED_ONLY
from tests.support import Stateful, augmented, close, joined, operator_of, replaced, rows_of


def make(layer, x, transfer="identity", lambda_r=5.0, seed=0):
    layer = layer.double().requires_grad_(False)
    a = rows_of(layer, layer(x))
    d = torch.randn(a.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) / 4
    weight = layer.weight.flatten(1)
    return LocalProblem(operator_of(layer, [x]), a, d, weight, layer.bias, resolve_transfer(transfer), 0.3, lambda_r)


@pytest.mark.parametrize(
    ("name", "transfer"),
    [(n, t) for n in EVERY for t in ("identity", "tanh", "softmax") if t == "identity" or n not in SQUARED_ONLY],
)
@pytest.mark.parametrize("bias", [True, False])
def test_equals_the_linear_layer(bias, name, transfer):
    x = torch.randn(4, 3, 6, 5, dtype=torch.float64)
    problem = make(nn.Conv2d(3, 4, 3, padding=1, stride=2, bias=bias), x, transfer, lambda_r=300.0)
    dense = replaced(problem, operator=problem.operator.dense())
    got, expected = (catalogue.solver(name, 4).solve(p, recording=Recording.CURVE) for p in (problem, dense))
    assert got.status is expected.status is Status.SOLVED
    close(got.weight, expected.weight, 1e-10)
    close(got.losses, expected.losses, 1e-10)
    assert not torch.equal(got.weight, problem.weight)


@pytest.mark.parametrize("name", EVERY)
def test_groups_are_layers_of_their_own(name):
    """No unit knows of another on an elementwise transfer, whatever the solver."""
    x, groups = torch.randn(4, 6, 5, 5, dtype=torch.float64), 3
    layer = nn.Conv2d(6, 9, 3, groups=groups).double().requires_grad_(False)
    problem = make(layer, x, lambda_r=300.0)
    whole = catalogue.solver(name, 4).solve(problem)
    assert whole.status is Status.SOLVED
    for k in range(groups):
        part = nn.Conv2d(2, 3, 3).double().requires_grad_(False)
        units = slice(3 * k, 3 * k + 3)
        part.weight.copy_(layer.weight[units])
        part.bias.copy_(layer.bias[units])
        alone = make(part, x[:, 2 * k : 2 * k + 2], lambda_r=300.0)
        alone = replaced(alone, direction=problem.direction[:, units])
        solution = catalogue.solver(name, 4).solve(alone)
        close(joined(whole, problem)[units], joined(solution, alone), 1e-10)


def test_kept_preconditioners_of_groups_go_on_and_are_checked():
    x = torch.randn(4, 6, 5, 5, dtype=torch.float64)
    layer = nn.Conv2d(6, 6, 3, groups=6)
    solver = Stateful(ClosedForm(refresh_every=10, warmup=0))
    solver.solve(make(layer, x))
    kept = solver.states[""]["preconditioner"]
    assert kept["inverse"].shape == (6, 10, 10)
    assert solver.solve(make(layer, x)).status is Status.SOLVED
    assert kept["age"] == 2
    stale = solver.solve(make(layer, 30 * x))
    assert stale.status is Status.RETRIED
    close(stale.weight, ClosedForm().solve(make(layer, 30 * x)).weight, 1e-10)


@pytest.mark.parametrize("make_solver", [ClosedForm, lambda: Majorization(1)])
def test_more_inputs_than_rows_go_through_the_kernel(make_solver):
    x = torch.randn(2, 16, 3, 3, dtype=torch.float64)
    problem = make(nn.Conv2d(16, 4, 3), x)
    solver = make_solver()
    assert (problem.n, problem.operator.width) == (2, 145) and solver.preconditioner.uses_kernel(problem)
    y = augmented(problem)
    inverse = torch.linalg.inv(y.T @ y + 5.0 * torch.eye(145, dtype=torch.float64))
    close(joined(solver.solve(problem), problem), -problem.first_gradient() @ inverse, 1e-10)


def test_staleness_is_seen_where_the_corners_are_dark():
    """Of 128 images, equally distant rows are those of one pixel."""
    x = torch.zeros(128, 1, 28, 28, dtype=torch.float64)
    x[:, :, 4:-4, 4:-4] = torch.rand(128, 1, 20, 20, dtype=torch.float64)
    layer = nn.Conv2d(1, 8, 5, padding=2)
    solver = Stateful(ClosedForm(refresh_every=10, warmup=0))
    solver.solve(make(layer, x))
    assert solver.solve(make(layer, 30 * x)).status is Status.RETRIED
