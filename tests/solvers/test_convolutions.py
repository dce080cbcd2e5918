"""Solvers on convolutions, against the same problem as a product with a matrix, and group by group."""

import pytest
import torch
from torch import nn

from locoprop_lightning.local import LocalProblem, resolve_transfer
from locoprop_lightning.solvers import (
    AndersonAcceleration,
    ClosedForm,
    ConjugateGradient,
    FixedPointIteration,
    GradientDescent,
    Majorization,
    Recording,
    Status,
)
from tests.support import close, joined

SOLVERS = {
    "closed_form": lambda: ClosedForm(),
    "kept": lambda: ClosedForm(refresh_every=3, warmup=0),
    "majorization": lambda: Majorization(3),
    "fixed_point": lambda: FixedPointIteration(4),
    "gradient_descent": lambda: GradientDescent(4, proximal=True),
    "anderson": lambda: AndersonAcceleration(4),
    "conjugate_gradient": lambda: ConjugateGradient(4),
}


def make(layer, x, transfer="identity", lambda_r=5.0, seed=0):
    layer = layer.double()
    a = rows_of(layer, layer(x).detach())
    d = torch.randn(a.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) / 4
    bias = None if layer.bias is None else layer.bias.detach()
    weight = layer.weight.detach().flatten(1)
    return LocalProblem(operator_of(layer, [x]), a, d, weight, bias, resolve_transfer(transfer), 0.3, lambda_r)


def dense(problem):
    """The same problem of a linear layer."""
    return LocalProblem(
        problem.operator.dense().rows,
        problem.pre_activation,
        problem.direction,
        problem.weight,
        problem.bias,
        problem.transfer,
        problem.lambda_a,
        problem.lambda_r,
    )


@pytest.mark.parametrize("transfer", ["identity", "tanh", "softmax"])
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("bias", [True, False])
def test_equals_the_linear_layer(bias, solver, transfer):
    if transfer != "identity" and SOLVERS[solver]().squared_only:
        pytest.skip("takes the squared loss alone")
    x = torch.randn(4, 3, 6, 5, dtype=torch.float64)
    problem = make(nn.Conv2d(3, 4, 3, padding=1, stride=2, bias=bias), x, transfer, lambda_r=300.0)
    got, expected = (SOLVERS[solver]().solve(p, record=Recording.CURVE) for p in (problem, dense(problem)))
    assert got.status is expected.status is Status.SOLVED
    close(got.weight, expected.weight, 1e-10)
    close(got.losses, expected.losses, 1e-10)
    assert not torch.equal(got.weight, problem.weight)


@pytest.mark.parametrize("solver", ["closed_form", "kept", "majorization", "fixed_point", "anderson"])
def test_groups_are_layers_of_their_own(solver):
    x, groups = torch.randn(4, 6, 5, 5, dtype=torch.float64), 3
    layer = nn.Conv2d(6, 9, 3, groups=groups).double()
    # Anderson's rows, and every other solver's, know nothing of each other on an elementwise transfer.
    problem = make(layer, x, lambda_r=300.0)
    whole = SOLVERS[solver]().solve(problem)
    assert whole.status is Status.SOLVED
    for k in range(groups):
        part = nn.Conv2d(2, 3, 3).double()
        part.weight.data, part.bias.data = layer.weight[3 * k : 3 * k + 3], layer.bias[3 * k : 3 * k + 3]
        units = slice(3 * k, 3 * k + 3)
        alone = make(part, x[:, 2 * k : 2 * k + 2], lambda_r=300.0)
        alone._direction = problem.direction[:, units]
        solution = SOLVERS[solver]().solve(alone)
        close(joined(whole, problem)[units], joined(solution, alone), 1e-10)


def test_kept_factors_of_groups_go_on_and_are_checked():
    x = torch.randn(4, 6, 5, 5, dtype=torch.float64)
    layer = nn.Conv2d(6, 6, 3, groups=6)
    solver = ClosedForm(refresh_every=10, warmup=0)
    solver.solve(make(layer, x))
    assert solver.state[""]["inverse"].shape == (6, 10, 10)
    assert solver.solve(make(layer, x)).status is Status.SOLVED
    assert solver.state[""]["age"] == 2
    stale = solver.solve(make(layer, 30 * x))
    assert stale.status is Status.RETRIED
    close(stale.weight, ClosedForm().solve(make(layer, 30 * x)).weight, 1e-10)


@pytest.mark.parametrize("make_solver", [ClosedForm, lambda: Majorization(1)])
def test_more_inputs_than_rows_go_through_the_kernel(make_solver):
    x = torch.randn(2, 16, 3, 3, dtype=torch.float64)
    problem = make(nn.Conv2d(16, 4, 3), x)
    solver = make_solver()
    assert (problem.n, problem.operator.width) == (2, 145) and solver.uses_kernel(problem)
    y = torch.cat([problem.operator.dense().rows, torch.ones(2, 1, dtype=torch.float64)], 1)
    inverse = torch.linalg.inv(y.T @ y + 5.0 * torch.eye(145, dtype=torch.float64))
    close(joined(solver.solve(problem), problem), -problem.first_gradient() @ inverse, 1e-10)


def test_staleness_is_seen_where_the_corners_are_dark():
    """Of 128 images, equally distant rows are those of one pixel."""
    x = torch.zeros(128, 1, 28, 28, dtype=torch.float64)
    x[:, :, 4:-4, 4:-4] = torch.rand(128, 1, 20, 20, dtype=torch.float64)
    layer = nn.Conv2d(1, 8, 5, padding=2)
    solver = ClosedForm(refresh_every=10, warmup=0)
    solver.solve(make(layer, x))
    assert solver.solve(make(layer, 30 * x)).status is Status.RETRIED


def test_the_first_average_of_a_wide_layer_is_exact(make_problem):
    """So nothing is estimated, and a dominant row cannot have the step refused."""
    problem = make_problem(n=128, d_in=400, lambda_r=0.01)
    problem.operator.rows[7] *= 100
    solver = Majorization(3, refresh_every=10, average=0.9, warmup=0)
    solution = solver.solve(problem)
    assert solution.status is Status.SOLVED and problem.value(joined(solution, problem)) < 0
