"""Samples with weights, and losses that are sums."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader

from locoprop_lightning import BackpropModule, LocoPropModule
from locoprop_lightning.networks import MLP
from locoprop_lightning.oracles import GradientOracle, RMSOracle, SpectralOracle, WhitenedOracle
from locoprop_lightning.solvers import ClosedForm, Majorization
from locoprop_lightning.tasks import Classification, Task
from tests.support import close, quiet_trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
]


class Weighted(Task):
    """Cross-entropy of samples with weights: batches (x, labels, weights)."""

    def target(self, batch):
        return batch[1], batch[2]

    def terms(self, target):
        return int((target[1] > 0).sum())

    def weight(self, target, terms):
        return float(target[1].sum())

    def complete(self, target):
        return bool((target[1] > 0).all())

    def loss(self, output, target):
        labels, weights = target
        return (F.cross_entropy(output, labels, reduction="none") * weights).sum() / weights.sum()

    def sample_labels(self, output, generator):
        return torch.multinomial(output.softmax(-1), 1, generator=generator)[:, 0]

    def hide(self, labels, target):
        return labels, target[1]


class Summed(Classification):
    """The same cross-entropy, as a sum."""

    reduction = "sum"

    def loss(self, output, target):
        return super().loss(output, target) * self.terms(target)


KEPT = partial(ClosedForm, average=0.9, refresh_every=2)
METHODS = {
    "foof": (KEPT, GradientOracle, dict(lambda_a=5.0, objective="squared")),
    "rms": (partial(Majorization, 2), RMSOracle, dict(lambda_a=0.1)),
    "whitened": (KEPT, partial(WhitenedOracle, samples=0), dict(lambda_a=0.1, objective="squared")),
    "spectral": (KEPT, SpectralOracle, dict(lambda_a=0.1, objective="squared")),
    "drawn": (KEPT, partial(WhitenedOracle, damping=1.0, samples=1), dict(lambda_a=0.1, objective="squared")),
}


def samples():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(24, 6, generator=generator, dtype=torch.float64)
    return x, torch.randint(3, (24,), generator=generator)


def fit(task, data, name):
    solver, oracle, settings = METHODS[name]
    torch.manual_seed(1)
    rest = dict(rest_optimizer=lambda p: torch.optim.SGD(p, lr=0.1), lambda_r=0.1, damping="relative", skip=["2"])
    network = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    module = LocoPropModule(network, task, solver(), oracle=oracle(), **rest | settings)
    trainer = quiet_trainer(max_epochs=2, precision="64-true")
    trainer.fit(module, DataLoader(data, batch_size=None), DataLoader(data, batch_size=None))
    return dict(network.named_parameters()), trainer.callback_metrics["val/loss"]


def compare(found, expected):
    close(found[1], expected[1], 1e-6)
    for key, value in expected[0].items():
        close(found[0][key], value, 1e-10)


@pytest.mark.parametrize("name", ["foof", "rms", "whitened", "spectral"])
def test_a_sample_of_weight_zero_is_as_none(name):
    x, y = samples()
    weights = torch.ones(24, dtype=torch.float64)
    weights[::4] = 0
    batches = [slice(start, start + 12) for start in (0, 12)]
    holes = [(x[b], y[b], weights[b]) for b in batches]
    without = [(x[b][weights[b] > 0], y[b][weights[b] > 0]) for b in batches]
    compare(fit(Weighted(), holes, name), fit(Classification(3), without, name))


@pytest.mark.parametrize("name", METHODS)
def test_equal_weights_and_sums_are_as_means(name):
    x, y = samples()
    batches = [slice(start, start + 8) for start in (0, 8, 16)]
    plain = fit(Classification(3), [(x[b], y[b]) for b in batches], name)
    compare(fit(Weighted(), [(x[b], y[b], torch.full((8,), 0.25).double()) for b in batches], name), plain)
    compare(fit(Summed(3), [(x[b], y[b]) for b in batches], name), plain)


def test_back_propagation_of_a_sum():
    x, y = samples()
    found = []
    for task in (Classification(3), Summed(3)):
        torch.manual_seed(1)
        module = BackpropModule(MLP(6, 8, 1, 3).double(), task, lambda p: torch.optim.SGD(p, lr=0.1))
        loss = module.task.mean_loss(module(x), y)
        found.append(torch.autograd.grad(loss, module.network.parameters()))
    for a, b in zip(*found, strict=True):
        close(a, b, 1e-12)


def test_a_batch_without_a_target_is_its_own():
    class Size(Task):
        def loss(self, output, target):
            return output.square().mean()

    x = torch.randn(5, 4)
    for batch in (x, (x,), (x, None)):
        assert Size().inputs(batch) is x and Size().target(batch) is x
    assert Size().target({"x": x}) == {"x": x} and Size().terms({"x": x}) == 5
    with pytest.raises(ValueError, match="override terms"):
        Size().terms(None)
