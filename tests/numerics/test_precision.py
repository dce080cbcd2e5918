"""Fifty steps in every precision, by every solver and oracle that fits, against the same steps in float64.

The bounds are those of docs/reliability.md. What is compared is the way that the weights have gone, of all layers, and
the start is one that bfloat16 can hold.
"""

import re
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from locoprop_lightning import LocoPropModule
from locoprop_lightning.oracles import GradientOracle, RMSOracle, SpectralOracle, WhitenedOracle
from locoprop_lightning.tasks import Classification
from tests.catalogue import EVERY, SQUARED_ONLY, solver
from tests.numerics.hard import normal
from tests.support import ROOT, quiet_trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers"),
]
PAGE = (ROOT / "docs" / "reliability.md").read_text()
BOUNDS = {row[0]: float(row[1]) for row in re.findall(r"^\| `([\w-]+)` \|.*\| ([\d.e-]+) \|$", PAGE, re.M)}
STEPS, ROWS = 50, 32
ORACLES = {  # with lambda_a
    "gradient": (GradientOracle, 3.0),
    "rms": (RMSOracle, 0.03),
    "kfac": (partial(WhitenedOracle, damping=1.0, samples=0, refresh_every=3), 0.03),
    "whitened": (partial(WhitenedOracle, power=0.5, samples=0, refresh_every=3), 0.03),
    "spectral": (partial(SpectralOracle, refresh_every=3), 0.03),
}
SOLVERS = (
    "fpi", "anderson", "published", "corrected", "conjugate_gradient", "majorization", "majorization_nesterov",
    "majorization_kept", "inner_sgd", "inner_adam", "inner_rmsprop", "closed_form", "closed_form_kept",
)  # fmt: skip
PAIRS = [(name, "gradient") for name in SOLVERS]
PAIRS += [(name, oracle) for name in ("closed_form", "majorization") for oracle in ORACLES if oracle != "gradient"]
PAIRS += [(name, "whitened") for name in ("fpi", "inner_adam", "closed_form_kept")]


def run(name, oracle, precision):
    """The way of all weights, and their type."""
    torch.manual_seed(1)
    network = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 3))
    network.to(torch.bfloat16).float()
    start = torch.cat([p.detach().double().flatten() for p in network.parameters()])
    make, lambda_a = ORACLES[oracle]
    lambda_a *= 10 if name == "inner_sgd" else 1
    objective = "squared" if name in SQUARED_ONLY or oracle == "spectral" else "matching"
    x = normal(STEPS * ROWS, 6).to(torch.bfloat16).float()
    labels = (x[:, :3] + 0.5 * x[:, 3:]).argmax(1)
    module = LocoPropModule(
        network, Classification(3), solver(name, 4), lambda_a, 200.0, objective, make(),
        rest_optimizer=partial(torch.optim.SGD, lr=0.02),
        step_length="activations" if oracle == "spectral" else "targets",
    )  # fmt: skip
    trainer = quiet_trainer(max_epochs=1, precision=precision)
    trainer.fit(module, DataLoader(list(zip(x, labels, strict=True)), ROWS))
    assert trainer.global_step == STEPS and module.engine.counts == {} and module.rest.skipped == 0
    end = torch.cat([p.detach().double().flatten() for p in network.parameters()])
    return end - start, network[0].weight.dtype


def deviations(name, oracle):
    expected, dtype = run(name, oracle, "64-true")
    assert dtype == torch.float64 and expected.norm() > 0.05
    types = {"32-true": torch.float32, "bf16-mixed": torch.float32, "bf16-true": torch.bfloat16}
    found = {}
    for precision, kind in types.items():
        way, dtype = run(name, oracle, precision)
        assert dtype == kind
        found[precision] = ((way - expected).norm() / expected.norm()).item()
    return found


@pytest.mark.parametrize(("name", "oracle"), PAIRS)
def test_fifty_steps(name, oracle):
    for precision, deviation in deviations(name, oracle).items():
        assert deviation < BOUNDS[precision], precision


def test_every_solver_and_precision_is_there():
    """Variants that differ in a schedule or in when a factor is made stand for each other."""
    kinds = {type(solver(name)) for name in EVERY}
    assert {type(solver(name)) for name in SOLVERS} == kinds
    assert BOUNDS.keys() == {"32-true", "bf16-mixed", "bf16-true"}
    assert BOUNDS["32-true"] < BOUNDS["bf16-mixed"] <= BOUNDS["bf16-true"] < 0.2
