import pytest
import torch

from locoprop_lightning.errors import UserError
from locoprop_lightning.local import LocalProblem, resolve_transfer
from locoprop_lightning.solvers import ClosedForm, Status
from tests.support import Stateful, augmented, close, finite, joined, replaced, with_rows


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("n", [3, 12], ids=["kernel", "gram"])
def test_is_equation_5(make_problem, bias, n):
    problem = make_problem(n=n, d_in=6, bias=bias)
    y = augmented(problem)
    c = y.T @ y + problem.lambda_r * torch.eye(y.shape[1], dtype=y.dtype)
    expected = -problem.lambda_a * torch.linalg.solve(c, (problem.direction.T @ y).T).T
    close(joined(ClosedForm().solve(problem), problem), expected, 1e-10)
    assert ("kernel" in ClosedForm().describe(problem)) == (n == 3)


def test_refuses_a_matching_loss(make_problem):
    with pytest.raises(UserError, match="squared loss only, but layer 'layer' matches through tanh: set objective"):
        ClosedForm().solve(make_problem("tanh"))


@pytest.mark.parametrize("refresh_every", [1, 3])
def test_average_of_a_constant_is_the_constant(make_problem, refresh_every):
    problem = make_problem()
    exact = ClosedForm().solve(problem)
    solver = Stateful(ClosedForm(average=0.9, refresh_every=refresh_every))
    for _ in range(5):
        close(solver.solve(problem).weight, exact.weight, 1e-10)


def test_average_agrees_over_batch_sizes(make_problem):
    """Twice the rows with the same mean C: as if C were n times the mean, and the exact step of that batch."""
    problem = make_problem()
    double = replaced(with_rows(problem, [*range(12), *range(12)]), lambda_r=2 * problem.lambda_r)
    stale = Stateful(ClosedForm(average=0.9, refresh_every=2))
    stale.solve(problem)
    close(stale.solve(double).weight, ClosedForm().solve(double).weight, 1e-10)
    fresh = Stateful(ClosedForm(average=0.9))
    fresh.solve(problem)
    average = fresh.states["layer"]["preconditioner"]["average"]
    close(average["value"] / average["weight"], problem.operator.gram() / problem.n, 1e-12)
    close(fresh.solve(double).weight, ClosedForm().solve(double).weight, 1e-10)
    close(average["value"] / average["weight"], problem.operator.gram() / problem.n, 1e-12)


def test_the_average_of_the_reviews_code(make_problem):
    """Taken in at every step, from the first C with weight 1, and inverted at every third."""
    solver = Stateful(ClosedForm(average=0.9, refresh_every=3, warmup=0, gather="steps", bias_correction=False))
    average = inverse = None
    for batch in range(8):
        problem = make_problem(seed=batch)
        y = augmented(problem)
        average = y.T @ y if average is None else 0.9 * average + 0.1 * y.T @ y
        if batch % 3 == 0:
            inverse = torch.linalg.inv(average + problem.lambda_r * torch.eye(len(average), dtype=average.dtype))
        solution = solver.solver.solve_all(
            {"layer": problem}, {"layer": solver.states.setdefault("layer", {})}, retries=False
        )["layer"]
        close(joined(solution, problem), -problem.lambda_a * problem.direction.T @ y @ inverse, 1e-10)
    with pytest.raises(UserError, match=r"ClosedForm\(gather='never'\): take one of refreshes, steps"):
        ClosedForm(gather="never")


def test_average_takes_in_nothing_nonfinite(make_problem):
    problem = make_problem()
    rows = problem.operator.rows.clone()
    rows[0, 0] = torch.inf
    solver = Stateful(ClosedForm(average=0.9))
    first = solver.solve(problem)
    assert solver.solve(replaced(problem, operator=rows)).status is Status.NONFINITE
    assert "average" in solver.states["layer"]["preconditioner"] and finite(solver.states)
    again = solver.solve(problem)
    assert again.status is Status.SOLVED
    close(again.weight, first.weight, 1e-10)


def test_stale_inverse_of_a_nonfinite_batch_is_not_kept(make_problem):
    solver, good = Stateful(ClosedForm(average=0.9, refresh_every=10)), make_problem()
    rows = good.operator.rows.clone()
    rows[0, 0] = torch.nan
    assert solver.solve(replaced(good, operator=rows)).status is Status.NONFINITE
    solution = solver.solve(good)
    assert solution.status is Status.SOLVED
    close(solution.weight, ClosedForm().solve(good).weight, 1e-10)


def test_a_factorisation_that_fails_in_float32_is_mended():
    y = torch.rand(40, 1) + 1e-4 * torch.rand(40, 8)  # nearly of rank one: C is singular in float32
    d = torch.randn(40, 3)
    w = torch.zeros(3, 8)
    problem = LocalProblem(y, y @ w.t(), d, w, None, resolve_transfer("identity"), lambda_a=1.0, lambda_r=1e-7)
    damped = problem.operator.gram()
    damped.diagonal().add_(1e-7)
    assert torch.linalg.cholesky_ex(damped).info.item() > 0
    solution = ClosedForm().solve(problem)
    assert solution.status is Status.SOLVED
    double = LocalProblem(*(t.double() for t in (y, y @ w.t(), d, w)), None, resolve_transfer("identity"), 1.0, 1e-7)
    assert double.value(solution.weight.double()) < 0


def test_arguments():
    for make, message in [
        (lambda: ClosedForm(average=1.0), r"ClosedForm\(average=1.0\): must be in \[0, 1\)"),
        (lambda: ClosedForm(refresh_every=0), r"ClosedForm\(refresh_every=0\): must be at least 1"),
    ]:
        with pytest.raises(UserError, match=message):
            make()
