"""Whatever the gradients of a batch are, oracles keep nothing that is not finite and go on with the next batch."""

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from locoprop_lightning.local.factorization import eigh, factorize, inverse_root, invert
from locoprop_lightning.local.reduction import reduced
from locoprop_lightning.oracles import GradientOracle, RMSOracle, SpectralOracle, WhitenedOracle
from locoprop_lightning.oracles.grouped import GroupedOracle
from locoprop_lightning.solvers import ClosedForm, Majorization, Status
from tests.numerics import hard
from tests.support import close, finite

ORACLES = {
    "gradient": GradientOracle,
    "rms": RMSOracle,
    "rms_layer": partial(RMSOracle, per="layer"),
    "whitened": partial(WhitenedOracle, power=1.0, samples=0, refresh_every=2, warmup=0),
    "whitened_root": partial(WhitenedOracle, power=0.5, samples=0, refresh_every=2, warmup=0),
    "whitened_grouped": lambda: GroupedOracle(WhitenedOracle(samples=0), 2),
    "spectral": partial(SpectralOracle, refresh_every=2, warmup=0),
    "spectral_momentum": partial(SpectralOracle, momentum=0.6),
    "spectral_grouped": lambda: GroupedOracle(SpectralOracle(), 2),
}


def step(oracle, gradient, rows, state):
    """Observes a batch; D, and D^T Y from the weight gradient."""
    terms, weight_gradient = len(gradient), gradient.mT @ rows
    oracle.observe(gradient, [], terms, state)
    if oracle.asks_inverse:
        c = rows.mT @ rows
        c = c + (c.trace() / len(c)).clamp_min(torch.finfo(c.dtype).tiny) * torch.eye(len(c), dtype=c.dtype)
        inverse = invert(c, 0.0)
        oracle.prepare(weight_gradient, lambda x: x @ inverse, 1, state)
    return oracle.direction(gradient, terms, state), oracle.weight_direction(weight_gradient, terms, state)


@pytest.mark.parametrize("name", ORACLES)
@given(data=st.data())
def test_a_hard_gradient(name, data):
    oracle, state = ORACLES[name](), {}
    dtype = hard.DTYPES[data.draw(st.sampled_from(list(hard.DTYPES)))]
    n, size = data.draw(st.sampled_from([1, 2, 9])), 10.0 ** data.draw(hard.powers([-12, -6, 0, 6]))
    good, rows = hard.normal(n, 4).to(dtype) / n, hard.normal(n, 3, seed=1).to(dtype)
    bad = (size * hard.ROWS[data.draw(st.sampled_from(list(hard.ROWS)))](good.double())).to(dtype)
    spoilt = torch.full_like(good, data.draw(st.sampled_from([torch.nan, torch.inf])))
    for gradient in data.draw(st.permutations([good, bad, spoilt, torch.zeros_like(good)])):
        made = step(oracle, gradient, rows, state)
        assert finite(state)
        if gradient is not spoilt:
            assert all(d.isfinite().all() and d.dtype == dtype for d in made)
        if not gradient.any() and "momentum" not in name:
            assert not any(d.any() for d in made)
    direction, _ = step(oracle, good, rows, state)
    assert direction.isfinite().all() and direction.any()


def fail(monkeypatch, name, times):
    """Has a function of torch.linalg fail some times, as it does where it does not converge or is not positive."""
    real, calls = getattr(torch.linalg, name), []

    def failing(x, *rest):
        calls.append(x.dtype)
        if len(calls) > times:
            return real(x, *rest)
        if name == "eigh":
            raise torch.linalg.LinAlgError("linalg.eigh: The algorithm failed to converge")
        factor, info = real(x, *rest)
        return torch.return_types.linalg_cholesky_ex((factor, torch.ones_like(info)))

    monkeypatch.setattr(torch.linalg, name, failing)
    return calls


@pytest.mark.parametrize("times", [0, 1, 2, 3])
@pytest.mark.parametrize("dtype", hard.DTYPES.values(), ids=hard.DTYPES)
def test_an_eigenvalue_solver_that_does_not_converge(monkeypatch, dtype, times):
    y = hard.normal(9, 4).to(dtype)
    c = torch.stack([y.mT @ y, torch.eye(4, dtype=dtype)])
    calls = fail(monkeypatch, "eigh", times)
    root = inverse_root(c, 0.5)
    assert len(calls) == min(times + 1, 3) and root.dtype == dtype
    if times == 3:
        assert root.isnan().all()
    else:
        tolerance = 1e-5 if dtype == torch.float32 else 1e-12
        close(root @ root, torch.linalg.inv(c + 0.5 * torch.eye(4, dtype=dtype)), tolerance)


@pytest.mark.parametrize("times", [0, 1, 2, 3])
@pytest.mark.parametrize("wide", [True, False], ids=["wide", "narrow"])
def test_a_factorisation_that_fails(monkeypatch, times, wide):
    y = hard.normal(9, 4).float()
    calls = fail(monkeypatch, "cholesky_ex", times)
    factor = factorize(y.mT @ y, 0.5, (lambda: y.double().mT @ y.double()) if wide else None)
    assert len(calls) == min(times + 1, 3) and calls[1:] == [torch.float64] * (len(calls) - 1)
    if times == 3:
        assert factor.isnan().all()
    else:
        expected = y.double().mT @ y.double() + 0.5 * torch.eye(4)
        close((factor @ factor.mT).double(), expected, 1e-5 if times == 0 or not wide else 1e-12)


@pytest.mark.parametrize("make", [ClosedForm, Majorization], ids=lambda make: make.__name__)
@pytest.mark.parametrize("shape", [(12, 5), (4, 9)], ids=["gram", "kernel"])
def test_a_solver_all_of_whose_factorisations_fail_is_refused(make_problem, monkeypatch, make, shape):
    problem = make_problem(n=shape[0], d_in=shape[1], dtype=torch.float32)
    with monkeypatch.context() as patch:
        fail(patch, "cholesky_ex", 1000)
        fail(patch, "eigh", 1000)
        assert make().solve(problem).status is Status.NONFINITE
    assert make().solve(problem).status is Status.SOLVED


def test_coordinates_in_the_span_of_the_rows_where_eigh_fails_at_first(make_problem, monkeypatch):
    problem = make_problem(n=4, d_in=9)
    small, lift = reduced(problem)
    fail(monkeypatch, "eigh", 2)
    other, lift_other = reduced(problem)
    close(lift(small.first_gradient()), lift_other(other.first_gradient()), 1e-10)


def test_eigenvalues_of_what_is_not_finite():
    c = torch.eye(3)
    c[1, 1] = torch.inf
    assert eigh(c)[0].isnan().all()
