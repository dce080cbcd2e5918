"""Whatever a batch is, no solver applies what is not finite, raises, or fails on the good batch that comes after it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from locoprop_lightning.distributed.shard import Shard, SummedOperator
from locoprop_lightning.layers import kind_of
from locoprop_lightning.local import LocalProblem, MatrixOperator, resolve_transfer
from locoprop_lightning.solvers import ClosedForm, Majorization, Recording, Status
from tests.catalogue import EVERY, PROMISED, SQUARED_ONLY, solver
from tests.numerics import hard
from tests.support import Stateful, finite, replaced

CONVERGED = (Status.SOLVED, Status.RETRIED)


@pytest.mark.parametrize("name", EVERY)
@given(data=st.data())
def test_a_hard_problem(name, data):
    problem, good = data.draw(hard.problems(squared=name in SQUARED_ONLY))
    own = Stateful(solver(name))
    for recording in (Recording.NOTHING, Recording.ENDS):
        solution = own.solve(problem, recording)
        assert solution.status is Status.NONFINITE or solution.displacement.isfinite().all()
        assert solution.displacement.dtype == problem.weight.dtype and finite(own.states)
    solution = own.solve(good)
    assert solution.status in CONVERGED and finite(own.states)
    assert name not in PROMISED or good.value(solution.displacement) < 0


@pytest.mark.parametrize("name", ["closed_form", "closed_form_average", "majorization", "conjugate_gradient"])
@given(data=st.data())
def test_what_needs_no_step_size_solves_every_finite_problem(name, data):
    """In float64; what float32 cannot hold is refused."""
    problem, _ = data.draw(hard.problems(squared=True))
    solution = solver(name).solve(problem)
    if problem.weight.dtype == torch.float64 and problem.lambda_r > 1e-300:
        assert solution.status is Status.SOLVED
    if solution.status is Status.SOLVED and name != "conjugate_gradient":  # the exact one, which is shortest
        bound = problem.first_gradient().norm() / problem.lambda_r
        assert solution.displacement.norm() <= bound * 1.001 + torch.finfo(problem.weight.dtype).tiny


def relative_error(rows, lambda_r, make=ClosedForm, bias=True, seed=0, d_out=4):
    """Of the solution in float32, against that of the same numbers in float64."""

    def problem(dtype):
        y, d = rows.to(dtype), hard.normal(len(rows), d_out, seed=seed).float().to(dtype)
        b = y.new_zeros(d_out) if bias else None
        gradient = torch.cat([d.T @ y, d.sum(0)[:, None]] if bias else [d.T @ y], 1)
        zeros = y.new_zeros(d_out, y.shape[1])
        return LocalProblem(
            y, y.new_zeros(len(y), d_out), d, zeros, b, resolve_transfer("identity"), 1.0, lambda_r,
            weight_direction=gradient.clone,
        )  # fmt: skip

    solution, exact = make().solve(problem(torch.float32)), ClosedForm().solve(problem(torch.float64))
    assert solution.status is exact.status is Status.SOLVED and solution.weight.dtype == torch.float32
    return ((solution.displacement - exact.displacement).norm() / exact.displacement.norm()).item()


SINGULAR = {
    "duplicate_rows": lambda n, d: hard.normal(d // 4, d).repeat(n, 1)[:n],
    "duplicate_positive_rows": lambda n, d: hard.normal(d // 4, d).abs().repeat(n, 1)[:n],
    "dead_and_duplicate_columns": lambda n, d: hard.normal(n, d // 2).repeat(1, 2) * (torch.arange(d) % 3 > 0),
}
KEPT = dict(average=0.9, refresh_every=3)
EXACT = {
    "closed_form": ClosedForm,
    "closed_form_kept": lambda: ClosedForm(**KEPT),
    "majorization": lambda: Majorization(2),
    "majorization_kept": lambda: Majorization(2, **KEPT),
}


@pytest.mark.parametrize("relative", [1e-1, 1e-3, 1e-5, 1e-6, 1e-9, 1e-15])
@pytest.mark.parametrize("rows", SINGULAR)
@pytest.mark.parametrize(("n", "d"), [(96, 32), (20, 32)], ids=["gram", "kernel"])
@pytest.mark.parametrize("name", EXACT)
def test_the_exact_solution_in_float32_of_a_singular_gram_matrix(name, n, d, rows, relative):
    """In float32 alone the last two are off by .1 to 10 from 1e-5 on."""
    y = SINGULAR[rows](n, d).float()
    lambda_r = relative * (y.square().sum().item() + n) / (d + 1)
    assert relative_error(y, lambda_r, EXACT[name]) < 3e-3


def test_a_wide_layer_of_duplicate_rows():
    y = hard.normal(300, 2047).repeat(7, 1).float()
    assert relative_error(y, 1e-6 * y.square().sum().item() / 2048) < 3e-3


def test_a_regular_gram_matrix_is_not_made_in_float64(make_problem, monkeypatch):
    """However small lambda_r is: the smallest eigenvalue counts."""

    def refused(self):
        raise AssertionError

    problem = make_problem(n=200, d_in=5, dtype=torch.float32, lambda_r=1e-6)
    monkeypatch.setattr(type(problem.operator), "double", refused)
    assert ClosedForm().solve(problem).status is Status.SOLVED
    with pytest.raises(AssertionError):
        ClosedForm().solve(replaced(problem, operator=torch.ones(200, 5)))


@pytest.mark.parametrize("n", [96, 20], ids=["gram", "kernel"])
@pytest.mark.parametrize("name", EXACT)
def test_rows_of_several_processes_are_solved_in_float64_too(make_problem, name, n):
    """What is summed is summed in float64."""
    y, summed = SINGULAR["duplicate_rows"](n, 32).float(), []

    def total(x):
        summed.append(x.dtype)
        return x

    problem = replaced(
        make_problem(n=n, d_in=32, dtype=torch.float32),
        operator=MatrixOperator(y, True),
        pre_activation=y.new_zeros(n, 3),
        lambda_r=1e-6 * y.square().sum().item() / 33,
    )
    shared = replaced(problem, operator=SummedOperator(problem.operator, Shard.of([n], 0, total, [n])))
    own, of_all = (EXACT[name]().solve(p) for p in (problem, shared))
    assert own.status is of_all.status is Status.SOLVED and own.displacement.any()
    assert (own.displacement - of_all.displacement).norm() < 1e-5 * own.displacement.norm()
    assert torch.float64 in summed or n == 20  # all of the few rows are at hand then


@pytest.mark.parametrize("operator", ["convolution", "groups"])
def test_convolutions_of_dead_channels(operator):
    layer = nn.Conv2d(4, 4, 3, padding=1, groups=2 if operator == "groups" else 1).requires_grad_(False)
    images, directions = hard.normal(20, 4, 6, 6), hard.normal(20, 4, 6, 6, seed=1)
    images[:, ::2] = 0
    found = []
    for dtype in (torch.float32, torch.float64):
        layer.to(dtype)
        x, d = images.float().to(dtype), directions.float().to(dtype)
        kind = kind_of(layer)
        problem = LocalProblem(
            kind.operator(layer, [x]), kind.rows(layer, layer(x)), kind.rows(layer, d), layer.weight.flatten(1),
            layer.bias, resolve_transfer("identity"), 1.0, 1e-3,
        )  # fmt: skip
        found.append(ClosedForm().solve(problem))
    assert all(solution.status is Status.SOLVED for solution in found)
    single, double = (solution.displacement.double() for solution in found)
    assert (single - double).norm() < 3e-3 * double.norm()
