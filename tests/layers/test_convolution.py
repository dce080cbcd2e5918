import subprocess
import sys

import pytest
import torch
from torch import nn

from locoprop_lightning.layers import kind_of
from locoprop_lightning.layers.convolution import ConvolutionOperator
from locoprop_lightning.local import MatrixOperator
from locoprop_lightning.local.operator import spread, times
from tests.support import close, operator_of, rows_of


def images(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def v_of(layer):
    """V = [W | b]."""
    parts = [layer.weight.detach().flatten(1)]
    return torch.cat(parts if layer.bias is None else [*parts, layer.bias.detach()[:, None]], 1)


def explicit(layer, x):
    """Y [groups, n, width] by torch's unfold, of an input that torch has padded."""
    two = isinstance(layer, nn.Conv2d)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = nn.functional.pad(x, layer._reversed_padding_repeated_twice, mode)
    if not two:
        x = x.unsqueeze(2)
    sizes = [s if two else (1, *s) for s in (layer.kernel_size, layer.dilation, layer.stride)]
    y = nn.functional.unfold(x, sizes[0], dilation=sizes[1], stride=sizes[2])  # [N, channels x kernel, positions]
    y = y.mT.reshape(-1, layer.groups, y.shape[1] // layer.groups).transpose(0, 1)
    return y if layer.bias is None else torch.cat([y, torch.ones_like(y[..., :1])], -1)


def check_operator(layer, x):
    """Everything that an operator does, against autograd and the explicit rows."""
    layer = layer.double()
    a = layer(x)
    g = torch.randn_like(a)
    operator, y = operator_of(layer, [x]), explicit(layer, x)
    rows = rows_of(layer, g)
    assert (operator.n, operator.width, operator.groups) == (y.shape[1], y.shape[2], layer.groups)
    close(operator.apply(v_of(layer)), rows_of(layer, a.detach()), 1e-10)
    close(operator.apply(v_of(layer), start=rows.clone()), rows_of(layer, a.detach()) + rows, 1e-10)
    gradients = torch.autograd.grad(a, list(layer.parameters()), g)
    expected = torch.cat([p.flatten(1) if p.dim() > 1 else p[:, None] for p in gradients], 1)
    close(operator.adjoint(rows), expected, 1e-10)
    grams = y.mT @ y
    close(operator.gram(), grams if layer.groups > 1 else grams[0], 1e-10)
    close(operator.trace(), grams.diagonal(dim1=1, dim2=2).sum() / layer.groups, 1e-10)
    v = torch.randn_like(v_of(layer))
    products = torch.cat([part @ c for part, c in zip(v.chunk(layer.groups), grams, strict=True)])
    close(times(v, operator.gram()), products, 1e-10)
    some, index = operator.sample(5)
    assert torch.equal(index, spread(operator.n, 5, x.device)) and some.n == len(index)
    close(some.apply(v), operator.apply(v)[index], 1e-10)
    close(operator.select(index).apply(v), operator.apply(v)[index], 1e-10)
    if layer.groups == 1:
        close(operator.kernel(), y[0] @ y[0].T, 1e-10)
        close(operator.dense().apply(v), operator.apply(v), 1e-10)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("dilation", [1, 2, (2, 1)])
@pytest.mark.parametrize("padding", [0, 1, (2, 1), "same", "valid"])
@pytest.mark.parametrize("stride", [1, 2, (1, 3)])
def test_conv2d(stride, padding, dilation, groups, bias):
    if padding == "same" and stride != 1:
        pytest.skip("torch has no such layer")
    check_operator(nn.Conv2d(4, 8, (3, 2), stride, padding, dilation, groups, bias), images(3, 4, 9, 8))


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [1, (2, 1), "same"])
def test_conv2d_padding_modes(mode, padding):
    check_operator(nn.Conv2d(2, 3, (3, 2), padding=padding, padding_mode=mode), images(2, 2, 6, 5))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [0, 2])
@pytest.mark.parametrize("kernel", [1, 3])
def test_conv1d(kernel, padding, mode, groups, stride):
    check_operator(nn.Conv1d(4, 6, kernel, stride, padding, groups=groups, padding_mode=mode), images(3, 4, 9))


def test_depthwise():
    check_operator(nn.Conv2d(6, 6, 3, padding=1, groups=6), images(2, 6, 5, 5))


@pytest.mark.parametrize("stride", [1, 2])
def test_a_kernel_of_one_needs_no_patches(stride):
    layer = nn.Conv2d(4, 3, 1, stride)
    check_operator(layer, images(2, 4, 5, 6))
    assert type(operator_of(layer, [images(2, 4, 5, 6)])) is MatrixOperator
    assert type(operator_of(nn.Conv2d(4, 3, 1, padding=1).double(), [images(2, 4, 5, 6)])) is ConvolutionOperator


@pytest.mark.parametrize("layer", [nn.Conv2d(4, 3, 3), nn.Conv1d(4, 3, 3)])
def test_an_input_without_samples(layer):
    x = images(4, *[5] * len(layer.kernel_size))
    layer = layer.double()
    close(operator_of(layer, [x]).apply(v_of(layer)), rows_of(layer, layer(x).detach()), 1e-10)


def test_rows_of_all_calls_are_joined():
    layer = nn.Conv2d(2, 3, 3).double()
    x, z = images(2, 2, 5, 5), images(3, 2, 5, 5)
    close(operator_of(layer, [x, z]).gram(), operator_of(layer, [x]).gram() + operator_of(layer, [z]).gram(), 1e-12)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("size", "number", "chunk"), [(128, 7, 3), (256, 2, 0)], ids=["three_images", "one_image"])
def test_gram_in_chunks(layout, size, number, chunk):
    """Of 32 MB of patches each, or of one image that has more."""
    layer = nn.Conv2d(8, 2, 3, padding=1).double()
    x = images(number, 8, size, size).contiguous(memory_format=layout)
    parts = [explicit(layer, image[None])[0] for image in x]
    close(operator_of(layer, [x]).gram() / size**2, sum(y.T @ y for y in parts) / size**2, 1e-11)
    assert (32 << 20) // (parts[0][:, :-1].numel() * 8) == chunk


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_memory_layouts(layout):
    check_operator(nn.Conv2d(3, 2, 3, padding=1), images(5, 3, 6, 6).contiguous(memory_format=layout))


@pytest.mark.slow
def test_gram_of_large_images_takes_little_memory():
    """The patches of this input would take 462 MB; in a process of its own, whose peak is nobody else's."""
    script = """
import re, torch
from pathlib import Path
from torch import nn
from locoprop_lightning.layers import kind_of

def growth(function):
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = peak()
    function()
    return peak() - before

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024

x = torch.randn(256, 64, 28, 28)
layer = nn.Conv2d(64, 64, 3, padding=1)
kind = kind_of(layer)
kind.operator(layer, [x[:1]]).gram()  # what a first product takes is not the operator's
print(growth(kind.operator(layer, [x]).gram), growth(lambda: nn.functional.unfold(x, 3, padding=1)))
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    grown, unfolded = map(int, ran.stdout.split())
    assert grown <= 150, f"{grown} MB"
    assert unfolded > 400, "the measurement sees nothing"


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d])
@pytest.mark.parametrize("padding", ["same", "valid", 1])
def test_settings_changed_after_construction(kind, padding):
    """As those do who dilate a trained network."""
    layer = kind(2, 3, 3, padding=padding).double()
    x = torch.randn(4, 2, *[7] * len(layer.kernel_size), dtype=torch.float64)
    layer.dilation = (2,) * len(layer.kernel_size)
    if padding == 1:
        layer.padding = tuple(range(1, len(layer.kernel_size) + 1))
    weight = torch.cat([layer.weight.detach().flatten(1), layer.bias.detach()[:, None]], 1)
    close(operator_of(layer, [x]).apply(weight), rows_of(layer, layer(x).detach()), 1e-12)


@pytest.mark.parametrize("layer", [nn.Conv2d(4, 6, (3, 2), 2, (2, 1), 2, 2), nn.Conv1d(4, 6, 3, padding="same")])
def test_an_input_without_samples_is_accepted(layer):
    """By the layer, and as an operator of no rows."""
    empty = kind_of(layer).empty(layer)
    assert layer(empty).shape[0] == 0 and empty.dtype == layer.weight.dtype
    operator = operator_of(layer, [empty])
    v = torch.randn(6, operator.width)
    assert operator.n == 0 and operator.apply(v).shape == (0, 6)
    for zeros in (operator.adjoint(torch.zeros(0, 6)), operator.gram(), operator.trace()):
        assert (zeros == 0).all()
