"""Records inputs Y, pre-activations A and gradients G of chosen layers in one forward and backward pass."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from enum import IntEnum
from itertools import islice
from types import TracebackType

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils.hooks import RemovableHandle

from locoprop_lightning.errors import UserError
from locoprop_lightning.layers.kind import LayerKind, join
from locoprop_lightning.local.blocks import Blocks
from locoprop_lightning.local.operator import LinearOperator


class Content(IntEnum):
    """What the record of a layer is good for; of several records of a layer, the largest counts."""

    UNSEEN = 0  # no call was recorded, or the backward pass reached none
    EMPTY = 1  # the layer was called without rows, as an expert is to which no token was sent
    SOLVABLE = 2
    UNFIT = 3  # images of several sizes, which cannot be joined, or a frozen parameter


class Record:
    """What one layer did in one pass. A layer that was called several times has its rows joined.

    Calls that the backward pass did not reach, as where an output was detached, count for nothing once it is over.

    Args:
        module: The layer.
        kind: Its kind.
        moving: Addresses of memory that changes before the record is used; inputs in it are copied.
        scale: Multiplies every gradient that is read from the record.
        complete: Whether all rows count; else those that no gradient reaches, such as padding's, are left out where the
            kind allows it.

    Attributes:
        calls: How many calls count.
        edges: Where the gradient w.r.t. the pre-activation of each call leaves the graph.
        autocast: Whether a call was under autocast.
    """

    def __init__(
        self,
        module: nn.Module,
        kind: LayerKind,
        moving: Collection[int] = (),
        scale: float = 1.0,
        complete: bool = True,
    ) -> None:
        self._complete = complete or not kind.sparse
        self._index: Tensor | None = None  # rows that count, once the gradients are there
        self._blocks: Blocks | None = None  # once something asks for them
        self._module = module
        self._kind = kind
        self._moving = moving
        self._scale = scale
        self._inputs: list[Tensor] = []
        self._outputs: list[tuple[Tensor, int]] = []
        self._gradients: dict[int, Tensor] = {}
        self.edges: list[GradientEdge] = []
        self.autocast = False

    def add(self, inputs: Tensor, output: Tensor) -> None:
        """Takes in one call of the layer; its gradient follows in the backward pass."""
        call = len(self._inputs)
        self.autocast = self.autocast or torch.is_autocast_enabled(output.device.type)
        y = inputs.detach()
        y = y.to(output.dtype) if y.is_floating_point() else y  # what the layer computes with under autocast
        self._inputs.append(y.clone() if y.untyped_storage().data_ptr() in self._moving else y)
        self._outputs.append((output.detach(), output._version))
        # Both are taken before any in-place activation, so they stand for the pre-activation itself.
        self.edges.append(get_gradient_edge(output))
        # The hook must not know this record, whose edges know the hook: nothing could free such a circle.
        gradients = self._gradients
        output.register_hook(lambda gradient: gradients.__setitem__(call, gradient))

    @property
    def _counting(self) -> list[int]:
        """The calls that count."""
        return sorted(self._gradients) or list(range(len(self._inputs)))

    @property
    def calls(self) -> int:
        """How many calls count."""
        return len(self._counting)

    def forget(self) -> None:
        """Drops the gradients that a backward pass left."""
        self._gradients.clear()

    def join(self, gradients: Sequence[Tensor | None] | Mapping[int, Tensor]) -> Tensor:
        """Joins the gradients of all calls, or of those that count, to G [n, d_out], in float32 at least.

        Args:
            gradients: That of each call; None is a gradient of zeros.
        """
        g = self._chosen(self._join(gradients))
        return g if self._scale == 1 else g * self._scale

    def _join(self, gradients: Sequence[Tensor | None] | Mapping[int, Tensor]) -> Tensor:
        parts = [(gradients[call], self._outputs[call][0]) for call in self._counting]
        return join([self._rows(torch.zeros_like(a) if g is None else g) for g, a in parts])

    def _chosen(self, rows: Tensor) -> Tensor:
        """Those rows that count [n, d], of all."""
        index = self._rows_that_count()
        return rows if index is None else rows[index]

    def _rows_that_count(self) -> Tensor | None:
        """Indices of the rows that count, int64 [n]; None where all do. Waits for the device."""
        if self._index is None and self._gradients:
            counting = self._kind.counting(self._module, [self._inputs[call] for call in self._counting])
            if not self._complete:
                reached = (self._join(self._gradients) != 0).any(1)
                counting = reached if counting is None else counting & reached
            self._index = None if counting is None else counting.nonzero()[:, 0]
        return self._index

    @property
    def n(self) -> int:
        """Number of rows."""
        units = self._kind.units(self._module)
        index = self._rows_that_count()
        if index is not None:
            return len(index)
        outputs = [self._outputs[call][0] for call in self._counting]
        return sum(a.numel() // a.shape[units] for a in outputs)

    def blocks(self, name: str, samples: int) -> Blocks:
        """The rows of each sample and call, of the rows that count; an output without positions has a row a sample.

        Made once.

        Args:
            name: Name of the layer, for messages.
            samples: Samples of the batch, which the first dimension of every output with positions must be.

        Raises:
            UserError: Where it is not.
        """
        if self._blocks is None:
            self._blocks = self._find_blocks(name, samples)
        return self._blocks

    def _find_blocks(self, name: str, samples: int) -> Blocks:
        units, lengths = self._kind.units(self._module), []
        for a in (self._outputs[call][0] for call in self._counting):
            leading = list(a.shape)
            del leading[units]
            count = leading[0] if leading else 1
            if len(leading) > 1 and count not in (0, samples):
                raise UserError(
                    f"shared_rows='reduce': layer {name!r} has outputs {list(a.shape)}, whose first dimension is not "
                    f"that of the batch's {samples} samples; leave the layer out with skip, or take 'expand'."
                )
            lengths += [math.prod(leading[1:])] * count
        index = self._rows_that_count()
        if index is None and len(set(lengths)) <= 1:
            return Blocks(len(lengths), lengths[0] if lengths else 1)
        found = torch.tensor(lengths, device=self._outputs[0][0].device)
        if index is not None:
            owner = torch.repeat_interleave(torch.arange(len(found), device=found.device), found)
            found = torch.bincount(owner[index], minlength=len(found))
            found = found[found > 0]
        return Blocks(len(found), lengths=found)

    @property
    def content(self) -> Content:
        """What the record is good for."""
        if not self._outputs:
            return Content.UNSEEN
        if self.n == 0:
            return Content.EMPTY
        if not self._gradients:
            return Content.UNSEEN
        signatures = {self._kind.signature(self._module, self._inputs[call]) for call in self._counting}
        free = all(p.requires_grad for p in self._module.parameters())
        return Content.SOLVABLE if free and len(signatures) == 1 else Content.UNFIT

    def operator(self) -> LinearOperator:
        """How the layer acts on Y, the inputs of all its calls; in float32 at least."""
        operator = self._kind.operator(self._module, [_wide(self._inputs[call]) for call in self._counting])
        index = self._rows_that_count()
        return operator if index is None else operator.select(index)

    def without_rows(self) -> "Record":
        """A record of one call of the layer without rows."""
        record = Record(self._module, self._kind)
        inputs = self._kind.empty(self._module)
        with torch.enable_grad(), torch.autocast(inputs.device.type, enabled=False):
            record.add(inputs, self._kind.call(self._module, inputs))
        return record

    def pre_activation(self, operator: LinearOperator) -> Tensor:
        """A [n, d_out], in float32 at least; made anew where an in-place activation has overwritten it.

        Args:
            operator: What ``operator`` returned.
        """
        outputs = [self._outputs[call] for call in self._counting]
        if any(a._version != version for a, version in outputs):
            weight, bias = self._kind.parameters(self._module)
            parts = [self._kind.matrix(self._module, _wide(weight.detach()))]
            if bias is not None:
                parts.append(_wide(bias.detach())[:, None])
            return operator.apply(torch.cat(parts, 1))
        return self._chosen(join([self._rows(a) for a, _ in outputs]))

    def gradient(self) -> Tensor:
        """G [n, d_out], in float32 at least."""
        return self.join(self._gradients or [None] * len(self._inputs))

    def _rows(self, x: Tensor) -> Tensor:
        return self._kind.rows(self._module, _wide(x))


class Tape:
    """Context manager around a forward pass; the gradients come with the backward pass after it.

    Nothing is hooked outside of it, so that a forward pass repeated during the backward pass is not recorded.

    Args:
        layers: The layers to record and their kinds, by name.
        moving: Tensors that change before the records are used; inputs that share their memory are copied.
        scale: Multiplies every gradient that leaves the tape.
        complete: Whether all rows count, as in ``Record``.
    """

    def __init__(
        self,
        layers: Mapping[str, tuple[nn.Module, LayerKind]],
        moving: Iterable[Tensor] = (),
        scale: float = 1.0,
        complete: bool = True,
    ) -> None:
        self._layers = layers
        self._handles: list[RemovableHandle] = []
        storages = {x.untyped_storage().data_ptr() for x in moving}
        self.records = {
            name: Record(module, kind, storages, scale, complete) for name, (module, kind) in layers.items()
        }

    def __enter__(self) -> "Tape":
        for name, (module, kind) in self._layers.items():
            hook = self._hook(self.records[name], kind)
            self._handles.append(module.register_forward_hook(hook, with_kwargs=True))
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

    def gradients(self, loss: Tensor) -> dict[str, list[Tensor | None]]:
        """Gradients of another loss of the same forward pass, of each call of a layer, as ``Record.join`` takes them.

        To be called before the backward pass.
        """
        edges = [edge for record in self.records.values() for edge in record.edges]
        try:
            found = iter(torch.autograd.grad(loss, edges, retain_graph=True, allow_unused=True))
        except RuntimeError as error:
            if "checkpoint" not in str(error).lower():
                raise
            raise UserError(
                "The oracle's sampled labels need a backward pass of their own, which checkpoint(use_reentrant=True) "
                "refuses: set its samples=0, or use_reentrant=False."
            ) from error
        for record in self.records.values():
            record.forget()  # what the hooks kept of this pass
        return {name: list(islice(found, record.calls)) for name, record in self.records.items() if record.calls}

    @staticmethod
    def _hook(record: Record, kind: LayerKind):  # type: ignore[no-untyped-def]
        def hook(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: Tensor) -> None:
            if output.requires_grad:
                record.add(kind.input(args, kwargs), output)

        return hook


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.is_floating_point() and x.dtype != torch.float64 else x
