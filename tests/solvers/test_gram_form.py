"""The squared loss through C, through the rows, and by repeated squaring."""

from functools import partial

import pytest
import torch

from locoprop_lightning.local import LocalProblem
from locoprop_lightning.solvers import FixedPointIteration, GradientDescent, Recording, Status
from tests.catalogue import AFFINE, ITERATIVE
from tests.support import close, joined, replaced

RATES = {
    "published_rate": partial(GradientDescent, rate=0.005),
    "corrected_rate": partial(GradientDescent, rate=0.005, proximal=True),
}
SOLVERS = ITERATIVE | RATES
every_solver = pytest.mark.parametrize("make", SOLVERS.values(), ids=SOLVERS)
affine = pytest.mark.parametrize("make", [SOLVERS[name] for name in (*AFFINE, *RATES)], ids=[*AFFINE, *RATES])
ITERATIONS = [1, 2, 3, 10, 33]
SHAPES = [(4, 9, 2), (12, 5, 3), (60, 5, 40)]  # n, d_in, d_out


def problem_of(make_problem, shape, bias=True, **arguments):
    """With a lambda_r at which fixed-point iteration converges."""
    n, d_in, d_out = shape
    problem = make_problem(n=n, d_in=d_in, d_out=d_out, bias=bias, **arguments)
    return replaced(problem, lambda_r=1.3 * torch.linalg.eigvalsh(problem.operator.gram()).max().item())


def looping(solver):
    """The same solver, which takes its steps one by one."""
    plain = type("Looping", (type(solver),), {"affine": lambda self, problem: None})
    loop = object.__new__(plain)
    vars(loop).update(vars(solver))
    return loop


def plan_for(monkeypatch, uses_gram, cost):
    """Has every problem take one form of its gradients, and say what that costs; returns a list of the plans made."""
    made = []

    def plan(problem, gradients):
        problem.uses_gram = uses_gram
        made.append(uses_gram)
        return cost

    monkeypatch.setattr(LocalProblem, "plan", plan)
    return made


@pytest.fixture
def gradients(monkeypatch):
    """A list of the gradients made after the first, of which a solve by repeated squaring makes none."""
    made, gradient = [], LocalProblem.gradient
    monkeypatch.setattr(LocalProblem, "gradient", lambda *arguments: made.append(1) or gradient(*arguments))
    return made


@every_solver
@pytest.mark.parametrize("iterations", ITERATIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_gram_equals_rows(make_problem, monkeypatch, make, iterations, shape, bias):
    solutions = []
    for uses_gram in (True, False):
        problem = problem_of(make_problem, shape, bias)
        with monkeypatch.context() as patch:
            planned = plan_for(patch, uses_gram, cost=0.0)  # squaring never costs less
            solution = make(iterations).solve(problem)
        assert planned == [uses_gram]
        assert solution.status is Status.SOLVED
        solutions.append(joined(solution, problem))
    close(*solutions, 1e-10)
    problem = problem_of(make_problem, shape, bias)  # as the solver itself chooses
    close(joined(make(iterations).solve(problem), problem), solutions[0], 1e-10)


@affine
@pytest.mark.parametrize("iterations", ITERATIONS[1:])
@pytest.mark.parametrize("bias", [True, False])
def test_repeated_squaring_equals_the_loop(make_problem, monkeypatch, gradients, make, iterations, bias):
    problem, solver = problem_of(make_problem, (60, 5, 40), bias), make(iterations)
    plan_for(monkeypatch, uses_gram=False, cost=float("inf"))  # squaring always costs less
    looped = looping(solver).solve(problem, recording=Recording.CURVE)
    assert len(gradients) == iterations - 1
    gradients.clear()
    solution = solver.solve(problem)
    assert not gradients
    close(solution.displacement, looped.displacement, 1e-10)
    assert solution.status is looped.status is Status.SOLVED and solution.losses is None
    ends = solver.solve(problem, recording=Recording.ENDS)
    assert not gradients  # the ends are had without the steps
    close(ends.losses, looped.losses[[0, -1]], 1e-10)
    curve = solver.solve(problem, recording=Recording.CURVE)
    close(curve.losses, looped.losses, 1e-10)
    for recorded in (ends, curve):
        assert torch.equal(solution.displacement, recorded.displacement)  # logging must not change the weights


@affine
def test_many_iterations_of_a_wide_layer_are_squared(make_problem, gradients, make):
    make(33).solve(problem_of(make_problem, (60, 5, 40)))
    assert not gradients
    make(33).solve(problem_of(make_problem, (60, 5, 40), transfer="tanh"))
    assert len(gradients) == 32  # a matching loss has no such form
    looping(make(33)).solve(problem_of(make_problem, (60, 5, 40)))
    assert len(gradients) == 64


@affine
def test_one_iteration_is_not_squared(make_problem, monkeypatch, gradients, make):
    """The first gradient is known, and C is not needed."""
    made, gram = [], LocalProblem.gram
    problem = problem_of(make_problem, (60, 5, 40))
    monkeypatch.setattr(LocalProblem, "gram", lambda self: made.append(1) or gram(self))
    make(1).solve(problem)
    assert not gradients and not made
    make(33).solve(problem)
    assert not gradients and made


def test_damping_may_be_a_tensor(make_problem):
    for make in SOLVERS.values():
        solutions = []
        for kind in (float, lambda x: torch.tensor(x, dtype=torch.float64)):
            problem = problem_of(make_problem, (60, 5, 40))
            problem = replaced(problem, lambda_r=kind(problem.lambda_r))
            solutions.append(joined(make(10).solve(problem), problem))
        close(*solutions, 1e-10)


@pytest.mark.parametrize("factor", [0.02, 0.4])
def test_divergence_is_noticed_in_both_forms(make_problem, gradients, factor):
    problem = problem_of(make_problem, (60, 5, 40))
    problem = replaced(problem, lambda_r=factor * problem.lambda_r)
    solver = FixedPointIteration(33)
    assert looping(solver).solve(problem, recording=Recording.CURVE).status is Status.DIVERGED
    assert len(gradients) == 32
    gradients.clear()
    assert solver.solve(problem).status is Status.DIVERGED and not gradients


def test_status_does_not_depend_on_recording(make_problem, gradients):
    """Residuals that fall at first and then grow: logging a step must not decide whether it is applied."""
    found = set()
    first = torch.tensor([1.0, 0.02], dtype=torch.float64).expand(40, 2)
    for iterations in range(8, 15):
        problem = problem_of(make_problem, (60, 2, 40), bias=False)
        rows = torch.linalg.qr(problem.operator.rows)[0] * torch.tensor([0.5, 1.5**0.5], dtype=torch.float64)
        problem = replaced(  # the powers of -diag(0.25, 1.5)
            problem, operator=rows, lambda_a=1.0, lambda_r=1.0, weight_direction=lambda: first.clone()
        )
        solver = FixedPointIteration(iterations)
        gradients.clear()
        status = solver.solve(problem).status
        assert not gradients
        for other in (solver, looping(solver)):
            for recording in Recording:
                assert other.solve(problem, recording=recording).status is status, iterations
        found.add(status)
    assert found == {Status.SOLVED, Status.DIVERGED}
