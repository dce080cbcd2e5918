"""How a layer with weights acts on its input: apply, adjoint and Gram matrix; Linear, Conv1d and Conv2d.

Weight and bias are one matrix V = [W | b] [d_out, width], with the weight flattened from its second dimension on and no
last column without a bias. A row is what one output position sees: a sample or token of a linear layer, a patch of a
convolution. The constant-one input that belongs to the bias exists in the mathematics only; the rows are never copied.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

_BLOCK = 128  # columns of X^T X below which a block does not pay
_CHUNK_BYTES = 32 << 20  # of patches that are unfolded at once

WeightLayer = nn.Linear | nn.Conv1d | nn.Conv2d


def _blocks(d: int) -> list[tuple[int, int]]:
    size = max(-(-d // 4), _BLOCK)
    return [(i, min(i + size, d)) for i in range(0, d, size)]


def gram(x: Tensor, out: Tensor | None = None) -> Tensor:
    """X^T X [d, d] of X [n, d], added to a symmetric ``out`` if given, in at most four blocks of columns.

    What lies above the diagonal is copied.
    """
    out = x.new_zeros(x.shape[1], x.shape[1]) if out is None else out
    for i, j in _blocks(x.shape[1]):
        block = out[i:, i:j]
        torch.addmm(block, x[:, i:].t(), x[:, i:j], out=block)
        out[i:j, j:] = out[j:, i:j].t()
    return out


def gram_cost(n: int, d: int) -> float:
    """Floating-point operations of ``gram``: from 2 n d^2 with one block to 5/8 of that with four."""
    return 2.0 * n * sum((d - i) * (j - i) for i, j in _blocks(d))


def spread(n: int, count: int, device: torch.device) -> Tensor:
    """At most ``count`` different ones of n rows, the same at each call, int64 [at most count].

    Their distance is the golden ratio's, so that they fall on all positions of an image, or tokens of a sequence;
    equal distances would fall on the first of each.
    """
    if count >= n:
        return torch.arange(n, device=device)
    steps = torch.arange(count, dtype=torch.float64, device=device)
    return (steps * 0.6180339887498949 % 1 * n).long().unique()


def times(v: Tensor, c: Tensor) -> Tensor:
    """V C [d_out, width] with a matrix C [width, width], or one for each group of units [groups, width, width]."""
    return v @ c if c.dim() == 2 else torch.bmm(v.unflatten(0, (len(c), -1)), c).flatten(0, 1)


def rows_of(layer: WeightLayer, x: Tensor) -> Tensor:
    """Output of a layer, or a gradient w.r.t. it, as rows [n, d_out]."""
    if isinstance(layer, nn.Linear):
        return x.reshape(-1, x.shape[-1])
    return _batched(layer, x).movedim(1, -1).reshape(-1, layer.out_channels)


def _padding(layer: nn.Conv1d | nn.Conv2d) -> list[int]:
    """Padding before and after each dimension, the last one first, as the layer's forward takes it."""
    if layer.padding_mode != "zeros":
        return list(layer._reversed_padding_repeated_twice)  # torch reads this, whatever became of the settings
    if layer.padding == "valid":
        return [0, 0] * len(layer.kernel_size)
    if layer.padding == "same":
        totals = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        return [side for total in reversed(totals) for side in (total // 2, total - total // 2)]
    sides: Sequence[int] = layer.padding  # type: ignore[assignment]
    return [side for side in reversed(sides) for _ in range(2)]


def map_of(layer: WeightLayer, inputs: list[Tensor]) -> "LinearMap":
    """The map of a layer at the inputs of all its calls, which agree in all sizes but the first."""
    bias = layer.bias is not None
    if isinstance(layer, nn.Linear):
        return LinearMap(join([x.reshape(-1, x.shape[-1]) for x in inputs]), bias)
    x = join([_batched(layer, x) for x in inputs])
    stride, dilation, kernel = layer.stride, layer.dilation, layer.kernel_size
    pad = _padding(layer)
    if isinstance(layer, nn.Conv1d):
        x = x.unsqueeze(2)
        stride, dilation, kernel, pad = (1, *stride), (1, *dilation), (1, *kernel), [*pad, 0, 0]
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    if isinstance(layer, nn.Conv1d) and mode != "constant":  # not every mode pads a dimension by nothing
        x, pad = nn.functional.pad(x.squeeze(2), pad[:2], mode).unsqueeze(2), [0, 0, 0, 0]
    if tuple(kernel) == (1, 1) and layer.groups == 1 and not any(pad):
        return LinearMap(x[:, :, :: stride[0], :: stride[1]].movedim(1, -1).reshape(-1, x.shape[1]), bias)
    return ConvMap(x, bias, kernel, stride, pad, mode, dilation, layer.groups)


class LinearMap:
    """The map of ``nn.Linear`` at fixed inputs.

    Args:
        rows: Y, inputs of the layer [n, d_in].
        bias: Whether the layer has a bias.
    """

    groups = 1  # groups of units, each of which sees inputs of its own

    def __init__(self, rows: Tensor, bias: bool) -> None:
        self.rows = rows  # Y
        self.bias = bias

    @property
    def n(self) -> int:
        """Number of rows."""
        return self.rows.shape[0]

    @property
    def d_in(self) -> int:
        """Inputs that a unit sees."""
        return self.rows.shape[1]

    @property
    def width(self) -> int:
        """Columns of V: d_in, and one for the bias."""
        return self.d_in + self.bias

    def apply(self, v: Tensor, start: Tensor | None = None) -> Tensor:
        """Y V^T, added to ``start`` if given [n, d_out]."""
        d = self.d_in
        weight = v[:, :d].t()
        out = self.rows @ weight if start is None else torch.addmm(start, self.rows, weight)
        return out.add_(v[:, d]) if self.bias else out

    def adjoint(self, r: Tensor) -> Tensor:
        """R^T Y [d_out, width] of R [n, d_out]."""
        d = self.d_in
        out = r.new_empty(r.shape[1], self.width)
        torch.mm(r.t(), self.rows, out=out[:, :d])
        if self.bias:
            torch.sum(r, 0, out=out[:, d])
        return out

    def gram(self) -> Tensor:
        """C = Y^T Y [width, width], or [groups, width, width] with several groups."""
        d = self.d_in
        out = self.rows.new_zeros(self.width, self.width)
        gram(self.rows, out[:d, :d])
        if self.bias:
            out[d, :d] = out[:d, d] = self.rows.sum(0)
            out[d, d] = self.n
        return out

    def kernel(self) -> Tensor:
        """Y Y^T [n, n], with one group."""
        rows = self.dense().rows
        out = rows @ rows.t()
        return out.add_(1) if self.bias else out

    def trace(self) -> Tensor:
        """The trace of C, scalar; the mean over groups."""
        return self.rows.square().sum() + self.n * self.bias

    def sample(self, index: Tensor) -> "LinearMap":
        """The map at some rows, int64 [m]."""
        return LinearMap(self.rows[index], self.bias)

    def dense(self) -> "LinearMap":
        """The same map, with one group, as a product with a matrix."""
        return self

    def double(self) -> "LinearMap":
        """The same product with a matrix in float64."""
        return LinearMap(self.rows.double(), self.bias)


class ConvMap(LinearMap):
    """The map of ``nn.Conv2d`` at fixed inputs; patches are unfolded of 32 MB of images at a time, or of one image.

    Args:
        inputs: Input of the layer [N, channels, height, width].
        bias: Whether the layer has a bias.
        kernel: Size of the kernel (height, width).
        stride: Stride.
        pad: Padding, in the order of ``torch.nn.functional.pad``: left, right, top, bottom.
        mode: Mode of the padding, as there.
        dilation: Dilation.
        groups: Groups of channels.
    """

    def __init__(
        self,
        inputs: Tensor,
        bias: bool,
        kernel: tuple[int, ...],
        stride: tuple[int, ...] = (1, 1),
        pad: list[int] | tuple[int, ...] = (0, 0, 0, 0),
        mode: str = "constant",
        dilation: tuple[int, ...] = (1, 1),
        groups: int = 1,
    ) -> None:
        self.bias = bias
        self.kernel_size = kernel
        self.stride = stride
        self.pad = list(pad)
        self.mode = mode
        self.dilation = dilation
        self.groups = groups
        symmetric = mode == "constant" and pad[0] == pad[1] and pad[2] == pad[3]
        if not symmetric:
            inputs, self.pad = nn.functional.pad(inputs, self.pad, mode), [0, 0, 0, 0]
        self.inputs = inputs
        self._last: Tensor | None = None  # the inputs with channels last, as apply and adjoint take them
        spans = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
        sizes = (inputs.shape[2] + 2 * self.pad[2], inputs.shape[3] + 2 * self.pad[0])
        self.positions = tuple((s - span) // t + 1 for s, span, t in zip(sizes, spans, stride, strict=True))

    @property
    def n(self) -> int:  # noqa: D102
        return self.inputs.shape[0] * self.positions[0] * self.positions[1]

    @property
    def d_in(self) -> int:  # noqa: D102
        return self.inputs.shape[1] // self.groups * self.kernel_size[0] * self.kernel_size[1]

    def apply(self, v: Tensor, start: Tensor | None = None) -> Tensor:
        """Y V^T by a convolution, added to ``start`` if given [n, d_out]."""
        weight = v[:, : self.d_in].reshape(-1, self.inputs.shape[1] // self.groups, *self.kernel_size)
        bias = v[:, self.d_in] if self.bias else None
        out = nn.functional.conv2d(self._channels_last(), weight, bias, **self._geometry())
        rows = out.permute(0, 2, 3, 1).reshape(-1, v.shape[0])
        return rows if start is None else rows.add_(start)

    def adjoint(self, r: Tensor) -> Tensor:
        """R^T Y [d_out, width] of R [n, d_out], by the weight gradient of a convolution."""
        shape = (r.shape[1], self.inputs.shape[1] // self.groups, *self.kernel_size)
        image = r.reshape(-1, *self.positions, r.shape[1]).permute(0, 3, 1, 2)
        weight = conv2d_weight(self._channels_last(), shape, image, **self._geometry())
        out = r.new_empty(r.shape[1], self.width)
        out[:, : self.d_in] = weight.flatten(1)
        if self.bias:
            torch.sum(r, 0, out=out[:, self.d_in])
        return out

    def gram(self) -> Tensor:  # noqa: D102
        k, c, d = self.kernel_size[0] * self.kernel_size[1], self.inputs.shape[1] // self.groups, self.d_in
        total = self.inputs.new_zeros(self.groups, d, d)
        sums = self.inputs.new_zeros(self.groups, d)
        per_image = self.positions[0] * self.positions[1] * d * self.groups * self.inputs.element_size()
        for images in self.inputs.split(max(1, _CHUNK_BYTES // per_image)):
            rows = self._patches(images)
            if self.groups == 1:
                gram(rows[0], total[0])
            else:
                total.baddbmm_(rows.mT, rows)
            sums += rows.sum(1)
        total = total.reshape(self.groups, k, c, k, c).permute(0, 2, 1, 4, 3).reshape(self.groups, d, d)
        if self.bias:
            out = total.new_empty(self.groups, d + 1, d + 1)
            out[:, :d, :d] = total
            out[:, d, :d] = out[:, :d, d] = sums.reshape(self.groups, k, c).mT.reshape(self.groups, d)
            out[:, d, d] = self.n
            total = out
        return total[0] if self.groups == 1 else total

    def trace(self) -> Tensor:  # noqa: D102
        squares = self.inputs.square().sum(1, keepdim=True)
        return self._windows(squares).sum() / self.groups + self.n * self.bias

    def sample(self, index: Tensor) -> LinearMap:  # noqa: D102
        rest, column = index // self.positions[1], index % self.positions[1]
        image, row = rest // self.positions[0], rest % self.positions[0]
        windows = self._windows(self.inputs[image])
        patches = windows[torch.arange(len(index), device=index.device), row, column]  # [m, height, width, channels]
        return ConvMap(patches.permute(0, 3, 1, 2), self.bias, self.kernel_size, groups=self.groups)

    def dense(self) -> LinearMap:  # noqa: D102
        k, c = self.kernel_size[0] * self.kernel_size[1], self.inputs.shape[1]
        return LinearMap(self._patches(self.inputs)[0].reshape(-1, k, c).mT.reshape(-1, k * c), self.bias)

    def _geometry(self) -> dict[str, Any]:
        padding = (self.pad[2], self.pad[0])
        return {"stride": self.stride, "padding": padding, "dilation": self.dilation, "groups": self.groups}

    def _channels_last(self) -> Tensor:
        """The inputs in the layout in which the rows of an output are contiguous."""
        if self._last is None:
            self._last = self.inputs.contiguous(memory_format=torch.channels_last)
        return self._last

    def _windows(self, images: Tensor) -> Tensor:
        """Patches of images, as a view of the padded images [N, *positions, *kernel_size, channels]."""
        x = nn.functional.pad(images, self.pad).permute(0, 2, 3, 1).contiguous()
        n, _, _, channels = x.shape
        a, b, c, d = x.stride()
        (down, right), (dilate_down, dilate_right) = self.stride, self.dilation
        sizes = (n, *self.positions, *self.kernel_size, channels)
        return x.as_strided(sizes, (a, b * down, c * right, b * dilate_down, c * dilate_right, d))

    def _patches(self, images: Tensor) -> Tensor:
        """Patches of images as rows, copied; within a row channels run fastest [groups, n, d_in]."""
        windows = self._windows(images).unflatten(5, (self.groups, -1))
        return windows.permute(5, 0, 1, 2, 3, 4, 6).reshape(self.groups, -1, self.d_in)


def _batched(layer: nn.Conv1d | nn.Conv2d, x: Tensor) -> Tensor:
    """Input or output of a convolution with a dimension of samples, which torch lets one leave out."""
    return x if x.dim() == len(layer.kernel_size) + 2 else x.unsqueeze(0)


def join(parts: list[Tensor]) -> Tensor:
    """Tensors one after the other; a single one is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)
