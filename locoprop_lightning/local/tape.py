"""Records inputs Y, pre-activations A and gradients G of chosen layers in one forward and backward pass."""

from collections.abc import Mapping
from types import TracebackType

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class Record:
    """What one layer did in one pass. A layer that was called several times has its rows joined.

    Attributes:
        calls: How often the layer was called.
    """

    def __init__(self, layer: nn.Linear) -> None:
        self._layer = layer
        self._inputs: list[Tensor] = []
        self._outputs: list[tuple[Tensor, int]] = []
        self._gradients: dict[int, Tensor] = {}
        self.autocast = False

    def add(self, inputs: Tensor, output: Tensor) -> None:
        """Takes in one call of the layer; its gradient follows in the backward pass."""
        call = self.calls
        self.autocast = self.autocast or torch.is_autocast_enabled(output.device.type)
        self._inputs.append(inputs.detach())
        self._outputs.append((output.detach(), output._version))
        # Registered before any in-place activation, so it sees the gradient w.r.t. the pre-activation itself.
        output.register_hook(lambda gradient: self._gradients.__setitem__(call, gradient))

    @property
    def calls(self) -> int:  # noqa: D102
        return len(self._inputs)

    @property
    def complete(self) -> bool:
        """Whether the layer was called and the backward pass reached it."""
        return bool(self._gradients)

    def rows(self) -> tuple[Tensor, Tensor, Tensor]:
        """Returns Y [n, d_in], A [n, d_out] and G [n, d_out], in float32 at least."""
        inputs, outputs, gradients = [], [], []
        for call, (y, (a, version)) in enumerate(zip(self._inputs, self._outputs, strict=True)):
            y = _matrix(y)
            overwritten = a._version != version  # by an in-place activation
            a = nn.functional.linear(y, *_values(self._layer)) if overwritten else _matrix(a)
            g = self._gradients.get(call)
            inputs.append(y)
            outputs.append(a)
            gradients.append(torch.zeros_like(a) if g is None else _matrix(g))
        return _join(inputs), _join(outputs), _join(gradients)


class Tape:
    """Context manager around a forward pass; the gradients come with the backward pass after it.

    Nothing is hooked outside of it, so that a forward pass repeated during the backward pass is not recorded.

    Args:
        layers: The layers to record, by name.
    """

    def __init__(self, layers: Mapping[str, nn.Linear]) -> None:
        self._layers = layers
        self._handles: list[RemovableHandle] = []
        self.records = {name: Record(layer) for name, layer in layers.items()}

    def __enter__(self) -> "Tape":
        for name, layer in self._layers.items():
            self._handles.append(layer.register_forward_hook(self._hook(self.records[name]), with_kwargs=True))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    @staticmethod
    def _hook(record: Record):  # type: ignore[no-untyped-def]
        def hook(layer: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: Tensor) -> None:
            if output.requires_grad:
                record.add(args[0] if args else kwargs["input"], output)

        return hook


def _matrix(x: Tensor) -> Tensor:
    x = x.reshape(-1, x.shape[-1])
    return x if x.dtype == torch.float64 else x.float()


def _values(layer: nn.Linear) -> tuple[Tensor, Tensor | None]:
    bias = None if layer.bias is None else _matrix(layer.bias.detach()[None])[0]
    return _matrix(layer.weight.detach()), bias


def _join(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
