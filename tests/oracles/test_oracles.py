import io

import numpy as np
import pytest
import torch
from torch import nn

from locoprop_lightning.errors import UserError
from locoprop_lightning.local import LocalProblem, resolve_transfer
from locoprop_lightning.oracles import GradientOracle, RMSOracle, WhitenedOracle
from locoprop_lightning.solvers import ClosedForm, Status
from locoprop_lightning.tasks import Classification

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


def batch(n=12, d_out=4, seed=0, dtype=torch.float64):
    """G [n, d_out] of a batch mean; its units have sizes of their own."""
    generator = torch.Generator().manual_seed(seed)
    g = torch.randn(n, d_out, dtype=torch.float64, generator=generator) / n
    return (g * torch.logspace(-1, 1, d_out, dtype=torch.float64)).to(dtype)


def finite(state):
    return all(x.isfinite().all() for x in state.values() if isinstance(x, torch.Tensor))


def close(a, b, tolerance=1e-11):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


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
    before = {key: x for key, x in state.items() if key in ("square", "mean", "weight")}
    oracle.observe(bad, [], len(bad), state)
    assert finite(state)
    assert all(torch.equal(state[key], x) for key, x in before.items())
    good = batch(seed=4, dtype=dtype)
    oracle.observe(good, [], len(good), state)
    assert oracle.direction(good, len(good), state).isfinite().all()


@every_oracle
def test_state_goes_through_a_file(make):
    oracle, state = make(), {}
    for seed in range(2):
        oracle.observe(batch(seed=seed), [], 12, state)
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    for seed in range(2, 6):
        g = batch(seed=seed)
        oracle.observe(g, [], len(g), state)
        oracle.observe(g, [], len(g), loaded)
        assert torch.equal(oracle.direction(g, len(g), state), oracle.direction(g, len(g), loaded))


def test_gradient_oracle():
    oracle, g = GradientOracle(), batch()
    assert torch.equal(oracle.direction(g, len(g), {}), g)
    assert torch.equal(oracle.weight_direction(g, 3, {}), g)


@pytest.mark.parametrize("beta", [0.0, 0.6, 0.99])
@pytest.mark.parametrize("per", ["unit", "layer"])
def test_rms_formula(beta, per):
    oracle, state, eps = RMSOracle(beta, 0.01, per), {}, 0.01
    total = np.zeros(4)
    for k, n in enumerate((12, 12, 7, 12, 12), start=1):
        g = batch(n, seed=k)
        oracle.observe(g, [], len(g), state)
        sample = n * g.numpy()
        total = beta * total + (1 - beta) * (sample**2).mean(0)
        mean = total / (1 - beta**k)
        layer = np.sqrt(mean.mean())
        root = np.sqrt(mean) if per == "unit" else layer
        np.testing.assert_allclose(
            oracle.direction(g, len(g), state).numpy(), sample / (root + eps * layer), rtol=1e-12
        )


@both_dtypes
@pytest.mark.parametrize("factor", [1e-6, 1e6])
@pytest.mark.parametrize("per", ["unit", "layer"])
def test_rms_knows_no_scale_of_the_loss(dtype, factor, per):
    oracle, plain, scaled = RMSOracle(per=per), {}, {}
    for seed in range(4):
        g = batch(seed=seed, dtype=dtype)
        oracle.observe(g, [], len(g), plain)
        oracle.observe(factor * g, [], len(g), scaled)
        tolerance = 1e-11 if dtype == torch.float64 else 1e-5
        close(oracle.direction(factor * g, len(g), scaled), oracle.direction(g, len(g), plain), tolerance)


def test_rms_of_the_first_batch_is_one():
    oracle, state = RMSOracle(eps=1e-12), {}
    oracle.observe(batch(), [], 12, state)
    close(oracle.direction(batch(), 12, state).square().mean(0), torch.ones(4, dtype=torch.float64), 1e-9)


def test_rms_of_a_dead_unit():
    oracle, state, g = RMSOracle(), {}, batch()
    g[:, 2] = 0
    oracle.observe(g, [], len(g), state)
    d = oracle.direction(g, len(g), state)
    assert d.isfinite().all() and (d[:, 2] == 0).all()


def test_rms_per_layer_keeps_the_proportions():
    oracle, state = RMSOracle(per="layer"), {}
    oracle.observe(batch(), [], 12, state)
    ratio = oracle.direction(batch(), 12, state) / batch()
    close(ratio, ratio[0, 0].expand_as(ratio))


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
        for key in ("square", "mean", "weight"):
            if key in whole:
                close(part[key], whole[key])
        close(oracle.direction(g, len(g), part)[:8], oracle.direction(reference, len(reference), whole)[:8])


@pytest.mark.parametrize("beta", [0.0, 0.7])
@pytest.mark.parametrize("power", [1.0, 0.5])
def test_whitened_formula(beta, power):
    oracle = WhitenedOracle(power=power, beta=beta, damping=0.2, samples=0, refresh_every=1)
    state, total = {}, np.zeros((4, 4))
    for k, n in enumerate((12, 12, 7, 12), start=1):
        g = batch(n, seed=k)
        oracle.observe(g, [], len(g), state)
        sample = n * g.numpy()
        total = beta * total + (1 - beta) * sample.T @ sample / n
        s = total / (1 - beta**k)
        values, vectors = np.linalg.eigh(s + 0.2 * np.trace(s) / 4 * np.eye(4))
        expected = sample @ (vectors * values**-power) @ vectors.T
        np.testing.assert_allclose(oracle.direction(g, len(g), state).numpy(), expected, rtol=1e-9, atol=1e-9)


def test_whitened_takes_sampled_gradients_into_s_alone():
    oracle, state = WhitenedOracle(beta=0.0, damping=0.2, samples=2, refresh_every=1), {}
    g, drawn = batch(), [batch(seed=1), batch(seed=2)]
    oracle.observe(g, drawn, len(g), state)
    s = sum((12 * x).T @ (12 * x) / 12 for x in drawn) / 2
    damped = s + 0.2 * s.trace() / 4 * torch.eye(4, dtype=torch.float64)
    close(oracle.direction(g, len(g), state), 12 * g @ torch.linalg.inv(damped), 1e-9)


def test_whitened_by_the_identity_is_foof(make_problem):
    problem = make_problem()
    g, n = problem.direction / 10, problem.n  # smaller than S says, so that S does not count as stale
    oracle = WhitenedOracle(beta=0.0, damping=1e-12, samples=0, refresh_every=100, warmup=0)
    state = {}
    orthonormal = torch.linalg.qr(torch.randn(n, 3, dtype=torch.float64))[0]
    oracle.observe(orthonormal / n**0.5, [], n, state)  # S = n G^T G = I
    close(state["mean"], torch.eye(3, dtype=torch.float64))
    oracle.observe(g, [], len(g), state)
    whitened = LocalProblem(
        problem.operator.rows,
        problem.pre_activation,
        lambda: oracle.direction(g, len(g), state),
        problem.weight,
        problem.bias,
        problem.transfer,
        10 * problem.lambda_a / n,  # D = nG
        problem.lambda_r,
    )
    close(ClosedForm().solve(whitened).weight, ClosedForm().solve(problem).weight, 1e-9)


def test_whitened_draws_at_refreshes_alone():
    oracle, states, draws = WhitenedOracle(samples=3, refresh_every=4, warmup=2), {"a": {}, "b": {}}, []
    for step in range(10):
        draws.append(oracle.draws(states))
        for state in states.values():
            oracle.observe(batch(seed=step), [batch(seed=100 + step)] * draws[-1], 12, state)
    assert draws == [3, 3, 0, 0, 0, 3, 0, 0, 0, 3]
    assert WhitenedOracle(samples=0).draws({"a": {}}) == 0
    assert RMSOracle().draws({"a": {}}) == GradientOracle().draws({"a": {}}) == 0


def two_layers():
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    with torch.no_grad():
        network[2].weight.mul_(4)
    return network


def exact_fisher(network, x):
    """E over x and labels from the model of g g^T, g of one sample, for both layers: by enumeration."""
    found = [torch.zeros(4, 4, dtype=torch.float64), torch.zeros(3, 3, dtype=torch.float64)]
    for sample in x:
        a = network[0](sample).detach().requires_grad_()
        b = network[2](torch.tanh(a))
        probability = b.detach().softmax(-1)
        for label in range(3):
            gradients = torch.autograd.grad(-b.log_softmax(-1)[label], (a, b), retain_graph=True)
            for total, g in zip(found, gradients, strict=True):
                total += probability[label] * torch.outer(g, g) / len(x)
    return found


def test_exact_fisher_of_the_output_layer():
    """It is the average of diag(p) - p p^T."""
    network, x = two_layers(), torch.randn(6, 3, dtype=torch.float64)
    p = network(x).detach().softmax(-1)
    close(exact_fisher(network, x)[1], torch.stack([q.diag() - torch.outer(q, q) for q in p]).mean(0))


def sampled_factors(network, x, draws, oracle):
    """S of both layers as a training step finds it."""
    task, states = Classification(3), ({}, {})
    generator = torch.Generator().manual_seed(5)
    with taped({"0": network[0], "2": network[2]}) as tape:
        output = network(x)
    labels = [task.sample_labels(output.detach(), generator) for _ in range(draws)]
    sampled = [tape.gradients(task.loss(output, label)) for label in labels]
    task.loss(output, torch.zeros(len(x), dtype=torch.long)).backward()
    for name, state in zip(("0", "2"), states, strict=True):
        oracle.observe(tape.records[name].gradient(), [g[name] for g in sampled], len(output), state)
    return [state["mean"] / state["weight"] for state in states]


@pytest.mark.parametrize("layer", [0, 1])
def test_sampled_factor_converges_to_the_fisher(layer):
    network, x = two_layers(), torch.randn(6, 3, dtype=torch.float64)
    expected = exact_fisher(network, x)[layer]
    errors = []
    for draws, repeats in ((2, 5), (2, 500), (4, 25_000)):  # of each sample: 10, 1,000, 100,000
        found = sampled_factors(network, x.repeat(repeats, 1), draws, WhitenedOracle(beta=0.0, samples=draws))[layer]
        errors.append(((found - expected).norm() / expected.norm()).item())
    assert errors[1] < errors[0] / 3 and errors[2] < errors[1] / 3 and errors[2] < 0.01, errors


def test_true_labels_give_the_empirical_fisher():
    network, x = two_layers(), torch.randn(6, 3, dtype=torch.float64)
    found = sampled_factors(network, x, 0, WhitenedOracle(beta=0.0, samples=0))
    total = [torch.zeros_like(s) for s in found]
    for sample in x:
        a = network[0](sample).detach().requires_grad_()
        b = network[2](torch.tanh(a))
        for s, g in zip(total, torch.autograd.grad(-b.log_softmax(-1)[0], (a, b)), strict=True):
            s += torch.outer(g, g) / len(x)
    for s, expected in zip(found, total, strict=True):
        close(s, expected)


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


def test_arguments():
    for make, message in [
        (lambda: RMSOracle(beta=1.0), r"RMSOracle\(beta=1.0\): must be in \[0, 1\)"),
        (lambda: RMSOracle(eps=0.0), r"RMSOracle\(eps=0.0\): must be above 0"),
        (lambda: RMSOracle(per="row"), r"RMSOracle\(per='row'\): take one of unit, layer"),
        (lambda: WhitenedOracle(beta=-0.1), r"WhitenedOracle\(beta=-0.1\): must be in \[0, 1\)"),
        (lambda: WhitenedOracle(damping=0.0), r"WhitenedOracle\(damping=0.0\): must be above 0"),
        (lambda: WhitenedOracle(samples=-1), r"WhitenedOracle\(samples=-1\): must be at least 0"),
        (lambda: WhitenedOracle(samples=1.5), r"WhitenedOracle\(samples=1.5\): must be a whole number"),
        (lambda: WhitenedOracle(refresh_every=2.5), r"WhitenedOracle\(refresh_every=2.5\): must be a whole number"),
        (lambda: WhitenedOracle(refresh_every=0), r"WhitenedOracle\(refresh_every=0\): must be at least 1"),
        (lambda: WhitenedOracle(warmup=-1), r"WhitenedOracle\(warmup=-1\): must be at least 0"),
    ]:
        with pytest.raises(UserError, match=message):
            make()


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_a_stale_second_moment_is_scaled_back(power):
    oracle, state = WhitenedOracle(power=power, beta=0.0, samples=0, refresh_every=100, warmup=0), {}
    small, large = batch(seed=0), batch(seed=1) * 100
    oracle.observe(small, [], len(small), state)
    usual = oracle.direction(small, len(small), state).norm()
    oracle.observe(large, [], len(large), state)
    assert oracle.direction(large, len(large), state).norm() < 10 * usual  # and not 100 times
    close(
        oracle.weight_direction(large.mT @ large, len(large), state),
        oracle.direction(large, len(large), state).mT @ large,
        1e-9,
    )
    oracle.observe(small, [], len(small), state)
    close(oracle.direction(small, len(small), state).norm(), usual)


def test_an_edited_power_or_damping_holds_on_resume():
    state = {}
    WhitenedOracle(power=1.0, samples=0, refresh_every=100, warmup=0).observe(batch(seed=0), [], 12, state)
    edited = WhitenedOracle(power=0.5, samples=0, refresh_every=100, warmup=0, beta=0.0)
    edited.observe(batch(seed=1), [], 12, state)
    fresh = {}
    edited.observe(batch(seed=1), [], 12, fresh)
    close(edited.direction(batch(seed=1), 12, state), edited.direction(batch(seed=1), 12, fresh))


def test_a_stale_second_moment_is_scaled_back_to_four_times():
    """Of the size 1 that whitened gradients should have, not of the smaller one that damping leaves."""
    oracle, state = WhitenedOracle(power=0.5, beta=0.0, samples=0, refresh_every=100, warmup=0, damping=0.1), {}
    small = batch()
    for gradient in (small, 100 * small):
        oracle.observe(gradient, [], len(gradient), state)
    assert oracle.direction(100 * small, len(small), state).square().mean().sqrt().item() == pytest.approx(4.0)
