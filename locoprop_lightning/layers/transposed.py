"""``nn.ConvTranspose1d`` to ``nn.ConvTranspose3d``, as ordinary convolutions of inputs with zeros between them."""

from collections.abc import Hashable, Sequence

from torch import Tensor, nn

from locoprop_lightning.layers.convolution import ConvolutionOperator, every, images
from locoprop_lightning.layers.kind import LayerKind

Transposed = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d


class TransposedConvolutionKind(LayerKind):
    """Transposed convolutions: a row is what one output position sees, with 0 where a tap falls on no input.

    With stride - 1 zeros between its inputs, such a layer is the convolution by its kernel read backwards. A call with
    ``output_size`` has other positions than its input alone tells, and is no matrix times that input.
    """

    sparse = True
    modules = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

    def units(self, module: Transposed) -> int:  # noqa: D102
        return -1 - len(module.kernel_size)

    def signature(self, module: Transposed, x: Tensor) -> Hashable:
        """The size of the images: rows of images of several sizes cannot be joined in one tensor."""
        return tuple(x.shape[-len(module.kernel_size) :])

    def fits(self, module: Transposed, x: Tensor, output: Tensor) -> bool:
        """Whether the output is as large as without an ``output_size``."""
        sizes = zip(x.shape[-len(module.kernel_size) :], *self._geometry(module), strict=True)
        own = [(n - 1) * s - 2 * p + d * (k - 1) + more + 1 for n, k, s, p, d, more in sizes]
        return list(output.shape[-len(own) :]) == own

    def empty(self, module: Transposed) -> Tensor:
        """No images, large enough to have an output."""
        return module.weight.new_zeros(0, module.in_channels, *(2 * int(p) + 1 for p in module.padding))

    def matrix(self, module: Transposed, x: Tensor) -> Tensor:
        """The weight [channels, units a group, kernel] as that of the convolution [units, channels a group x taps]."""
        return self._swapped(module, x).flatten(1)

    def from_matrix(self, module: Transposed, matrix: Tensor) -> Tensor:  # noqa: D102
        channels = module.in_channels // module.groups
        return self._swapped(module, matrix.reshape(-1, channels, *module.kernel_size)).contiguous()

    def _swapped(self, module: Transposed, x: Tensor) -> Tensor:
        """Channels and units swapped in each group, and taps read backwards; twice it is nothing."""
        taps = tuple(range(2, x.dim()))
        return x.unflatten(0, (module.groups, -1)).transpose(1, 2).flatten(0, 1).flip(taps)

    def operator(self, module: Transposed, inputs: Sequence[Tensor]) -> ConvolutionOperator:  # noqa: D102
        x, kernel, dilation = images(module, inputs), module.kernel_size, module.dilation
        spread = x.new_zeros(*x.shape[:2], *((s - 1) * t + 1 for s, t in zip(x.shape[2:], module.stride, strict=True)))
        every(spread, module.stride).copy_(x)
        pad: list[int] = []
        for k, _, p, d, more in zip(*self._geometry(module), strict=True):
            before = d * (k - 1) - p
            pad = [before, before + more, *pad]  # the last dimension comes first
        spread = nn.functional.pad(spread, pad)  # less than nothing cuts off
        if len(kernel) == 1:
            spread, kernel, dilation = spread.unsqueeze(2), (1, *kernel), (1, *dilation)
        return ConvolutionOperator(spread, module.bias is not None, kernel, dilation=dilation, groups=module.groups)

    def _geometry(self, module: Transposed) -> Sequence[Sequence[int]]:
        """Size, stride, padding, dilation and output padding of each dimension of the kernel."""
        padding: Sequence[int] = module.padding  # type: ignore[assignment]
        return module.kernel_size, module.stride, padding, module.dilation, module.output_padding
