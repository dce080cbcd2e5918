"""Steps by which the loss, were it linear, may fall by no more than a multiple of itself."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from locoprop_lightning import LocalBackward
from locoprop_lightning.oracles import GradientOracle, RMSOracle, SpectralOracle, WhitenedOracle
from locoprop_lightning.solvers import AndersonAcceleration, ClosedForm, Majorization
from tests.support import close

SQUARED = dict(objective="squared", damping="relative", lambda_a=0.5, lambda_r=0.1)
METHODS = {
    "foof": (lambda: ClosedForm(), lambda: None, SQUARED | dict(lambda_a=30.0)),
    "whitened": (lambda: ClosedForm(0.9, 2), lambda: WhitenedOracle(0.5, samples=0), SQUARED),
    "spectral": (lambda: ClosedForm(0.9, 2), lambda: SpectralOracle(0.5), SQUARED | dict(step_length="activations")),
    "majorization": (lambda: Majorization(2), lambda: RMSOracle(), dict(lambda_a=0.5, lambda_r=1.0)),
    "anderson": (lambda: AndersonAcceleration(3), lambda: None, dict(lambda_a=20.0, lambda_r=50.0)),
}


class Net(nn.Module):
    """Patches of an image, an embedding of their own that is no layer, and a head."""

    def __init__(self):
        super().__init__()
        self.enter, self.head = nn.Conv1d(2, 6, 3, padding=1), nn.Linear(6, 3)
        self.scale = nn.Parameter(torch.ones(6))

    def forward(self, x):
        return self.head(self.enter(x).tanh().mean(-1) * self.scale)


def batch(seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(20, 2, 5, generator=generator, dtype=torch.float64)
    return x.to(dtype), torch.randint(3, (20,), generator=generator)


def stepped(method, bound, loss_of=F.cross_entropy, steps=1, dtype=torch.float64):
    """Loss, true gradients of the local layers, and W0 - W+ of the last of some steps."""
    torch.manual_seed(0)
    network = Net().to(dtype)
    solver, oracle, settings = METHODS[method]
    x, _ = batch(dtype=dtype)
    backward = LocalBackward(network, x, solver(), oracle=oracle(), max_decrease=bound, **settings)
    parameters = backward.local_parameters()
    optimizer = torch.optim.SGD(parameters, lr=1.0)
    for step in range(steps):
        x, y = batch(step, dtype)
        true = torch.autograd.grad(loss_of(network(x), y), parameters)
        loss = backward(x, lambda output, y=y: loss_of(output, y))
        moves = [p.grad.clone() for p in parameters]
        optimizer.step()
    return loss, true, moves


def fall(true, moves):
    return sum((g * move).sum() for g, move in zip(true, moves, strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_the_steps_of_all_layers_are_shortened_alike_until_the_bound_is_met(method):
    loss, true, free = stepped(method, None)
    ratio = (fall(true, free) / loss).item()
    assert ratio > 0
    for bound in (ratio / 7, ratio * 0.999, ratio * 1.001, ratio * 7):
        again, _, moves = stepped(method, bound)
        part = min(1.0, bound / ratio)
        assert again == loss
        close(moves, [part * move for move in free], 1e-12)
        close(fall(true, moves) / loss, torch.tensor(ratio * part, dtype=torch.float64), 1e-12)


def test_a_step_to_the_minimum_of_a_quadratic_falls_by_twice_the_loss():
    """The exact solution of a linear layer that can fit its labels, with which the bound is exactly met at 2."""
    torch.manual_seed(0)
    x = torch.randn(12, 4, dtype=torch.float64)
    target = F.linear(x, torch.randn(3, 4, dtype=torch.float64), torch.randn(3, dtype=torch.float64))
    left = {}
    for bound in (None, 2.0000001, 1.0):
        torch.manual_seed(1)
        network = nn.Sequential(nn.Linear(4, 3)).double()
        # G = (A - target) / 12, so that lambda_a = 12 makes the labels the targets
        made = LocalBackward(network, x, ClosedForm(), 12.0, 1e-12, objective="squared", max_decrease=bound)
        loss = made(x, lambda output: (output - target).square().sum() / 24)
        torch.optim.SGD(network.parameters(), lr=1.0).step()
        left[bound] = ((network(x) - target).square().sum() / 24 / loss).item()
    assert left[None] < 1e-12 and left[2.0000001] < 1e-12
    assert left[1.0] == pytest.approx(0.25)  # half the step leaves a quarter of a quadratic


def test_losses_that_are_below_zero_or_not_finite_bound_nothing_and_one_of_zero_moves_nothing():
    _, _, free = stepped("spectral", None)
    _, _, moves = stepped("spectral", 1e-3, lambda output, y: F.cross_entropy(output, y) - 100)
    close(moves, free, 1e-12)  # spectral steps do not see a constant
    _, _, moves = stepped("spectral", 1e-3, lambda output, y: F.cross_entropy(output, y) + torch.inf)
    close(moves, free, 1e-12)


def test_a_loss_of_zero_moves_nothing():
    def zero(output, y):
        loss = F.cross_entropy(output, y)
        return (loss - loss.detach()).reshape(1, 1, 1)  # with a gradient, and in a shape that is no scalar's

    assert all(move.any() for move in stepped("foof", None, zero)[2])
    assert all(not move.any() for move in stepped("foof", 1.0, zero)[2])


def test_steps_against_the_gradient_are_not_cut(monkeypatch):
    """As momentum may ask for, where a batch disagrees with those before."""

    class Uphill(GradientOracle):
        def direction(self, gradient, terms, state):
            return -gradient

        def weight_direction(self, weight_gradient, terms, state):
            return -weight_gradient

    monkeypatch.setitem(METHODS, "uphill", (lambda: ClosedForm(), lambda: Uphill(), METHODS["foof"][2]))
    _, true, free = stepped("uphill", None)
    _, _, moves = stepped("uphill", 1e-3)
    assert fall(true, free) < 0
    close(moves, free, 1e-12)


def test_layers_that_are_refused_take_no_part(monkeypatch):
    """One layer's solution is NaN: it stays, and the other is shortened by its own fall."""
    run, spoilt = ClosedForm.run, []

    def broken(self, problem, *rest):
        outcome = run(self, problem, *rest)
        return outcome._replace(displacement=outcome.displacement * torch.nan) if problem.name in spoilt else outcome

    monkeypatch.setattr(ClosedForm, "run", broken)
    torch.manual_seed(0)
    network, (x, y) = Net().double(), batch()
    backward = LocalBackward(network, x, ClosedForm(), 30.0, 0.1, objective="squared", max_decrease=1e-3)
    true = torch.autograd.grad(F.cross_entropy(network(x), y), list(network.head.parameters()))
    spoilt.append("enter")
    loss = backward(x, lambda output: F.cross_entropy(output, y))
    assert network.enter.weight.grad is None
    moves = [p.grad for p in network.head.parameters()]
    close(fall(true, moves) / loss, torch.tensor(1e-3, dtype=torch.float64), 1e-12)


def test_float32_is_as_float64_over_several_steps():
    exact = stepped("spectral", 0.1, steps=5)
    single = stepped("spectral", 0.1, steps=5, dtype=torch.float32)
    close([x.double() for x in single[2]], exact[2], 1e-3)
