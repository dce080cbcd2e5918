import pytest
import torch

from locoprop_lightning.errors import UserError
from locoprop_lightning.solvers import ConjugateGradient, Recording, Status
from tests.support import augmented, close, joined, replaced

both_biases = pytest.mark.parametrize("bias", [True, False])
both_sides = pytest.mark.parametrize("n", [4, 12], ids=["wide", "tall"])


def exact(problem):
    y = augmented(problem)
    c = y.T @ y + problem.lambda_r * torch.eye(y.shape[1], dtype=y.dtype)
    return -problem.lambda_a * torch.linalg.solve(c, y.T @ problem.direction).T


@both_biases
@both_sides
def test_exact_after_as_many_iterations_as_inputs(make_problem, n, bias):
    problem = make_problem(n=n, d_in=6, bias=bias)
    for iterations in (problem.operator.width + 1, 40):
        solution = ConjugateGradient(iterations).solve(problem)
        assert solution.status is Status.SOLVED
        close(joined(solution, problem), exact(problem), 1e-9)


@both_biases
@both_sides
def test_j_falls_with_every_iteration(make_problem, n, bias):
    problem = make_problem(n=n, d_in=6, bias=bias, lambda_r=0.05)
    solutions = [ConjugateGradient(t).solve(problem) for t in range(1, problem.operator.width + 1)]
    start = problem.value(problem.zeros())
    values = torch.stack([start, *(problem.value(joined(solution, problem)) for solution in solutions)])
    rank = min(n, problem.operator.width)
    assert (values.diff()[:rank] < 0).all() and (values.diff() < 1e-12).all()
    losses = ConjugateGradient(problem.operator.width).solve(problem, recording=Recording.CURVE).losses
    close((losses - losses[0]) * problem.n, values, 1e-11)


def test_is_best_in_the_krylov_space(make_problem):
    """T iterations minimise J over span{g, g H, ...}, for each unit alone."""
    problem = make_problem(n=12, d_in=6, lambda_r=0.05)
    hessian = problem.operator.gram() + problem.lambda_r * torch.eye(problem.operator.width, dtype=torch.float64)
    for iterations in (1, 2, 3):
        v = joined(ConjugateGradient(iterations).solve(problem), problem)
        for unit, g in enumerate(problem.first_gradient()):
            basis = torch.linalg.qr(
                torch.stack([torch.linalg.matrix_power(hessian, k) @ g for k in range(iterations)]).T
            )[0]
            best = -basis @ torch.linalg.solve(basis.T @ hessian @ basis, basis.T @ g)
            close(v[unit], best, 1e-10)


@pytest.mark.parametrize("seed", [77, 89])
@pytest.mark.parametrize("iterations", [14, 40, 200])
def test_iterations_past_convergence_do_no_harm(make_problem, seed, iterations):
    """In float32 the residuals end below the smallest number."""
    arguments = dict(n=20, d_in=12, d_out=4, lambda_a=1.0, lambda_r=1e-5, scale=1e-4, seed=seed)
    problem, wide = make_problem(**arguments, dtype=torch.float32), make_problem(**arguments)
    solution = ConjugateGradient(iterations).solve(problem)
    assert solution.status is Status.SOLVED
    best = wide.value(exact(wide))
    assert wide.value(joined(solution, problem).double()) < best + 1e-3 * best.abs()


def test_units_of_very_different_size(make_problem):
    problem = make_problem()
    size = torch.tensor([1e-9, 0.0, 1e9], dtype=torch.float64)
    problem = replaced(problem, direction=problem.direction * size)
    v, expected = joined(ConjugateGradient(7).solve(problem), problem), exact(problem)
    assert (v[1] == 0).all()
    for unit in (0, 2):
        close(v[unit] / expected[unit].norm(), expected[unit] / expected[unit].norm(), 1e-6)


@both_biases
@both_sides
@pytest.mark.parametrize("iterations", [1, 2, 5])
def test_gram_equals_rows(make_problem, monkeypatch, n, bias, iterations):
    problem = make_problem(n=n, d_in=6, bias=bias)
    found = []
    for uses_gram in (True, False):
        monkeypatch.setattr(type(problem), "plan", lambda p, _, choice=uses_gram: setattr(p, "uses_gram", choice))
        found.append(joined(ConjugateGradient(iterations).solve(problem), problem))
    close(found[0], found[1], 1e-10)


@pytest.mark.parametrize("transfer", ["tanh", "relu", "softmax"])
def test_refuses_a_matching_loss(make_problem, transfer):
    with pytest.raises(UserError, match=f"squared loss only, but layer 'layer' matches through {transfer}: set objec"):
        ConjugateGradient().solve(make_problem(transfer))
