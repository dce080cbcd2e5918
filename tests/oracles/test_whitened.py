import numpy as np
import pytest
import torch
from torch import nn

from locoprop_lightning.errors import UserError
from locoprop_lightning.oracles import GradientOracle, RMSOracle, WhitenedOracle
from locoprop_lightning.solvers import ClosedForm
from locoprop_lightning.tasks import Classification
from tests.oracles.support import batch, close, second_moment
from tests.support import replaced, taped


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
    close(second_moment(state), torch.eye(3, dtype=torch.float64))
    oracle.observe(g, [], len(g), state)
    whitened = replaced(
        problem,
        direction=lambda: oracle.direction(g, len(g), state),
        lambda_a=10 * problem.lambda_a / n,  # D = nG
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
        record = tape.records[name]
        oracle.observe(record.gradient(), [record.join(g[name]) for g in sampled], len(output), state)
    return [second_moment(state) for state in states]


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


def test_arguments():
    for make, message in [
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
