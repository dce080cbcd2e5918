"""``nn.Conv1d`` to ``nn.Conv3d``: rows are patches, and products convolve instead of unfolding them."""

import math
from collections.abc import Callable, Hashable, Sequence
from copy import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight, conv3d_weight

from locoprop_lightning.layers.kind import LayerKind, join
from locoprop_lightning.local.blocks import Blocks
from locoprop_lightning.local.operator import LinearOperator, MatrixOperator, gram

_CHUNK_BYTES = 32 << 20  # of patches that are unfolded at once

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


class _Products(NamedTuple):
    """What torch has for convolutions in some number of dimensions."""

    convolve: Callable[..., Tensor]
    weight_gradient: Callable[..., Tensor]
    channels_last: torch.memory_format


_PRODUCTS = {
    2: _Products(nn.functional.conv2d, conv2d_weight, torch.channels_last),
    3: _Products(nn.functional.conv3d, conv3d_weight, torch.channels_last_3d),
}


class ConvolutionKind(LayerKind):
    """Convolutions in one to three dimensions, with stride, padding of every mode, dilation and groups."""

    sparse = True
    modules = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    forwards = ("forward", "_conv_forward")

    def units(self, module: Convolution) -> int:  # noqa: D102
        return -1 - len(module.kernel_size)

    def signature(self, module: Convolution, x: Tensor) -> Hashable:
        """The size of the images: rows of images of several sizes cannot be joined in one tensor."""
        return tuple(x.shape[-len(module.kernel_size) :])

    def empty(self, module: Convolution) -> Tensor:
        """No images, as large as one patch."""
        sizes = [d * (k - 1) + 1 for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        return module.weight.new_zeros(0, module.in_channels, *sizes)

    def operator(self, module: Convolution, inputs: Sequence[Tensor]) -> LinearOperator:  # noqa: D102
        bias = module.bias is not None
        x = images(module, inputs)
        stride, dilation, kernel = module.stride, module.dilation, module.kernel_size
        pad = _padding(module)
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        if len(kernel) == 1:
            if mode != "constant":  # not every mode pads a dimension by nothing
                x, pad = nn.functional.pad(x, pad, mode), [0, 0]
            x = x.unsqueeze(2)
            stride, dilation, kernel, pad = (1, *stride), (1, *dilation), (1, *kernel), [*pad, 0, 0]
        if set(kernel) == {1} and module.groups == 1 and not any(pad):
            return MatrixOperator(every(x, stride).movedim(1, -1).reshape(-1, x.shape[1]), bias)
        return ConvolutionOperator(x, bias, kernel, stride, pad, mode, dilation, module.groups)


def images(module: Any, inputs: Sequence[Tensor]) -> Tensor:
    """The inputs of some calls, joined; torch lets one leave out the dimension of samples."""
    return join([x if x.dim() == len(module.kernel_size) + 2 else x.unsqueeze(0) for x in inputs])


def every(x: Tensor, stride: Sequence[int]) -> Tensor:
    """The first pixel of images and every one a stride apart, as a view."""
    index: tuple[Any, ...] = (..., *(slice(None, None, step) for step in stride))
    return x[index]


def _padding(module: Convolution) -> list[int]:
    """Padding before and after each dimension, the last one first, as the layer's forward takes it."""
    if module.padding_mode != "zeros":
        return list(module._reversed_padding_repeated_twice)  # torch reads this, whatever became of the settings
    if module.padding == "valid":
        return [0, 0] * len(module.kernel_size)
    if module.padding == "same":
        totals = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        return [side for total in reversed(totals) for side in (total // 2, total - total // 2)]
    sides: Sequence[int] = module.padding  # type: ignore[assignment]
    return [side for side in reversed(sides) for _ in range(2)]


class ConvolutionOperator(LinearOperator):
    """The operator of ``nn.Conv2d`` or ``nn.Conv3d``.

    Patches are unfolded of 32 MB of images at a time, or of one image.

    Args:
        inputs: Input of the layer [N, channels, height, width], or with the depth before the height.
        bias: Whether the layer has a bias.
        kernel: Size of the kernel, (height, width) or (depth, height, width).
        stride: Stride, 1 if not given.
        pad: Padding, in the order of ``torch.nn.functional.pad`` (left, right, top, ...); none if not given.
        mode: Mode of the padding, as there.
        dilation: Dilation, 1 if not given.
        groups: Groups of channels.
    """

    def __init__(
        self,
        inputs: Tensor,
        bias: bool,
        kernel: Sequence[int],
        stride: Sequence[int] | None = None,
        pad: Sequence[int] | None = None,
        mode: str = "constant",
        dilation: Sequence[int] | None = None,
        groups: int = 1,
    ) -> None:
        self.bias = bias
        self.kernel_size = tuple(kernel)
        ones = (1,) * len(self.kernel_size)
        self.stride = stride or ones
        self.dilation = dilation or ones
        self.groups = groups
        self.kept: Tensor | None = None  # rows that count, int64 [n]
        pad = pad or (0, 0) * len(ones)
        if mode != "constant" or pad[::2] != pad[1::2]:
            inputs, pad = nn.functional.pad(inputs, pad, mode), (0, 0) * len(ones)
        self.padding = tuple(pad[::-2])  # of both sides
        self.inputs = inputs
        self._torch = _PRODUCTS[len(ones)]
        self._last: Tensor | None = None  # the inputs with channels last, as apply and adjoint take them
        sizes = zip(inputs.shape[2:], self.padding, self.kernel_size, self.dilation, self.stride, strict=True)
        self.positions = tuple((size + 2 * p - d * (k - 1) - 1) // t + 1 for size, p, k, d, t in sizes)

    @property
    def n(self) -> int:  # noqa: D102
        return self._positions() if self.kept is None else len(self.kept)

    @property
    def device(self) -> torch.device:  # noqa: D102
        return self.inputs.device

    @property
    def d_in(self) -> int:  # noqa: D102
        return self.inputs.shape[1] // self.groups * math.prod(self.kernel_size)

    def apply(self, v: Tensor, start: Tensor | None = None) -> Tensor:
        """Y V^T by a convolution, added to ``start`` if given [n, d_out]; a new tensor."""
        weight = v[:, : self.d_in].reshape(-1, self.inputs.shape[1] // self.groups, *self.kernel_size)
        bias = v[:, self.d_in] if self.bias else None
        out = self._torch.convolve(self._channels_last(), weight, bias, **self._geometry())
        rows = self._counting(out.movedim(1, -1).reshape(-1, v.shape[0]))
        return rows if start is None else rows.add_(start)

    def adjoint(self, r: Tensor) -> Tensor:
        """R^T Y [d_out, width] of R [n, d_out], by the weight gradient of a convolution."""
        shape = (r.shape[1], self.inputs.shape[1] // self.groups, *self.kernel_size)
        rows = r if self.kept is None else r.new_zeros(self._positions(), r.shape[1]).index_copy_(0, self.kept, r)
        image = rows.reshape(-1, *self.positions, r.shape[1]).movedim(-1, 1)
        weight = self._torch.weight_gradient(self._channels_last(), shape, image, **self._geometry())
        out = r.new_empty(r.shape[1], self.width)
        out[:, : self.d_in] = weight.flatten(1)
        if self.bias:
            torch.sum(r, 0, out=out[:, self.d_in])
        return out

    def gram(self) -> Tensor:  # noqa: D102
        k, c, d = math.prod(self.kernel_size), self.inputs.shape[1] // self.groups, self.d_in
        total = self.inputs.new_zeros(self.groups, d, d)
        sums = self.inputs.new_zeros(self.groups, d)
        per_image = math.prod(self.positions) * d * self.groups * self.inputs.element_size()
        chunks = self.inputs.split(max(1, _CHUNK_BYTES // per_image))
        for images, kept in zip(chunks, self._kept_of(chunks), strict=True):
            rows = self._patches(images) if kept is None else self._patches(images)[:, kept]
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

    def squares(self) -> Tensor:  # noqa: D102
        windows = self._windows(self.inputs.square().sum(1, keepdim=True))
        return self._counting(windows.flatten(-1 - len(self.kernel_size)).sum(-1).flatten()) / self.groups + self.bias

    def keep(self, index: Tensor) -> "ConvolutionOperator":
        """The operator of some rows, which convolves all of them: their patches would take more memory."""
        made = copy(self)
        made.kept = index if self.kept is None else self.kept[index]
        return made

    def select(self, index: Tensor) -> "ConvolutionOperator":  # noqa: D102
        image = index if self.kept is None else self.kept[index]
        places: list[Tensor] = []
        for size in reversed(self.positions):
            places.insert(0, image % size)
            image = image // size
        windows = self._windows(self.inputs[image])
        return self._at(windows[(torch.arange(len(index), device=index.device), *places)])

    def average(self, blocks: Blocks) -> LinearOperator:
        """The operator at the mean patch of each image; the blocks are images, or what is kept of them."""
        if self.kept is not None:
            return super().average(blocks)
        made = self._at(self._windows(self.inputs).mean(tuple(range(1, 1 + len(self.positions)))))
        made.expanded = self
        return made

    def _at(self, patches: Tensor) -> "ConvolutionOperator":
        """The operator at patches [m, *kernel_size, channels]."""
        return ConvolutionOperator(patches.movedim(-1, 1), self.bias, self.kernel_size, groups=self.groups)

    def dense(self) -> MatrixOperator:  # noqa: D102
        k, c = math.prod(self.kernel_size), self.inputs.shape[1]
        rows = self._counting(self._patches(self.inputs)[0])
        return MatrixOperator(rows.reshape(-1, k, c).mT.reshape(-1, k * c), self.bias)

    def _positions(self) -> int:
        """Rows of all positions, those that do not count among them."""
        return self.inputs.shape[0] * math.prod(self.positions)

    def _counting(self, rows: Tensor) -> Tensor:
        """Those that count of the rows of all positions."""
        return rows if self.kept is None else rows[self.kept]

    def _kept_of(self, chunks: Sequence[Tensor]) -> Sequence[Tensor | None]:
        """Which rows of chunks of the images count, bool; None where all do."""
        if self.kept is None:
            return [None] * len(chunks)
        mask = torch.zeros(self._positions(), dtype=torch.bool, device=self.device).index_fill_(0, self.kept, True)
        return mask.split([len(images) * math.prod(self.positions) for images in chunks])

    def _geometry(self) -> dict[str, Any]:
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}

    def _channels_last(self) -> Tensor:
        """The inputs in the layout in which the rows of an output are contiguous."""
        if self._last is None:
            self._last = self.inputs.contiguous(memory_format=self._torch.channels_last)
        return self._last

    def _windows(self, images: Tensor) -> Tensor:
        """Patches of images, as a view of the padded images [N, *positions, *kernel_size, channels]."""
        pad = [side for p in reversed(self.padding) for side in (p, p)]
        x = nn.functional.pad(images, pad).movedim(1, -1).contiguous()
        n, *_, channels = x.shape
        image, *space, unit = x.stride()
        steps = (a * b for a, b in zip(space, self.stride, strict=True))
        taps = (a * b for a, b in zip(space, self.dilation, strict=True))
        return x.as_strided((n, *self.positions, *self.kernel_size, channels), (image, *steps, *taps, unit))

    def _patches(self, images: Tensor) -> Tensor:
        """Patches of images as rows, copied; within a row channels run fastest [groups, n, d_in]."""
        windows = self._windows(images).unflatten(-1, (self.groups, -1))
        return windows.movedim(-2, 0).reshape(self.groups, -1, self.d_in)
