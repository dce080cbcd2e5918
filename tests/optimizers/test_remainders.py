import copy
from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.optim import SGD, Adam, AdamW, RMSprop

from locoprop_lightning import BackpropModule, LocoPropModule
from locoprop_lightning.data import Digits
from locoprop_lightning.optimizers import FullPrecisionMuon, Rule, RuledOptimizer, SplitOptimizer, owned_parameters
from locoprop_lightning.optimizers.remainders import keep_remainders
from locoprop_lightning.oracles import RMSOracle
from locoprop_lightning.solvers import ClosedForm
from locoprop_lightning.tasks import Classification
from tests.support import flat, quiet_trainer, same

OPTIMIZERS = {
    "sgd": partial(SGD, lr=1e-4),
    "momentum": partial(SGD, lr=1e-5, momentum=0.9, weight_decay=0.1),
    "adam": partial(Adam, lr=1e-4),
    "adamw": partial(AdamW, lr=1e-4),
    "rmsprop": partial(RMSprop, lr=1e-4),
    "split": lambda p: SplitOptimizer(p, partial(FullPrecisionMuon, lr=1e-4), partial(AdamW, lr=1e-4)),
    "ruled": lambda p: RuledOptimizer(p, partial(SGD, lr=1e-4), [Rule(kinds=["bias"], lr=2e-5)]),
}
every_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)


def layer(dtype=torch.bfloat16):
    torch.manual_seed(0)
    return nn.Linear(5, 4).to(dtype)


def gradients(step):
    generator = torch.Generator().manual_seed(step % 7)
    return [torch.randn(4, 5, generator=generator) + 1, torch.randn(4, generator=generator) + 1]


def walk(module, optimizer, steps, start=0):
    for step in range(start, start + steps):
        for p, g in zip(module.parameters(), gradients(step), strict=True):
            p.grad = g.to(torch.bfloat16).to(p.dtype)
        optimizer.step()


def moved(make, kept, steps=60):
    """How far off float32 the way in bfloat16 is, relative to its length."""
    narrow, wide = layer(), layer().float()
    optimizers = [make(owned_parameters(narrow)), make(owned_parameters(wide))]
    start = torch.cat([p.detach().flatten() for p in wide.parameters()])
    if kept:
        keep_remainders(optimizers[0])
    walk(narrow, optimizers[0], steps)
    walk(wide, optimizers[1], steps)
    a, b = (torch.cat([p.detach().float().flatten() for p in m.parameters()]) for m in (narrow, wide))
    assert all(p.dtype == p.grad.dtype == torch.bfloat16 for p in narrow.parameters())
    return ((a - b).norm() / (b - start).norm()).item()


@every_optimizer
def test_small_updates_add_up(make):
    assert moved(make, kept=True) < 0.2 < moved(make, kept=False)


@every_optimizer
def test_a_saved_optimizer_goes_on_as_it_would_have(make):
    module = layer()
    optimizer = make(owned_parameters(module))
    keep_remainders(optimizer)
    walk(module, optimizer, 5)
    saved, weights = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(module.state_dict())
    walk(module, optimizer, 5, start=5)
    other = layer()
    other.load_state_dict(weights)
    resumed = make(owned_parameters(other))
    keep_remainders(resumed)
    resumed.load_state_dict(saved)
    assert all(p.dtype == torch.bfloat16 for p in other.parameters())
    walk(other, resumed, 5, start=5)
    assert same(dict(module.state_dict()), dict(other.state_dict()))


def test_memory_gradients_and_wide_parameters_stay_what_they_were():
    module = nn.Sequential(layer(), layer(torch.float32))
    frozen = layer()
    places = [p.data_ptr() for p in module.parameters()]
    optimizer = SGD([*module.parameters(), *frozen.parameters()], lr=1e-3)
    keep_remainders(optimizer)
    wide = copy.deepcopy(module[1])
    for part in module:
        for p, g in zip(part.parameters(), gradients(0), strict=True):
            p.grad = g.to(p.dtype)
    kept = [p.grad for p in module.parameters()]
    optimizer.step()
    assert [p.data_ptr() for p in module.parameters()] == places
    assert all(p.grad is g for p, g in zip(module.parameters(), kept, strict=True))
    for p, g, before in zip(module[1].parameters(), gradients(0), wide.parameters(), strict=True):
        assert torch.equal(p, before - 1e-3 * g)
    assert not any(p in optimizer.state for p in frozen.parameters())
    assert {p for p in optimizer.state if optimizer.state[p]} == set(module[0].parameters())


def test_without_parameters_of_16_bits_nothing_is_registered():
    optimizer = SGD(layer(torch.float32).parameters(), lr=1.0)
    keep_remainders(optimizer)
    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_load_state_dict_pre_hooks


def network():
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.LayerNorm(16), nn.Tanh(), nn.Linear(16, 10))


def module(rate=0.01):
    options = dict(optimizer=lambda p: SGD(p, lr=rate), rest_optimizer=lambda p: AdamW(p, lr=1e-4))
    solver = ClosedForm(average=0.9, refresh_every=2)
    return LocoPropModule(network(), Classification(), solver, 0.1, 10.0, "squared", RMSOracle(), **options)


def fit(model, folder, epochs, precision="bf16-true", **arguments):
    checkpoint = ModelCheckpoint(folder, save_last=True)
    trainer = quiet_trainer(
        max_epochs=epochs, precision=precision, callbacks=[checkpoint], enable_checkpointing=True, limit_val_batches=0
    )
    trainer.fit(model, Digits(batch_size=100, seed=0), **arguments)
    return checkpoint.last_model_path


@pytest.mark.parametrize(("precision", "said"), [("bf16-true", 1), ("bf16-mixed", 0), ("32-true", 0)])
def test_back_propagation_says_what_it_loses(tmp_path, caplog, precision, said):
    fit(BackpropModule(network(), Classification(), lambda p: SGD(p, lr=0.01)), tmp_path, 1, precision)
    text = "Weights in bfloat16 drop small updates in back-propagation; bf16-mixed keeps them."
    assert [record.getMessage() for record in caplog.records].count(text) == said


@pytest.mark.filterwarnings("ignore:The dirpath has changed from")
def test_a_fit_in_bfloat16_keeps_small_updates_and_resumes_exactly(tmp_path):
    """Of the displacements and of the rest: a scale of 1 has no neighbour within 0.004."""
    whole, wide, first, resumed = module(), module(), module(), module()
    fit(whole, tmp_path / "whole", 2)
    fit(wide, tmp_path / "wide", 2, precision="32-true")
    start = network().state_dict()
    for name, p in whole.network.state_dict().items():
        way = wide.network.state_dict()[name] - start[name]
        assert p.dtype == torch.bfloat16
        assert (p.float() - wide.network.state_dict()[name]).norm() < 0.5 * way.norm() + 0.004 * start[name].norm(), (
            name
        )
    path = fit(first, tmp_path / "first", 1)
    saved = torch.load(path, weights_only=True)["optimizer_states"]
    assert all("remainder" in state for state in saved[0]["state"].values()) and saved[1]["state"]
    fit(resumed, tmp_path / "second", 2, ckpt_path=path, weights_only=True)
    assert same(flat(whole.network.state_dict()), flat(resumed.network.state_dict()))
