"""One batch scaled by 1,000 delays training by a few steps, whenever it comes; ordinary batches notice nothing."""

import pytest
import torch
from lightning.pytorch import Callback, seed_everything

from locoprop_lightning import LocoPropModule
from locoprop_lightning.data import Digits
from locoprop_lightning.local import preconditioner
from locoprop_lightning.local.preconditioner import Preconditioner, average_of
from locoprop_lightning.networks import MLP
from locoprop_lightning.oracles import WhitenedOracle
from locoprop_lightning.solvers import ClosedForm, Majorization
from locoprop_lightning.tasks import Classification
from tests.numerics.hard import normal
from tests.oracles.support import batch
from tests.support import close, quiet_trainer

KEPT = dict(average=0.95, refresh_every=10, warmup=10)
METHODS = {
    "foof": lambda: dict(solver=ClosedForm(**KEPT), lambda_a=30.0, lambda_r=10.0, objective="squared"),
    "majorization": lambda: dict(solver=Majorization(2, **KEPT), lambda_a=30.0, lambda_r=10.0),
    "kfac": lambda: dict(
        solver=ClosedForm(**KEPT), oracle=WhitenedOracle(damping=1.0), lambda_a=0.03, lambda_r=30.0, objective="squared"
    ),
}
STEPS = 60


class Spike(Callback):
    def __init__(self, when):
        self.when = when
        self.losses = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.when:
            batch[0].mul_(1000)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(outputs["loss"].item())


def last_losses(method, when):
    """Mean of the last ten losses, of the same batches whether there was a spike or not."""
    seed_everything(0, verbose=False)
    module, spike = LocoPropModule(MLP(64, 32, 2), Classification(), **METHODS[method]()), Spike(when)
    trainer = quiet_trainer(max_steps=STEPS, max_epochs=-1, callbacks=[spike], limit_val_batches=0)
    trainer.fit(module, Digits(batch_size=128))
    assert all(p.isfinite().all() for p in module.network.parameters())
    return sum(spike.losses[-10:]) / 10


@pytest.fixture(scope="module")
def plain():
    return {method: last_losses(method, None) for method in METHODS}


@pytest.mark.parametrize("when", [0, 5, 19, 24])
@pytest.mark.parametrize("method", METHODS)
def test_training_goes_on(plain, method, when):
    """In the first batch, in the warmup, at a refresh, and between two."""
    assert last_losses(method, when) < 1.5 * plain[method] + 0.02


def test_without_the_limit_it_does_not(plain, monkeypatch):
    monkeypatch.setattr(preconditioner, "_LIMIT", torch.inf)
    assert last_losses("foof", 5) > 2 * plain["foof"]


def moment(seed=0, groups=()):
    y = normal(*groups, 9, 4, seed=seed)
    return y.mT @ y / 9


def gathered(moments, average=0.9, **options):
    kept, state = Preconditioner(average, 1, 0, "Test", **options), {}
    for m in moments:
        kept.gather(state, m)
    return average_of(state["average"])


def test_ordinary_moments_are_averaged_to_the_last_bit(monkeypatch):
    moments = [moment(seed) * 25.0 ** (seed % 2) for seed in range(6)]
    found = gathered(moments)
    monkeypatch.setattr(preconditioner, "_LIMIT", torch.inf)
    assert torch.equal(found, gathered(moments))


@pytest.mark.parametrize("groups", [(), (3,)], ids=["one", "groups"])
def test_one_moment_is_scaled_back_and_a_second_one_is_not(groups):
    few = [moment(seed, groups) for seed in range(3)]
    spike = 1e6 * moment(3, groups)
    usual = gathered(few).diagonal(dim1=-2, dim2=-1).sum(-1)
    size = spike.diagonal(dim1=-2, dim2=-1).sum(-1)
    close(gathered([*few, spike]), gathered([*few, spike * (30 * usual / size)[..., None, None]]), 1e-10)
    twice = gathered([*few, spike, spike])
    assert (twice.diagonal(dim1=-2, dim2=-1).sum(-1) > 1e4 * usual).all()


def test_a_group_of_units_is_judged_alone():
    few = [moment(seed, (2,)) for seed in range(3)]
    spike = moment(3, (2,)) * torch.tensor([1.0, 1e6], dtype=torch.float64)[:, None, None]
    found, ordinary = gathered([*few, spike]), gathered([*few, moment(3, (2,))])
    assert torch.equal(found[0], ordinary[0]) and not torch.equal(found[1], ordinary[1])


def test_a_first_moment_far_above_the_second_is_left_out():
    rest = [moment(seed) for seed in range(3)]
    close(gathered([1e6 * moment(9), *rest]), gathered(rest), 1e-12)
    assert gathered([20 * moment(9), *rest]).trace() > 2 * gathered(rest).trace()
    zeros = torch.zeros(4, 4, dtype=torch.float64)
    assert gathered([moment(9), zeros]).any()  # a batch of zeros says nothing of the first


def test_what_is_not_averaged_is_the_latest_moment():
    for m in (moment(), 1e6 * moment(1), 1e-6 * moment(2)):
        assert torch.equal(gathered([moment(), m], average=0.0), m)


def test_a_spike_at_a_refresh_does_not_set_the_usual_size_of_whitened_gradients():
    """So that D is scaled back at the spike, as between refreshes, and after it is what it was."""
    oracle, state = WhitenedOracle(power=0.5, beta=0.95, samples=0, refresh_every=1, damping=0.1), {}
    for seed in range(4):
        oracle.observe(batch(seed=seed), [], 12, state)
    usual, spike = state["usual"].clone(), 1000 * batch(seed=4)
    oracle.observe(spike, [], 12, state)
    assert torch.equal(state["usual"], usual)
    assert oracle.direction(spike, 12, state).square().mean().sqrt() < 4.1 * usual.sqrt()
    oracle.observe(batch(seed=5), [], 12, state)
    assert oracle.direction(batch(seed=5), 12, state).square().mean().sqrt() > 0.2
