"""Kept factors in training: the protection is needed, and it holds."""

from itertools import pairwise

import pytest
from lightning.pytorch import seed_everything
from torch import nn

from locoprop_lightning import LocoPropModule
from locoprop_lightning.data import Digits
from locoprop_lightning.networks import MLP
from locoprop_lightning.oracles import RMSOracle
from locoprop_lightning.solvers import ClosedForm, Majorization
from locoprop_lightning.tasks import Classification, Reconstruction
from tests.support import script

stale_factors = script("stale_factors")


def autoencoder():
    widths = (64, 100, 50, 10, 50, 100, 64)
    layers = [nn.Linear(a, b) for a, b in pairwise(widths)]
    return nn.Sequential(nn.Flatten(), *[m for layer in layers for m in (layer, nn.Tanh())][:-1])


def residual():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 64), *[stale_factors.Block(64) for _ in range(3)], nn.Linear(64, 10)
    )


NETWORKS = {  # with their tasks, and what the loss falls below in 24 steps
    "mlp": (lambda: MLP(in_features=64, hidden_features=64, hidden_layers=4), Classification, 0.3),
    "autoencoder": (autoencoder, Reconstruction, 30.0),
    "residual": (residual, Classification, 1.0),
}


def train(solver, seed, network="mlp"):
    """Losses of the 24 batches of two epochs."""
    seed_everything(seed)
    make, task, _ = NETWORKS[network]
    module = LocoPropModule(make(), task(), solver, lambda_a=0.1, lambda_r=10, objective="squared", oracle=RMSOracle())
    return stale_factors.fit(module, Digits(batch_size=128), steps=24)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("network", NETWORKS)
def test_stale_factors_do_not_diverge(network, seed):
    """Refreshed every 10 steps from the first step on, where every layer's inputs change fast."""
    solver = ClosedForm(refresh_every=10, warmup=0)
    losses = train(solver, seed, network)
    assert max(losses) == losses[0] and losses[-1] < NETWORKS[network][2]
    assert sum(counts["retried"] for counts in solver.counts.values()) > 5
    assert all(set(counts) == {"retried"} for counts in solver.counts.values())


@pytest.mark.parametrize("network", NETWORKS)
def test_without_protection_they_do(network):
    losses = train(stale_factors.Unprotected(refresh_every=10, warmup=0), 0, network)
    assert not max(losses) < 4 * losses[0]


def test_an_edited_lambda_r_holds_on_resume(make_problem):
    before, after = make_problem(lambda_r=1.0), make_problem(lambda_r=1000.0)
    solver, resumed = (ClosedForm(refresh_every=100, warmup=0) for _ in range(2))
    solver.solve(before)
    resumed.load_state_dict(solver.state_dict())
    expected = ClosedForm().solve(after).weight
    assert (resumed.solve(after).weight - expected).abs().max() < 1e-12


def test_another_width_under_the_same_name_starts_anew(make_problem):
    solver = ClosedForm(refresh_every=100, warmup=0)
    solver.solve(make_problem(d_in=5))
    wider = make_problem(d_in=7, n=20)
    assert (solver.solve(wider).weight - ClosedForm().solve(wider).weight).abs().max() < 1e-12


def test_another_bound_makes_the_factor_anew(make_problem):
    solver = Majorization(2, refresh_every=100, warmup=0)
    solver.solve(make_problem("tanh"))
    other = make_problem("sigmoid")
    assert (solver.solve(other).weight - Majorization(2).solve(other).weight).abs().max() < 1e-12
