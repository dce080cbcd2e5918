"""Solvers against back-propagation, the closed form and each other."""

import pytest
import torch
from torch import nn

from locoprop_lightning.local import LocalProblem, resolve_transfer
from locoprop_lightning.solvers import (
    AndersonAcceleration,
    ClosedForm,
    FixedPointIteration,
    GradientDescent,
    Recording,
    Status,
)
from tests import catalogue
from tests.catalogue import EVERY, ITERATIVE, PROMISED, SQUARED_ONLY
from tests.support import augmented, close, joined, replaced, taped

iterative = pytest.mark.parametrize("name", ITERATIVE)
every_solver = pytest.mark.parametrize("name", EVERY)


def largest_eigenvalue(problem):
    return torch.linalg.eigvalsh(problem.operator.gram()).max().item()


@pytest.mark.parametrize("transfer", ["identity", "tanh"])
@pytest.mark.parametrize("bias", [True, False])
def test_one_iteration_is_back_propagation(transfer, bias):
    lambda_a, lambda_r = 0.8, 3.0
    layer = nn.Linear(5, 4, bias=bias).double()
    x, y = torch.randn(9, 5, dtype=torch.float64), torch.randn(9, 4, dtype=torch.float64)
    before = [p.detach().clone() for p in layer.parameters()]
    with taped({"layer": layer}) as tape:
        nn.functional.mse_loss(resolve_transfer(transfer).f(layer(x)), y).backward()
    record = tape.records["layer"]
    a, g = record.pre_activation(record.operator()), record.gradient()
    problem = LocalProblem(
        record.operator(), a, g, before[0], before[1] if bias else None, resolve_transfer(transfer), lambda_a, lambda_r
    )
    solution = FixedPointIteration(1).solve(problem)
    torch.optim.SGD(layer.parameters(), lr=lambda_a / lambda_r).step()
    close(solution.weight, layer.weight.detach(), 1e-12)
    if bias:
        close(solution.bias, layer.bias.detach(), 1e-12)
    assert solution.status is Status.SOLVED


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "solver",
    [
        FixedPointIteration(400),
        AndersonAcceleration(60, ridge=1e-14),
        AndersonAcceleration(60, ridge=1e-14, safeguard=False),
        GradientDescent(400, proximal=True),
    ],
    ids=["fpi", "anderson", "anderson_plain", "gradient_descent"],
)
def test_converges_to_closed_form(make_problem, solver, bias):
    problem = make_problem(bias=bias)
    problem = replaced(problem, lambda_r=1.2 * largest_eigenvalue(problem))
    solution, exact = solver.solve(problem), ClosedForm().solve(problem)
    assert solution.status is Status.SOLVED
    close(joined(solution, problem), joined(exact, problem), 1e-8)


@pytest.mark.parametrize("transfer", ["tanh", "softmax", "relu", "softplus"])
def test_matching_solution_is_stationary(make_problem, transfer):
    problem = make_problem(transfer)
    problem = replaced(problem, lambda_r=1.5 * largest_eigenvalue(problem))
    for solver in (FixedPointIteration(200), AndersonAcceleration(40, ridge=1e-14)):
        v = joined(solver.solve(problem), problem)
        assert problem.gradient(v).abs().max() < 1e-8 * problem.first_gradient().abs().max()


@pytest.mark.parametrize(
    ("name", "transfer"),
    [
        (name, transfer)
        for name in ITERATIVE
        for transfer in ("identity", "tanh", "softmax", "relu")
        if transfer == "identity" or name not in SQUARED_ONLY
    ],
)
@pytest.mark.parametrize("iterations", [1, 2, 10])
def test_number_of_losses(make_problem, name, transfer, iterations):
    problem = make_problem(transfer, lambda_r=60.0)
    solution = catalogue.solver(name, iterations).solve(problem, recording=Recording.CURVE)
    assert solution.losses.shape == (iterations + 1,)
    close(solution.losses[0], problem.first_loss(), 1e-12)
    close(solution.losses[-1], problem.loss(joined(solution, problem)), 1e-12)
    assert solution.status is Status.SOLVED
    if name in PROMISED:
        assert solution.losses[-1] < solution.losses[0]
    plain = catalogue.solver(name, iterations).solve(problem)
    assert plain.losses is None and torch.equal(plain.weight, solution.weight)


@every_solver
def test_losses_of_s_are_the_local_loss(make_problem, name):
    problem = make_problem(lambda_r=60.0)
    solution = catalogue.solver(name, 4).solve(problem, recording=Recording.CURVE)
    v = joined(solution, problem)
    w = torch.cat([solution.weight, solution.bias[:, None]], 1)
    loss = (augmented(problem) @ w.T - problem.target).square().sum() / 2 + problem.lambda_r / 2 * v.square().sum()
    close(solution.losses[-1], loss / problem.n, 1e-12)


@pytest.mark.parametrize("transfer", ["identity", "relu"])
def test_divergence_is_noticed(make_problem, transfer):
    problem = make_problem(transfer)
    problem = replaced(problem, lambda_r=0.05 * largest_eigenvalue(problem))
    assert FixedPointIteration(10).solve(problem).status is Status.DIVERGED
