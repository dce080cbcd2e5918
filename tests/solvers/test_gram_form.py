"""The squared loss through C, through the rows, and by repeated squaring."""

import pytest
import torch

from locoprop_lightning.local import LocalProblem
from locoprop_lightning.solvers import (
    AndersonAcceleration,
    ConjugateGradient,
    FixedPointIteration,
    GradientDescent,
    Majorization,
    Recording,
    Status,
)
from tests.support import joined

SOLVERS = {
    "fpi": FixedPointIteration,
    "published": GradientDescent,
    "corrected": lambda t: GradientDescent(t, rate=0.005, proximal=True),
    "published_rate": lambda t: GradientDescent(t, rate=0.005),
    "schedule": lambda t: GradientDescent(t, schedule="published"),
    "anderson": AndersonAcceleration,
    "anderson_plain": lambda t: AndersonAcceleration(t, safeguard=False),
    "conjugate_gradient": ConjugateGradient,
    "majorization": Majorization,
}
every_solver = pytest.mark.parametrize("make", SOLVERS.values(), ids=SOLVERS)
AFFINE = ["fpi", "published", "corrected", "published_rate"]
affine = pytest.mark.parametrize("make", [SOLVERS[name] for name in AFFINE], ids=AFFINE)
ITERATIONS = [1, 2, 3, 10, 33]
SHAPES = [(4, 9, 2), (12, 5, 3), (60, 5, 40)]  # n, d_in, d_out


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def problem_of(make_problem, shape, bias=True, **arguments):
    """With a lambda_r at which fixed-point iteration converges."""
    n, d_in, d_out = shape
    problem = make_problem(n=n, d_in=d_in, d_out=d_out, bias=bias, **arguments)
    problem.lambda_r = 1.3 * torch.linalg.eigvalsh(problem.operator.gram()).max().item()
    return problem


def count_squared(monkeypatch, solver):
    """Counts the solves by repeated squaring."""
    found, squared = [], solver._squared
    monkeypatch.setattr(solver, "_squared", lambda *arguments: found.append(1) or squared(*arguments))
    return found


@every_solver
@pytest.mark.parametrize("iterations", ITERATIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_gram_equals_rows(make_problem, monkeypatch, make, iterations, shape, bias):
    solutions, planned = [], []
    for uses_gram in (True, False):

        def plan(problem, gradients, uses_gram=uses_gram):
            problem.uses_gram = uses_gram
            planned.append(uses_gram)
            return 0.0  # squaring never costs less

        problem = problem_of(make_problem, shape, bias)
        with monkeypatch.context() as patch:
            patch.setattr(LocalProblem, "plan", plan)
            solution = make(iterations).solve(problem)
        assert solution.status is Status.SOLVED
        solutions.append(joined(solution, problem))
    assert planned == [True, False]
    close(*solutions)
    problem = problem_of(make_problem, shape, bias)  # as the solver itself chooses
    close(joined(make(iterations).solve(problem), problem), solutions[0])


@affine
@pytest.mark.parametrize("iterations", ITERATIONS[1:])
@pytest.mark.parametrize("bias", [True, False])
def test_repeated_squaring_equals_the_loop(make_problem, monkeypatch, make, iterations, bias):
    problem = problem_of(make_problem, (60, 5, 40), bias)
    solver = make(iterations)
    squared = count_squared(monkeypatch, solver)
    looped = solver._loop(problem, None, record=Recording.CURVE)
    assert not squared
    monkeypatch.setattr(problem, "plan", lambda gradients: float("inf"))  # squaring always costs less
    solution, recorded = solver.solve(problem), solver.solve(problem, record=Recording.CURVE)
    assert squared
    close(joined(solution, problem), looped.displacement)
    assert solution.status is Status.SOLVED and solution.losses is None
    assert torch.equal(solution.weight, recorded.weight)  # logging must not change the weights
    close(recorded.losses, looped.losses)


@affine
def test_many_iterations_of_a_wide_layer_are_squared(make_problem, monkeypatch, make):
    solver = make(33)
    squared = count_squared(monkeypatch, solver)
    solver.solve(problem_of(make_problem, (60, 5, 40)))
    assert squared == [1]
    solver.solve(problem_of(make_problem, (60, 5, 40), transfer="tanh"))
    assert squared == [1]  # a matching loss has no such form
    solver.iterations = 1
    solver.solve(problem_of(make_problem, (60, 5, 40)))
    assert squared == [1]  # the first gradient is known


def test_damping_may_be_a_tensor(make_problem):
    for make in SOLVERS.values():
        solutions = []
        for kind in (float, lambda x: torch.tensor(x, dtype=torch.float64)):
            problem = problem_of(make_problem, (60, 5, 40))
            problem.lambda_r = kind(problem.lambda_r)
            solutions.append(joined(make(10).solve(problem), problem))
        close(*solutions)


@pytest.mark.parametrize("factor", [0.02, 0.4])
def test_divergence_is_noticed_in_both_forms(make_problem, monkeypatch, factor):
    problem = problem_of(make_problem, (60, 5, 40))
    problem.lambda_r *= factor
    solver = FixedPointIteration(33)
    squared = count_squared(monkeypatch, solver)
    assert solver._loop(problem, None, record=Recording.CURVE).growth > 0 and not squared
    assert solver.solve(problem).status is Status.DIVERGED and squared


def test_status_does_not_depend_on_recording(make_problem, monkeypatch):
    """Residuals that fall at first and then grow: logging a step must not decide whether it is applied."""
    for iterations in range(8, 15):
        problem = problem_of(make_problem, (60, 2, 40), bias=False)
        problem.operator.rows = torch.linalg.qr(problem.operator.rows)[0] * torch.tensor(
            [0.5, 1.5**0.5], dtype=torch.float64
        )
        problem.lambda_r = 1.0  # the powers of -diag(0.25, 1.5)
        first = torch.tensor([1.0, 0.02], dtype=torch.float64).expand(40, 2)
        problem._first_gradient = first
        solver = FixedPointIteration(iterations)
        squared = count_squared(monkeypatch, solver)
        looped = solver.solve(problem, record=Recording.CURVE).status
        assert solver.solve(problem).status is looped, iterations
        assert squared
