"""A fit meets every kind of bad batch, by every solver and oracle that fits; each good batch that follows trains."""

from functools import partial

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn
from torch.utils.data import DataLoader

from locoprop_lightning import LocoPropModule
from locoprop_lightning.tasks import Task
from tests.catalogue import SQUARED_ONLY, solver
from tests.numerics.hard import normal
from tests.numerics.test_precision import ORACLES, PAIRS
from tests.support import finite, quiet_trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers"),
]
BAD = {  # of inputs and targets; what does not change them in place is given back
    "nan": lambda x, y, net: (x * torch.nan, y),
    "one_infinity": lambda x, y, net: (x.index_fill(0, torch.tensor([2]), torch.inf), y),
    "target_nan": lambda x, y, net: (x, y * torch.nan),
    "spike": lambda x, y, net: (1000 * x, y),
    "far_targets": lambda x, y, net: (x, 100 * y),
    "one_sample": lambda x, y, net: (x[:1], y[:1]),
    "equal_rows": lambda x, y, net: (x[:1].expand_as(x), y[:1].expand_as(y)),
    "equal_inputs": lambda x, y, net: (x[:, :1].expand_as(x), y),
    "one_target": lambda x, y, net: (x, torch.ones_like(y)),
    "zeros": lambda x, y, net: (0 * x, y),
    "no_loss": lambda x, y, net: (x, net(x).detach()),
}


class Regression(Task):
    def loss(self, output, target):
        return (output - target).square().mean()


class Batches(Callback):
    """Spoils every third batch, looks at all, and keeps the losses of the good ones."""

    def __init__(self):
        self.losses = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.before = {name: p.detach().clone() for name, p in pl_module.network.named_parameters()}
        self.bad = list(BAD)[batch_idx // 3] if batch_idx % 3 == 2 and batch_idx < 3 * len(BAD) else None
        if self.bad:
            batch[:] = BAD[self.bad](*batch, pl_module.network)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        moved = {name for name, p in pl_module.network.named_parameters() if not torch.equal(p, self.before[name])}
        assert all(p.isfinite().all() for p in pl_module.network.parameters())
        for layer in pl_module.engine.layers.values():
            assert finite(layer.solver_state) and finite(layer.oracle_state)
        if self.bad is None:
            assert "head.weight" in moved, batch_idx
            self.losses.append(outputs["loss"].item())
        elif "nan" in self.bad or self.bad == "one_infinity":
            assert not moved


class Network(nn.Sequential):
    """Layers a million-fold apart, if they are ``apart``."""

    def __init__(self, apart):
        layers = {"first": nn.Linear(6, 8), "norm": nn.LayerNorm(8), "tanh": nn.Tanh(), "middle": nn.Linear(8, 5)}
        super().__init__()
        for name, layer in (layers | {"again": nn.Tanh(), "head": nn.Linear(5, 3)}).items():
            self.add_module(name, layer)
        if apart:
            with torch.no_grad():
                self.first.weight.mul_(1e3)
                self.middle.weight.mul_(1e-3)


def fit(name, oracle, apart=False):
    torch.manual_seed(0)
    make, lambda_a = ORACLES[oracle]
    objective = "squared" if name in SQUARED_ONLY or oracle == "spectral" else "matching"
    length = "activations" if oracle == "spectral" else "targets"
    module = LocoPropModule(
        Network(apart), Regression(), solver(name, 4), lambda_a, 200.0, objective, make(), step_length=length,
        rest_optimizer=partial(torch.optim.AdamW, lr=1e-3),
    )  # fmt: skip
    x, y = normal(48, 16, 6).float(), normal(48, 16, 3, seed=1).float() / 3
    batches = Batches()
    quiet_trainer(max_epochs=1, callbacks=[batches]).fit(
        module, DataLoader([[a, b] for a, b in zip(x, y, strict=True)], batch_size=None)
    )
    return batches.losses


@pytest.mark.parametrize(("name", "oracle"), PAIRS)
def test_training_goes_on(name, oracle):
    losses = fit(name, oracle)
    assert sum(losses[-8:]) < 1.5 * sum(losses[:2]) * 4 and len(losses) == 48 - len(BAD)


@pytest.mark.parametrize(
    ("name", "oracle"), [("fpi", "gradient"), ("majorization", "rms"), ("closed_form", "whitened")]
)
def test_layers_a_million_fold_apart(name, oracle):
    losses = fit(name, oracle, apart=True)
    assert sum(losses[-8:]) < 1.5 * sum(losses[:2]) * 4
