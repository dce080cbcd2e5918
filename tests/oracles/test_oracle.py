"""What every oracle promises."""

import pytest
import torch

from locoprop_lightning.local import LocalProblem, Rows, resolve_transfer
from locoprop_lightning.local.operator import spread
from locoprop_lightning.oracles import GradientOracle, RMSOracle, WhitenedOracle
from locoprop_lightning.solvers import ClosedForm, Status
from locoprop_lightning.tasks import Classification
from tests.oracles.support import batch, close
from tests.support import finite, flat, through_a_file

ORACLES = {
    "gradient": GradientOracle,
    "rms": RMSOracle,
    "rms_layer": lambda: RMSOracle(per="layer"),
    "whitened": lambda: WhitenedOracle(samples=0),
    "whitened_rare": lambda: WhitenedOracle(samples=0, refresh_every=3, warmup=0),
    "whitened_root": lambda: WhitenedOracle(power=0.5, samples=0),
}
every_oracle = pytest.mark.parametrize("make", ORACLES.values(), ids=ORACLES)
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


@every_oracle
def test_weight_direction_is_the_product_with_the_rows(make):
    oracle, state = make(), {}
    for seed, n in enumerate((12, 12, 7, 12)):
        g, y = batch(n, seed=seed), torch.randn(n, 5, dtype=torch.float64)
        oracle.observe(g, [], len(g), state)
        before = g.clone()
        close(oracle.weight_direction(g.T @ y, n, state), oracle.direction(g, len(g), state).T @ y)
        assert torch.equal(g, before)


@every_oracle
@both_dtypes
def test_zero_gradient(make, dtype):
    """Also on the first batch, as below a last layer that starts at zero."""
    for seen in (0, 2):
        oracle, state = make(), {}
        for seed in range(seen):
            oracle.observe(batch(seed=seed, dtype=dtype), [], 12, state)
        zero = torch.zeros(12, 4, dtype=dtype)
        oracle.observe(zero, [], len(zero), state)
        assert (oracle.direction(zero, len(zero), state) == 0).all()
        assert (oracle.weight_direction(torch.zeros(4, 5, dtype=dtype), 12, state) == 0).all()
        assert finite(state)
        g = batch(seed=3, dtype=dtype)
        oracle.observe(g, [], len(g), state)
        assert oracle.direction(g, len(g), state).dtype == dtype


@every_oracle
@both_dtypes
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("seen", [0, 2], ids=["at_the_start", "later"])
def test_nothing_nonfinite_enters_the_state(make, dtype, value, seen):
    oracle, state = make(), {}
    for seed in range(seen):
        oracle.observe(batch(seed=seed, dtype=dtype), [], 12, state)
    bad = batch(seed=3, dtype=dtype)
    bad[2, 1] = value
    averages = ("/square/value", "/square/weight", "/preconditioner/average/value", "/preconditioner/average/weight")
    before = {key: x.clone() for key, x in flat(state).items() if key in averages}
    assert bool(before) == (seen > 0 and make is not GradientOracle)
    oracle.observe(bad, [], len(bad), state)
    assert finite(state)
    assert all(torch.equal(flat(state)[key], x) for key, x in before.items())
    good = batch(seed=4, dtype=dtype)
    oracle.observe(good, [], len(good), state)
    assert oracle.direction(good, len(good), state).isfinite().all()


@every_oracle
def test_state_goes_through_a_file(make):
    oracle, state = make(), {}
    for seed in range(2):
        oracle.observe(batch(seed=seed), [], 12, state)
    loaded = through_a_file(state)
    for seed in range(2, 6):
        g = batch(seed=seed)
        oracle.observe(g, [], len(g), state)
        oracle.observe(g, [], len(g), loaded)
        assert torch.equal(oracle.direction(g, len(g), state), oracle.direction(g, len(g), loaded))


def test_gradient_oracle():
    oracle, g = GradientOracle(), batch()
    assert torch.equal(oracle.direction(g, len(g), {}), g)
    assert torch.equal(oracle.weight_direction(g, 3, {}), g)


@pytest.mark.parametrize("make", [RMSOracle, lambda: WhitenedOracle(samples=0)], ids=["rms", "whitened"])
def test_statistics_are_means_over_rows(make):
    """A batch of 608 after 1,024 rows, scaled down, whose rows have the same second moments."""
    oracle, whole, part = make(), {}, {}
    samples = batch(8) * 8  # gradients of single samples
    for repeats in (4, 4, 1, 4):
        n = 8 * repeats
        g, reference = samples.repeat(repeats, 1) / n, samples.repeat(4, 1) / 32
        oracle.observe(reference, [], len(reference), whole)
        oracle.observe(g, [], len(g), part)
        averages = {key: x for key, x in flat(whole).items() if key.endswith(("/value", "/weight"))}
        assert len(averages) == 2
        for key, x in averages.items():
            close(flat(part)[key], x)
        close(oracle.direction(g, len(g), part)[:8], oracle.direction(reference, len(reference), whole)[:8])


def test_a_nonfinite_output_does_not_stop_the_draw():
    """Its layer is refused and counted, as with any oracle; it does not end the run."""
    output = torch.randn(6, 3)
    output[2, 1] = torch.nan
    labels = Classification(3).sample_labels(output, torch.Generator().manual_seed(0))
    assert labels.shape == (6,) and ((labels >= 0) & (labels < 3)).all()


def test_a_layer_below_a_zero_output_layer_is_left_alone():
    """Its gradient is zero in the first step; that is a solved problem, whose solution is the start."""
    y, w = torch.randn(12, 5), torch.randn(4, 5)
    for name, make in ORACLES.items():
        oracle, state, g = make(), {}, torch.zeros(12, 4)
        oracle.observe(g, [], len(g), state)
        problem = LocalProblem(
            y, y @ w.T, oracle.direction(g, len(g), state), w, None, resolve_transfer("identity"), 0.1, 1.0
        )
        solution = ClosedForm().solve(problem)
        assert solution.status is Status.SOLVED and torch.equal(solution.weight, w), name


@every_oracle
def test_gradients_after_a_batch_of_zeros(make):
    """Also where the statistics of that batch are kept for a while."""
    oracle, state = make(), {}
    for g in (torch.zeros(12, 4, dtype=torch.float64), batch()):
        oracle.observe(g, [], len(g), state)
        assert oracle.direction(g, len(g), state).abs().max() < 1e6


class Parts(Rows):
    """The rows of a batch of which those at hand are a part; sums are made of what every part has told."""

    def __init__(self, index, n, others):
        self.index = index
        self.n = n
        self.others = others
        self.sums = []

    def count(self, own):
        assert own == len(self.index)
        return self.n

    def sum(self, x):
        self.sums.append(x.clone())
        return x + self.others[len(self.sums) - 1] if self.others else x

    def sample(self, own, count, device):
        index = spread(self.n, count, device)
        return torch.isin(self.index, index).nonzero()[:, 0], len(index)


@every_oracle
def test_parts_of_a_batch_make_the_whole(make):
    """An oracle that sees some of the rows learns the same as one that sees all, if sums are of all."""
    batches, parts = [batch(40), 100 * batch(40, seed=1)], [torch.arange(25), torch.arange(25, 40)]
    oracle, whole = make(), {}
    for g in batches:
        oracle.observe(g, [g], 40, whole)
    told = [[] for _ in parts]
    for _ in range(6):  # a sum that follows from others is right in the round after they are
        rows = [Parts(index, 40, others) for index, others in zip(parts, told[::-1], strict=True)]
        states = [{} for _ in parts]
        for state, part in zip(states, rows, strict=True):
            for g in batches:
                oracle.observe(g[part.index], [g[part.index]], 40, state, rows=part)
        told = [part.sums for part in rows]
    for state, part in zip(states, rows, strict=True):
        assert flat(state).keys() == flat(whole).keys()
        for key, x in flat(whole).items():
            close(flat(state)[key], x, 1e-10)
        close(oracle.direction(g[part.index], 40, state), oracle.direction(g, 40, whole)[part.index], 1e-10)


def test_states():
    """What is kept of a layer, by its names."""
    state = {}
    RMSOracle().observe(batch(), [], 12, state)
    assert flat(state).keys() == {"/square/value", "/square/weight"}
    state = {}
    WhitenedOracle(samples=0).observe(batch(), [], 12, state)
    assert state.keys() == {"preconditioner", "usual", "shrink"}
    assert state["preconditioner"].keys() == {"average", "inverse", "n", "age", "steps", "settings"}
    state = {}
    GradientOracle().observe(batch(), [], 12, state)
    assert state == {}
