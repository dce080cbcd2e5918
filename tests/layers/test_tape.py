import gc
import weakref

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from locoprop_lightning.errors import UserError
from locoprop_lightning.layers import Tape, kind_of
from locoprop_lightning.layers.record import Content
from tests.support import close, operator_of, rows_of, taped


def hooks(module):
    return len(module._forward_hooks)


def rows(record):
    """Y, A and G."""
    operator = record.operator()
    return operator.rows, record.pre_activation(operator), record.gradient()


def run(layer, x, activation):
    """Y, A and G by the tape, and A and G by autograd."""
    with taped({"layer": layer}) as tape:
        activation(layer(x)).square().sum().backward()
    a = nn.functional.linear(x.detach(), layer.weight, layer.bias).detach().requires_grad_()
    (g,) = torch.autograd.grad(activation(a.clone()).square().sum(), a)
    return tape.records["layer"], a.detach(), g


@pytest.mark.parametrize(
    "activation",
    [torch.tanh, torch.tanh_, torch.relu, lambda a: torch.relu_(a), nn.ReLU(inplace=True), lambda a: a],
    ids=["tanh", "tanh_", "relu", "relu_", "module", "none"],
)
@pytest.mark.parametrize("bias", [True, False])
def test_equals_autograd(activation, bias):
    layer = nn.Linear(4, 3, bias=bias).double()
    x = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    record, a, g = run(layer, x, activation)
    got = rows(record)
    for value, expected in zip(got, (x.detach(), a, g), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
    assert all(not value.requires_grad for value in got)
    torch.testing.assert_close(got[2].T @ got[0], layer.weight.grad, rtol=1e-12, atol=1e-12)


def test_leading_dimensions_become_rows():
    layer = nn.Linear(4, 3).double()
    x = torch.randn(2, 5, 4, dtype=torch.float64)
    record, a, g = run(layer, x, torch.tanh)
    y, got_a, got_g = rows(record)
    torch.testing.assert_close(y, x.reshape(10, 4))
    torch.testing.assert_close(got_a, a.reshape(10, 3))
    torch.testing.assert_close(got_g, g.reshape(10, 3))


def test_called_twice_is_joined():
    layer = nn.Linear(3, 3).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    with taped({"layer": layer}) as tape:
        layer(torch.tanh(layer(x))).square().sum().backward()
    record = tape.records["layer"]
    y, a, g = rows(record)
    assert record.calls == 2 and y.shape == (10, 3)
    torch.testing.assert_close(y[5:], torch.tanh(a[:5]))
    torch.testing.assert_close(g.T @ y, layer.weight.grad, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(g.sum(0), layer.bias.grad, rtol=1e-12, atol=1e-12)


def test_a_call_that_the_backward_pass_does_not_reach_does_not_count():
    layer = nn.Linear(3, 3).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    with taped({"layer": layer}) as tape:
        layer(x)
        layer(2 * x).sum().backward()
    y, _, g = rows(tape.records["layer"])
    assert torch.equal(y, 2 * x) and (g == 1).all() and tape.records["layer"].n == 5


def test_hooks_are_removed():
    layer = nn.Linear(3, 3)
    with taped({"layer": layer}):
        assert hooks(layer) == 1
    assert hooks(layer) == 0
    with pytest.raises(RuntimeError, match="stop"), taped({"layer": layer}):
        raise RuntimeError("stop")
    assert hooks(layer) == 0


def test_incomplete_without_gradient():
    layer = nn.Linear(3, 3)
    with taped({"layer": layer, "unused": nn.Linear(3, 3)}) as tape, torch.no_grad():
        layer(torch.randn(2, 3))
    assert tape.records["layer"].content is tape.records["unused"].content is Content.UNSEEN


def test_low_precision_is_raised_to_float32():
    layer = nn.Linear(3, 2)
    with taped({"layer": layer}) as tape, torch.autocast("cpu", dtype=torch.bfloat16):
        layer(torch.randn(4, 3)).float().sum().backward()
    record = tape.records["layer"]
    assert record.autocast
    assert {x.dtype for x in rows(record)} == {torch.float32}


@pytest.mark.parametrize("inplace", [True, False])
def test_gradients_of_another_loss(inplace):
    """As autograd has them, for layers called once, twice, to no effect and never; the true ones come after."""
    layers = nn.ModuleDict({name: nn.Linear(4, 4) for name in ("once", "twice", "no_effect", "never")}).double()
    x = torch.randn(6, 4, dtype=torch.float64)
    outputs = []

    def call(name, y):
        outputs.append(layers[name](y))
        return nn.functional.relu(outputs[-1] + 0 if not inplace else outputs[-1], inplace=inplace)

    def forward():
        outputs.clear()
        y = call("twice", call("twice", call("once", x)))
        call("no_effect", x)
        return y

    with taped(dict(layers.items())) as tape:
        y = forward()
    found = {name: tape.records[name].join(parts) for name, parts in tape.gradients(y.square().sum()).items()}
    assert found.keys() == {"once", "twice", "no_effect"}
    assert all(record.content is Content.UNSEEN for record in tape.records.values())
    y.exp().sum().backward()
    inplace = False
    for loss, by_tape in (
        (lambda y: y.square().sum(), found),
        (lambda y: y.exp().sum(), {name: tape.records[name].gradient() for name in ("once", "twice")}),
    ):
        y = forward()
        once, first, second = torch.autograd.grad(loss(y), outputs[:3])
        torch.testing.assert_close(by_tape["once"], once, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(by_tape["twice"], torch.cat([first, second]), rtol=1e-12, atol=1e-12)
    assert (found["no_effect"] == 0).all() and found["no_effect"].shape == (6, 4)


def test_a_record_is_freed_without_the_collector():
    """A circle through the graph would keep every batch: the collector does not see into it."""
    layer = nn.Linear(4, 3)
    gc.disable()
    try:
        with taped({"layer": layer}) as tape:
            output = layer(torch.randn(5, 4))
        tape.gradients(output.square().sum())
        output.sum().backward()
        record = weakref.ref(tape.records["layer"])
        del tape, output
        assert record() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("activation", [torch.relu, nn.ReLU(inplace=True)], ids=["relu", "inplace"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions_equal_autograd(groups, layout, activation):
    layer = nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=groups).double()
    x = torch.randn(3, 2, 6, 5, dtype=torch.float64).contiguous(memory_format=layout)
    with taped({"layer": layer}) as tape:
        activation(layer(x)).square().sum().backward()
    a = layer(x).detach().requires_grad_()
    (g,) = torch.autograd.grad(activation(a.clone()).square().sum(), a)
    record = tape.records["layer"]
    operator = record.operator()
    for value, expected in ((record.pre_activation(operator), a.detach()), (record.gradient(), g)):
        torch.testing.assert_close(value, expected.movedim(1, -1).reshape(-1, 4), rtol=1e-12, atol=1e-12)
    product = operator.adjoint(record.gradient())
    expected = torch.cat([layer.weight.grad.flatten(1), layer.bias.grad[:, None]], 1)
    torch.testing.assert_close(product, expected, rtol=1e-12, atol=1e-12)


def test_inputs_are_those_that_the_layer_saw():
    latent, layer = nn.Parameter(torch.randn(5, 3)), nn.Linear(3, 3)
    for inputs in (lambda: latent, lambda: latent[1:], lambda: latent.detach().mT.mT):
        with taped({"layer": layer}, [latent]) as tape:
            layer(inputs()).sum().backward()
        seen = inputs().detach().clone()
        with torch.no_grad():
            latent.add_(1.0)  # as another optimizer does
        assert torch.equal(tape.records["layer"].operator().rows, seen)
    x = torch.randn(5, 3)
    with torch.autocast("cpu", torch.bfloat16), taped({"layer": layer}) as tape:
        x += layer(x)
        x.sum().backward()
    assert (tape.records["layer"].operator().rows - x).abs().max() > 0.1
    assert torch.equal(tape.records["layer"].operator().rows, tape.records["layer"].operator().rows.bfloat16().float())


def test_what_makes_no_problem():
    """Calls without rows, images of two sizes, and a layer that was frozen meanwhile."""
    x = torch.randn(5, 3)
    linear, convolution = nn.Linear(3, 2), nn.Conv2d(1, 2, 3)
    with taped({"linear": linear}) as tape:
        linear(x[:0]).sum().backward()
    assert tape.records["linear"].content is Content.EMPTY
    with taped({"convolution": convolution}) as tape:
        (convolution(torch.randn(2, 1, 5, 5)).sum() + convolution(torch.randn(2, 1, 4, 5)).sum()).backward()
    assert tape.records["convolution"].content is Content.UNFIT
    for frozen in ("weight", "bias"):
        linear.requires_grad_(True).get_parameter(frozen).requires_grad_(False)
        with taped({"linear": linear}) as tape:
            linear(x.clone().requires_grad_()).sum().backward()
        assert tape.records["linear"].content is Content.UNFIT


def test_what_makes_a_problem():
    layer = nn.Linear(3, 2)
    with taped({"layer": layer}) as tape:
        (layer(torch.randn(5, 3)).sum() + layer(torch.randn(0, 3)).sum()).backward()
    record = tape.records["layer"]
    assert record.content is Content.SOLVABLE and (record.n, record.calls) == (5, 2)
    assert max(Content) is Content.UNFIT and sorted(Content) == [0, 1, 2, 3]


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_gradients_are_scaled(scale):
    layer = nn.Linear(3, 2)
    with Tape({"layer": (layer, kind_of(layer))}, scale=scale) as tape:
        y = layer(torch.randn(5, 3))
    record = tape.records["layer"]
    assert torch.equal(record.join(tape.gradients(y.sum())["layer"]), torch.full((5, 2), scale))
    (3 * y).sum().backward()
    assert torch.equal(tape.records["layer"].gradient(), torch.full((5, 2), 3 * scale))


@pytest.mark.parametrize("layer", [nn.Linear(3, 2), nn.Conv2d(3, 2, 3, stride=2), nn.Conv1d(3, 2, 3, groups=1)])
def test_a_record_without_rows(layer):
    """As a process has it that sees none of a layer's rows."""
    with taped({"layer": layer}) as tape:
        pass
    assert tape.records["layer"].content is Content.UNSEEN
    with torch.no_grad():
        record = tape.records["layer"].without_rows()
    operator = record.operator()
    assert record.n == operator.n == 0 and record.calls == 1
    assert record.pre_activation(operator).shape == record.gradient().shape == (0, 2)
    assert (operator.adjoint(record.gradient()) == 0).all()


def test_an_input_may_be_given_by_name():
    layer, x = nn.Linear(3, 2), torch.randn(5, 3)
    with taped({"layer": layer}) as tape:
        layer(input=x).sum().backward()
    assert torch.equal(tape.records["layer"].operator().rows, x)


def test_a_reentrant_checkpoint_refuses_sampled_labels():
    layer = nn.Linear(3, 3)
    with taped({"layer": layer}) as tape:
        y = checkpoint(torch.tanh, layer(torch.randn(5, 3)), use_reentrant=True)
    with pytest.raises(UserError, match="set its samples=0, or use_reentrant=False"):
        tape.gradients(y.sum())
    with taped({"layer": layer}) as tape:
        z = layer(torch.randn(5, 3)).tanh().sum()
    z.backward()
    with pytest.raises(RuntimeError, match="second time"):  # what another mistake says is passed on
        tape.gradients(z)


def test_rows_are_the_operators():
    """A, as rows, is the operator's product with the weights."""
    for layer, x in ((nn.Linear(3, 2), torch.randn(4, 5, 3)), (nn.Conv1d(3, 2, 2), torch.randn(4, 3, 5))):
        weights = torch.cat([layer.weight.flatten(1), layer.bias[:, None]], 1).detach()
        close(operator_of(layer, [x]).apply(weights), rows_of(layer, layer(x).detach()), 1e-5)
