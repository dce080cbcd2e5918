import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from locoprop_lightning.local import linear_map
from locoprop_lightning.local.linear_map import ConvMap, LinearMap, gram, gram_cost, map_of, rows_of, spread, times
from tests.support import close


@pytest.mark.parametrize("d", [1, 127, 128, 129, 255, 300, 511, 785])
def test_gram_in_blocks(d):
    x = torch.randn(7, d, dtype=torch.float64)
    with FlopCounterMode(display=False) as counter:
        c = gram(x)
    close(c, x.T @ x, 1e-12)
    assert gram_cost(7, d) == counter.get_total_flops() <= 14 * d * d


def test_four_blocks_take_five_eighths():
    assert gram_cost(10, 512) == 20 * 512**2 * 5 / 8


def test_gram_into_a_part_of_a_matrix():
    x = torch.randn(9, 300, dtype=torch.float64)
    whole = torch.zeros(301, 301, dtype=torch.float64)
    assert gram(x, whole[:300, :300]).data_ptr() == whole.data_ptr()
    close(whole[:300, :300], x.T @ x, 1e-12)
    assert (whole[300] == 0).all() and (whole[:, 300] == 0).all()


@pytest.mark.parametrize(("samples", "positions"), [(128, 784), (128, 196), (128, 49), (64, 64), (1024, 1)])
def test_spread_falls_on_all_samples_and_positions(samples, positions):
    index = spread(samples * positions, 32, torch.device("cpu"))
    assert len(index) == 32 and index.max() < samples * positions
    assert len((index // positions).unique()) == 32
    assert len((index % positions).unique()) >= min(positions, 16)
    assert torch.equal(spread(7, 32, torch.device("cpu")), torch.arange(7))


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


def check_map(layer, x):
    """Everything that a map does, against autograd and the explicit rows."""
    layer = layer.double()
    a = layer(x)
    g = torch.randn_like(a)
    layer_map, y = operator_of(layer, [x]), explicit(layer, x)
    rows = rows_of(layer, g)
    assert (layer_map.n, layer_map.width, layer_map.groups) == (y.shape[1], y.shape[2], layer.groups)
    close(layer_map.apply(v_of(layer)), rows_of(layer, a.detach()), 1e-10)
    close(layer_map.apply(v_of(layer), start=rows.clone()), rows_of(layer, a.detach()) + rows, 1e-10)
    gradients = torch.autograd.grad(a, list(layer.parameters()), g)
    expected = torch.cat([p.flatten(1) if p.dim() > 1 else p[:, None] for p in gradients], 1)
    close(layer_map.adjoint(rows), expected, 1e-10)
    grams = y.mT @ y
    close(layer_map.gram(), grams if layer.groups > 1 else grams[0], 1e-10)
    close(layer_map.trace(), grams.diagonal(dim1=1, dim2=2).sum() / layer.groups, 1e-10)
    v = torch.randn_like(v_of(layer))
    products = torch.cat([part @ c for part, c in zip(v.chunk(layer.groups), grams, strict=True)])
    close(times(v, layer_map.gram()), products, 1e-10)
    some = spread(layer_map.n, 5, x.device)
    close(layer_map.sample(some).apply(v), layer_map.apply(v)[some], 1e-10)
    assert layer_map.sample(some).n == len(some)
    if layer.groups == 1:
        close(layer_map.kernel(), y[0] @ y[0].T, 1e-10)
        close(layer_map.dense().apply(v), layer_map.apply(v), 1e-10)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("dilation", [1, 2, (2, 1)])
@pytest.mark.parametrize("padding", [0, 1, (2, 1), "same", "valid"])
@pytest.mark.parametrize("stride", [1, 2, (1, 3)])
def test_conv2d(stride, padding, dilation, groups, bias):
    if padding == "same" and stride != 1:
        pytest.skip("torch has no such layer")
    check_map(nn.Conv2d(4, 8, (3, 2), stride, padding, dilation, groups, bias), images(3, 4, 9, 8))


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [1, (2, 1), "same"])
def test_conv2d_padding_modes(mode, padding):
    check_map(nn.Conv2d(2, 3, (3, 2), padding=padding, padding_mode=mode), images(2, 2, 6, 5))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [0, 2])
@pytest.mark.parametrize("kernel", [1, 3])
def test_conv1d(kernel, padding, mode, groups, stride):
    check_map(nn.Conv1d(4, 6, kernel, stride, padding, groups=groups, padding_mode=mode), images(3, 4, 9))


def test_depthwise():
    check_map(nn.Conv2d(6, 6, 3, padding=1, groups=6), images(2, 6, 5, 5))


@pytest.mark.parametrize("stride", [1, 2])
def test_a_kernel_of_one_needs_no_patches(stride):
    layer = nn.Conv2d(4, 3, 1, stride)
    check_map(layer, images(2, 4, 5, 6))
    assert type(operator_of(layer, [images(2, 4, 5, 6)])) is LinearMap
    assert type(map_of(nn.Conv2d(4, 3, 1, padding=1).double(), [images(2, 4, 5, 6)])) is ConvMap


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
def test_gram_in_chunks(layout, monkeypatch):
    layer, x = nn.Conv2d(3, 2, 3, padding=1).double(), images(5, 3, 6, 6).contiguous(memory_format=layout)
    whole = operator_of(layer, [x]).gram()
    monkeypatch.setattr(linear_map, "_CHUNK_BYTES", 1)  # an image at a time
    close(operator_of(layer, [x]).gram(), whole, 1e-12)
    check_map(layer, x)


def test_gram_of_large_images_takes_little_memory():
    """The patches of this input would take 462 MB; in a process of its own, whose peak is nobody else's."""
    script = """
import re, torch
from pathlib import Path
from torch import nn
from locoprop_lightning.local.linear_map import map_of

def growth(function):
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = peak()
    function()
    return peak() - before

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024

x = torch.randn(256, 64, 28, 28)
layer = nn.Conv2d(64, 64, 3, padding=1)
operator_of(layer, [x[:1]]).gram()  # what a first product takes is not the map's
print(growth(operator_of(layer, [x]).gram), growth(lambda: nn.functional.unfold(x, 3, padding=1)))
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
