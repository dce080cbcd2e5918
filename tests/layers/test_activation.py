"""Activations of one's own are found by the probing pass once they are registered."""

import pytest
import torch
from torch import nn

from locoprop_lightning import UserError
from locoprop_lightning.layers import activation, discover
from locoprop_lightning.local.transfer import Tanh, Transfer


class Cubic(Transfer):
    name = "cubic"

    def f(self, a):
        return a**3

    def F(self, a):  # noqa: N802
        return a**4 / 4


def plain(x, power=3):
    """x to a power."""
    return x * x.abs() ** (power - 1)


cubic = activation(Cubic())(plain)


class Act(nn.Module):
    def forward(self, x):
        return cubic(x, power=3)


class Network(nn.Module):
    def __init__(self, act, more=None):
        super().__init__()
        self.first, self.last, self.act, self.more = nn.Linear(4, 3), nn.Linear(3, 2), act, more

    def forward(self, x):
        x = self.first(x)
        y = self.act(x)
        return self.last(y if self.more is None else self.more(x, y))


def found(network):
    layers = {layer.name: layer for layer in discover(network, torch.randn(5, 4))}
    return layers["first"].transfer.name, layers["first"].reason


def test_a_registered_function_is_found_wherever_it_is_called():
    assert found(Network(plain)) == ("identity", "no single known activation follows (abs, mul)")
    assert found(Network(cubic)) == found(Network(Act())) == ("cubic", "")


def test_a_second_consumer_ends_the_match():
    assert found(Network(cubic, lambda x, y: x + y)) == ("identity", "no single known activation follows (plain, add)")


def test_the_function_does_what_it_did():
    x = torch.randn(5, requires_grad=True)
    assert torch.equal(cubic(x), plain(x)) and torch.equal(cubic(x, power=5), plain(x, 5))
    assert cubic.__name__ == "plain" and cubic.__doc__ == "x to a power."
    (gradient,) = torch.autograd.grad(cubic(x).sum(), x)
    torch.testing.assert_close(gradient, 3 * x.detach() ** 2)


def test_what_is_no_transfer_is_refused():
    with pytest.raises(UserError, match="transfer='tanh'.: must be a transfer"):
        activation("tanh")
    with pytest.raises(UserError, match=r"give an object, Tanh\(...\), not the class"):
        activation(Tanh)
