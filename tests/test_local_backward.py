"""A local backward pass in a loop of one's own is the step of the module."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from locoprop_lightning import LocalBackward, LocoPropModule, UserError
from locoprop_lightning.data import Digits
from locoprop_lightning.oracles import RMSOracle, WhitenedOracle
from locoprop_lightning.solvers import AndersonAcceleration, ClosedForm, FixedPointIteration, Recording
from locoprop_lightning.tasks import Classification
from tests.support import quiet_trainer, same, through_a_file

KEPT = {"average": 0.9, "refresh_every": 3, "warmup": 2}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.LayerNorm(16), nn.Linear(16, 10))


METHODS = {
    "foof": lambda: (ClosedForm(**KEPT), RMSOracle(), {"lambda_a": 0.1, "lambda_r": 1.0, "objective": "squared"}),
    "m": lambda: (AndersonAcceleration(3, memory=2), None, {"lambda_a": 30.0, "lambda_r": 1000.0, "skip": ["4"]}),
    "bounded": lambda: (
        ClosedForm(),
        WhitenedOracle(samples=0),
        {"lambda_a": 0.1, "lambda_r": 0.1, "objective": "squared", "damping": "relative", "max_displacement": 0.01},
    ),
}


def batches(epochs=1):
    data = Digits(batch_size=100, seed=0)
    data.setup("fit")
    loader = data.train_dataloader()
    for epoch in range(epochs):
        loader.sampler.set_epoch(epoch)
        yield from loader


class Loop:
    """A loop of one's own."""

    def __init__(self, name):
        solver, oracle, settings = METHODS[name]()
        self.network = network()
        self.backward = LocalBackward(self.network, torch.zeros(2, 1, 8, 8), solver, oracle=oracle, **settings)
        self.outer = torch.optim.SGD(self.backward.local_parameters(), lr=1.0)
        self.other = torch.optim.AdamW(self.backward.other_parameters())

    def step(self, batch, **arguments):
        loss = self.backward(batch[0], lambda output: cross_entropy(output, batch[1]), **arguments)
        self.outer.step()
        self.other.step()
        return loss

    def state(self):
        return dict(self.network.state_dict()) | self.backward.state_dict()["local_layers"]["layers"]


@pytest.mark.parametrize("name", METHODS)
def test_its_steps_are_those_of_the_module(name):
    solver, oracle, settings = METHODS[name]()
    module = LocoPropModule(network(), Classification(), solver, oracle=oracle, **settings)
    quiet_trainer(max_epochs=1).fit(module, Digits(batch_size=100, seed=0))
    loop = Loop(name)
    for batch in batches():
        loop.step(batch)
    theirs = dict(module.network.state_dict())
    checkpoint = {}
    module.engine.save(checkpoint)
    assert same(loop.state(), theirs | checkpoint["local_layers"]["layers"])
    assert [x.local for x in loop.backward.layers] == [x.local for x in module.layers]


def test_a_loop_goes_on_from_its_state():
    whole, first, second = Loop("foof"), Loop("foof"), Loop("foof")
    taken = list(batches())
    for i, batch in enumerate(taken):
        whole.step(batch)
        (first if i < 7 else second).step(batch)
        if i == 6:
            second.network.load_state_dict(first.network.state_dict())
            second.backward.load_state_dict(through_a_file(first.backward.state_dict()))
            second.other.load_state_dict(first.other.state_dict())
    assert same(whole.state(), second.state())


def test_solutions_are_there_where_they_were_asked_for():
    loop, batch = Loop("m"), next(batches())
    loop.step(batch)
    assert loop.backward.solutions == {}
    loop.step(batch, recording=Recording.CURVE)
    assert list(loop.backward.solutions) == ["1"] and loop.backward.solutions["1"].losses.shape == (4,)


def test_a_refused_solution_leaves_its_layer_alone():
    loop = Loop("foof")
    x, labels = next(batches())
    before = loop.network[1].weight.clone()
    loop.step((x * torch.nan, labels))
    assert torch.equal(loop.network[1].weight, before) and loop.network[1].weight.grad is None


def test_terms_are_what_the_mean_is_over():
    """S is of gradients of single terms: with twice the terms of the same mean it is 4 times, and D half as long."""
    x, labels = next(batches())
    moved = []
    for terms in (None, 100, 200):
        torch.manual_seed(0)
        backward = LocalBackward(
            network(), x, ClosedForm(), 0.1, 1.0, WhitenedOracle(samples=0, damping=1e6), objective="squared"
        )
        backward(x, lambda output: cross_entropy(output, labels), terms=terms)
        moved.append(backward.network[4].weight.grad)
    assert torch.equal(moved[0], moved[1])
    torch.testing.assert_close(moved[1], 2 * moved[2], rtol=1e-3, atol=0)


def test_what_is_scheduled_holds():
    x, labels = next(batches())

    def step(factor, **settings):
        backward = LocalBackward(network(), x, FixedPointIteration(2), **settings)
        backward.schedule(lambda_a=factor, lambda_r=factor, iterations=3)
        backward(x, lambda output: cross_entropy(output, labels))
        return backward.network[1].weight.grad

    assert torch.equal(step(0.5, lambda_a=60.0, lambda_r=10000.0), step(1.0, lambda_a=30.0, lambda_r=5000.0))


class Moody(nn.Linear):
    """Is its matrix times its input in evaluation alone."""

    def forward(self, x):
        return super().forward(x) * (3 if self.training else 1)


def test_it_shows_its_method():
    shown = repr(Loop("m").backward)
    assert shown.startswith(
        "LocalBackward(Sequential of 1,242 parameters, AndersonAcceleration(iterations=3, memory=2)"
    )
    assert shown.endswith("GradientOracle(), lambda_a=30.0, lambda_r=1000.0, skip=['4'])")
    rows = [row[4] for row in Loop("m").backward.layers.rows()]
    assert rows == ["AndersonAcceleration(iterations=3, memory=2)", "its gradient", "its gradient"]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda x: LocalBackward(network(), x, FixedPointIteration(2), 1.0, 1.0, odd=3),
            "there is no setting 'odd'; take",
        ),
        (lambda x: LocalBackward(network(), x, ClosedForm(), 1.0, 1.0), "ClosedForm solves the squared loss only"),
        (
            lambda x: LocalBackward(network(), x, FixedPointIteration(2), 1.0, 1.0, WhitenedOracle(samples=1)),
            r"oracle=WhitenedOracle\(\): draws labels, which only a task can; set its samples=0",
        ),
        (
            lambda x: LocalBackward(network(), x, FixedPointIteration(2), 1.0, 1.0)(x, lambda out: out.sum(1)),
            r"loss_of returned a tensor \[4\]; return a tensor of one number, such as a mean",
        ),
        (
            lambda x: LocalBackward(network(), x, FixedPointIteration(2), 1.0, 1.0)(x, lambda out: out.mean().item()),
            "loss_of returned a float; return a tensor of one number",
        ),
        (
            lambda x: LocalBackward(network(), x, FixedPointIteration(2), 1.0, 1.0)(x, lambda out: out.mean().detach()),
            "loss_of returned a tensor without a gradient; make it of the output",
        ),
        (
            lambda x: LocalBackward(network(), x, FixedPointIteration(2), 1.0, 1.0)(x, torch.ones(())),
            "loss_of is a Tensor: give a function of the network's output that makes the loss, such as lambda output",
        ),
        (
            lambda x: LocalBackward(network(), x, FixedPointIteration(2), 1.0, 1.0)(x, lambda out: out.mean(), terms=0),
            r"LocalBackward\(terms=0\): must be at least 1",
        ),
        (
            lambda x: LocalBackward(
                nn.Sequential(nn.Flatten(), Moody(64, 3), nn.Linear(3, 2)), x, FixedPointIteration(2), 1.0, 1.0
            )(x, lambda out: out.mean()),
            "layer '1' cannot be local: its output is not its matrix times its input; name it in skip",
        ),
    ],
)
def test_what_is_refused(call, said):
    with pytest.raises(UserError, match=said):
        call(torch.rand(4, 1, 8, 8))


def test_a_layer_that_was_replaced_is_told():
    """Its new module would have its true gradient, and be in no optimizer."""
    x, of = torch.rand(4, 1, 8, 8), network()
    backward = LocalBackward(of, x, FixedPointIteration(2), 1.0, 1.0)
    name, last = list(of.named_modules())[-1]
    setattr(of.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], nn.Linear(last.in_features, 2))
    for call in (backward.local_parameters, backward.other_parameters, lambda: backward(x, lambda out: out.mean())):
        with pytest.raises(
            UserError, match=f"layer '{name}' was replaced; make LocalBackward and its optimizers after"
        ):
            call()
