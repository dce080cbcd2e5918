"""Layers whose units are several layers in one, as a fused query-key-value layer's are."""

import pytest
import torch
from torch import nn

from locoprop_lightning.distributed import Communicator, share_batch
from locoprop_lightning.errors import UserError
from locoprop_lightning.oracles import GradientOracle, Oracle, RMSOracle, SpectralOracle, WhitenedOracle
from locoprop_lightning.oracles.grouped import GroupedOracle
from locoprop_lightning.solvers import AndersonAcceleration, ClosedForm, Majorization, Recording
from tests.catalogue import EVERY, SQUARED_ONLY, solver
from tests.test_engine import engine_of

D = 4  # width of queries, keys and values


class Attention(nn.Module):
    """One head of attention, whose three projections are one layer, or three with the same weights."""

    def __init__(self, fused):
        super().__init__()
        torch.manual_seed(0)
        qkv, self.out = nn.Linear(5, 3 * D).double(), nn.Linear(D, 3).double()
        if fused:
            self.qkv = qkv
        else:
            self.q, self.k, self.v = (nn.Linear(5, D).double() for _ in range(3))
            for i, layer in enumerate((self.q, self.k, self.v)):
                layer.weight.data = qkv.weight.data[i * D : (i + 1) * D].clone()
                layer.bias.data = qkv.bias.data[i * D : (i + 1) * D].clone()

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1) if hasattr(self, "qkv") else (self.q(x), self.k(x), self.v(x))
        return self.out(((q @ k.mT / D**0.5).softmax(-1) @ v).mean(1))

    def projections(self):
        """Weight and bias of the projections [3 D, 6]."""
        layers = [self.qkv] if hasattr(self, "qkv") else [self.q, self.k, self.v]
        return torch.cat([torch.cat([layer.weight, layer.bias[:, None]], 1) for layer in layers]).detach()


def train(fused, solver, oracle, transfer="identity", steps=4, **settings):
    """Weights after some steps, and the engine."""
    network = Attention(fused)
    names = ["qkv"] if fused else ["q", "k", "v"]
    if transfer != "identity":
        settings |= dict(objective="matching", transfers=dict.fromkeys(names, transfer))
    x = torch.randn(6, 3, 5, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    engine = engine_of(network, solver, x, oracle, **settings)
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(6, 3, 5, generator=generator, dtype=torch.float64)
        target = torch.randn(6, 3, generator=generator, dtype=torch.float64)
        optimizer.zero_grad()
        with engine.tape(network, Communicator()) as tape:
            output = network(x)
        draw = torch.randn(6, 3, generator=generator, dtype=torch.float64)
        sampled = [tape.gradients((output * draw).sum() / 6)]
        loss = (output - target).square().sum().div(12)
        loss.backward()
        batch = share_batch(Communicator(), x, output, 6, Recording.NOTHING)
        engine.write(engine.solve(engine.problems(tape, sampled, batch), batch))
        optimizer.step()
    return network, engine


def differ(one, other):
    """How far the weights of two networks are from each other."""
    return max((one.projections() - other.projections()).abs().max(), (one.out.weight - other.out.weight).abs().max())


@pytest.mark.parametrize("damping", ["absolute", "relative"])
@pytest.mark.parametrize(
    ("name", "transfer"),
    [(name, f) for name in EVERY for f in ("identity", "tanh") if f == "identity" or name not in SQUARED_ONLY],
)
def test_a_fused_layer_trains_as_three(name, transfer, damping):
    lambda_r = 60.0 if damping == "absolute" else 5.0
    settings = dict(lambda_a=3.0, lambda_r=lambda_r, damping=damping)
    start = Attention(True).projections()
    (fused, engine), (three, other) = (
        train(fused, solver(name, 5), GradientOracle(), transfer, **settings) for fused in (True, False)
    )
    assert not engine.counts and not other.counts  # what fails is refused by layer
    assert differ(fused, three) < 1e-10
    assert (fused.projections() - start).abs().max() > 1e-5


ORACLES = {
    "whitened": (WhitenedOracle(damping=0.1, refresh_every=2, warmup=1), ClosedForm, 0.05),
    "root": (WhitenedOracle(power=0.5, samples=0, damping=0.1), Majorization, 0.05),
    "layer": (RMSOracle(per="layer"), AndersonAcceleration, 0.1),
    "spectral": (SpectralOracle(damping=0.1, refresh_every=2, warmup=1), ClosedForm, 0.05),
    "momentum": (SpectralOracle(momentum=0.5), ClosedForm, 0.05),
}


@pytest.mark.parametrize("name", ORACLES)
def test_oracles_that_couple_units_take_groups_for_layers(name):
    oracle, solver, lambda_a = ORACLES[name]
    settings = dict(lambda_a=lambda_a, lambda_r=20.0)
    three, other = train(False, solver(), oracle, **settings)
    grouped, engine = train(True, solver(), oracle, overrides={"qk*": {"unit_groups": 3}}, **settings)
    assert not engine.counts and not other.counts
    assert differ(grouped, three) < 1e-10
    whole, _ = train(True, solver(), oracle, **settings)
    assert differ(whole, three) > 1e-6, "the units of a fused layer are not coupled"


def test_what_groups_keep():
    """States by group; an oracle of a user's own that takes no rows, and none that makes a direction of weights."""

    class Sign(Oracle):
        def observe(self, gradient, sampled, terms, state):
            state["seen"] = state.get("seen", 0) + len(sampled)

        def direction(self, gradient, terms, state):
            return gradient.sign()

    _, engine = train(True, ClosedForm(), Sign(), overrides={"qkv": {"unit_groups": 2}})
    assert engine.layers["qkv"].oracle_state == {f"{i} of 2": {"seen": 4} for i in range(2)}
    assert engine.layers["out"].oracle_state == {"seen": 4}
    grouped = GroupedOracle(WhitenedOracle(samples=3), 2)
    assert grouped.draws({"a": {}}) == 3 and repr(grouped).startswith("GroupedOracle(WhitenedOracle(")


def test_what_groups_refuse():
    for groups, message in [
        (5, "unit_groups=5: layer 'qkv' has 12 units"),
        (1.5, "unit_groups=1.5: must be a whole number"),
        (0, "unit_groups=0: must be above 0"),
    ]:
        with pytest.raises(UserError, match=message):
            train(True, ClosedForm(), GradientOracle(), overrides={"qkv": {"unit_groups": groups}})
    network = nn.Sequential(nn.Conv2d(2, 4, 1, groups=2), nn.Flatten()).double()
    x = torch.randn(3, 2, 2, 2, dtype=torch.float64)
    engine = engine_of(network, ClosedForm(), x, overrides={"0": {"unit_groups": 2}})
    with engine.tape(network, Communicator()) as tape:
        output = network(x)
    output.square().sum().backward()
    batch = share_batch(Communicator(), x, output, 3, Recording.NOTHING)
    with pytest.raises(UserError, match="layer '0' is a convolution with groups of its own"):
        engine.problems(tape, [], batch)
