import numpy as np
import pytest
import torch

from locoprop_lightning.errors import UserError
from locoprop_lightning.local.factorization import factorize, inverse_root, invert
from locoprop_lightning.local.preconditioner import Preconditioner, average_of, update_average
from tests.support import finite, flat, same, through_a_file


def moment(seed=0, d=4, n=9):
    """A mean over rows of outer products [d, d]."""
    y = torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return y.T @ y / n


def close(a, b, tolerance=1e-10):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("refresh_every", "warmup", "expected"),
    [
        (1, 0, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]),
        (4, 0, [0, 4, 8]),
        (4, 1, [0, 4, 8]),
        (4, 3, [0, 1, 2, 6, 10]),
        (100, 0, [0]),
        (100, 5, [0, 1, 2, 3, 4]),
    ],
)
def test_steps_that_refresh(refresh_every, warmup, expected):
    factor, state, due = Preconditioner(0.9, refresh_every, warmup, "Test"), {}, []
    for step in range(12):
        if factor.due(state):
            due.append(step)
            factor.refresh(state, moment(step), 1, 0.1)
        factor.tick(state)
    assert due == expected


@pytest.mark.parametrize("average", [0.0, 0.7])
def test_inverse_of_the_average(average):
    factor, state = Preconditioner(average, 1, 0, "Test"), {}
    mean, weight, n, ridge = np.zeros((4, 4)), 0.0, 7, 0.3
    for batch in range(4):
        m = moment(batch)
        mean = average * mean + (1 - average) * m.numpy()
        weight = 1 - average ** (batch + 1)
        factor.refresh(state, m, n, ridge)
        factor.tick(state)
        expected = np.linalg.inv(n * mean / weight + ridge * np.eye(4))
        np.testing.assert_allclose(state["inverse"].numpy(), expected, rtol=1e-10, atol=1e-10)
    x = torch.randn(2, 4, dtype=torch.float64)
    close(factor.solve(state, x, n), x @ torch.from_numpy(expected))
    close(factor.solve(state, x.T, n, left=True), torch.from_numpy(expected) @ x.T)


def test_another_number_of_rows_scales_the_ridge_too():
    factor, state = Preconditioner(0.5, 3, 0, "Test"), {}
    factor.refresh(state, moment(), 8, 0.3)
    x = torch.randn(2, 4, dtype=torch.float64)
    expected = x @ torch.linalg.inv(6 * moment() + 0.3 * 6 / 8 * torch.eye(4, dtype=torch.float64))
    close(factor.solve(state, x, 6), expected)


def test_relative_ridge():
    factor, state = Preconditioner(0.0, 1, 0, "Test"), {}
    factor.refresh(state, moment(), 5, 0.2, relative=True)
    c = 5 * moment()
    close(state["inverse"], torch.linalg.inv(c + 0.2 * c.trace() / 4 * torch.eye(4, dtype=torch.float64)))
    factor.refresh(state, torch.zeros(4, 4, dtype=torch.float64), 5, 0.2, relative=True)
    assert finite(state)


def test_what_was_forgotten_is_made_anew():
    factor, state, fresh = Preconditioner(0.9, 1, 0, "Test"), {}, {}
    for seed in (1, 2):
        factor.refresh(state, 100 * moment(seed), 5, 0.2)
        factor.tick(state)
    factor.forget(state)
    assert "average" not in state and "inverse" not in state and state["steps"] == 1
    assert factor.due(state)
    factor.refresh(state, moment(3), 5, 0.2)
    factor.tick(state)
    factor.refresh(fresh, moment(3), 5, 0.2)
    factor.tick(fresh)
    assert same(state.pop("average"), fresh.pop("average"))
    assert state.pop("steps") == 2 and fresh.pop("steps") == 1  # the step is done anew, and counted once
    assert same(state, fresh)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_nonfinite_moment_is_not_taken_in(value):
    factor, state = Preconditioner(0.9, 1, 0, "Test"), {}
    factor.refresh(state, moment(), 5, 0.2)
    before = {key: x.clone() for key, x in flat(state).items()}
    bad = moment(1)
    bad[1, 2] = value
    factor.refresh(state, bad, 5, 0.2)
    for key in ("/average/value", "/average/weight"):
        assert torch.equal(flat(state)[key], before[key])
    close(state["inverse"], before["/inverse"], 1e-14)


def test_a_nonfinite_first_moment_leaves_no_nonfinite_state():
    factor, state = Preconditioner(0.9, 1, 0, "Test"), {}
    factor.refresh(state, torch.full((4, 4), torch.nan, dtype=torch.float64), 5, 0.2)
    assert finite(state)
    factor.refresh(state, moment(), 5, 0.2)
    close(state["inverse"], torch.linalg.inv(5 * moment() + 0.2 * torch.eye(4, dtype=torch.float64)))


def test_state_loads_without_running_code():
    factor, state = Preconditioner(0.9, 2, 1, "Test"), {}
    factor.refresh(state, moment(), 5, 0.2)
    factor.tick(state)
    loaded = through_a_file(state)
    assert same(state, loaded)
    for s in (state, loaded):
        factor.refresh(s, moment(1), 5, 0.2)
        factor.tick(s)
    assert same(state, loaded)


def test_cholesky_factor():
    c = moment()
    factor = factorize(c, 0.1)
    close(factor @ factor.T, c + 0.1 * torch.eye(4, dtype=torch.float64))
    assert torch.equal(c, moment())
    close(invert(c, 0.1), torch.linalg.inv(c + 0.1 * torch.eye(4, dtype=torch.float64)))
    assert factorize(torch.full((2, 2), torch.nan), 0.1).isnan().all()


def test_a_factorisation_that_rounding_breaks_is_done_in_float64():
    y = torch.rand(40, 1) + 1e-4 * torch.rand(40, 8)
    c = y.T @ y
    damped = c + 1e-7 * torch.eye(8)
    assert torch.linalg.cholesky_ex(damped).info > 0
    values, vectors = torch.linalg.eigh(c.double())
    expected = (vectors / (values.clamp_min(0) + 1e-7)) @ vectors.T
    inverse = invert(c, 1e-7)
    assert inverse.dtype == torch.float64
    torch.testing.assert_close(inverse, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


def test_arguments():
    for arguments, message in [
        ((1.0, 1, 0), r"Test\(average=1.0\): must be in \[0, 1\)"),
        ((-0.1, 1, 0), r"Test\(average=-0.1\)"),
        ((0.9, 0, 0), r"Test\(refresh_every=0\): must be at least 1"),
        ((0.9, 1, -1), r"Test\(warmup=-1\): must be at least 0"),
    ]:
        with pytest.raises(UserError, match=message):
            Preconditioner(*arguments, "Test")
    assert Preconditioner(0.0, 1, 40, "Test").current
    assert not Preconditioner(0.0, 2, 40, "Test").current and not Preconditioner(0.5, 1, 40, "Test").current


@pytest.mark.parametrize("root", [True, False])
def test_the_inverse_of_nothing_is_nothing(root):
    state = {}
    factor = Preconditioner(0.0, 1, 0, "Test", root=root)
    factor.refresh(state, torch.zeros(3, 3, dtype=torch.float64), 1, 1e-3, relative=True)
    assert torch.equal(state["inverse"], torch.zeros(3, 3, dtype=torch.float64))


@pytest.mark.parametrize("decay", [0.0, 0.7])
def test_moving_average(decay):
    state, total, weight = {}, 0.0, 0.0
    for seed in range(5):
        value = moment(seed)
        update_average(state, value, decay)
        total, weight = decay * total + (1 - decay) * value, decay * weight + 1 - decay
        close(average_of(state), total / weight, 1e-13)
        assert state["weight"].item() == pytest.approx(1 - decay ** (seed + 1))
    before = average_of(state)
    for bad in (torch.nan, torch.inf):
        update_average(state, torch.full_like(value, bad), decay)
        assert torch.equal(average_of(state), before) and finite(state)
    assert state.keys() == {"value", "weight"}


def test_an_average_of_nothing_is_zero():
    state = {}
    update_average(state, torch.full((3,), torch.nan), 0.9)
    assert torch.equal(average_of(state), torch.zeros(3)) and state["weight"] == 0
    update_average(state, torch.ones(3), 0.9)
    close(average_of(state), torch.ones(3), 1e-6)


def test_roots():
    c = moment()
    root = inverse_root(c, 0.1)
    close(root @ root, invert(c, 0.1))
    close(root, root.T)
    assert inverse_root(torch.full((2, 2), torch.nan), 0.1).isnan().all()
    factor, state = Preconditioner(0.0, 1, 0, "Test", root=True), {}
    factor.refresh(state, c, 5, 0.2)
    close(state["inverse"], inverse_root(5 * c, 0.2))


def test_a_moment_for_each_group():
    moments = torch.stack([moment(seed) for seed in range(3)])
    factor, state = Preconditioner(0.5, 3, 0, "Test"), {}
    factor.refresh(state, moments, 8, 0.3)
    assert state["inverse"].shape == (3, 4, 4)
    x = torch.randn(6, 4, dtype=torch.float64)
    alone = []
    for part, m in zip(x.chunk(3), moments, strict=True):
        own = {}
        factor.refresh(own, m, 8, 0.3)
        alone.append(factor.solve(own, part, 8))
    close(factor.solve(state, x, 8), torch.cat(alone))
