"""What one layer did in a pass: inputs Y, pre-activations A and gradients G, of the rows that count."""

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from enum import IntEnum

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from locoprop_lightning.errors import UserError
from locoprop_lightning.layers import rounding
from locoprop_lightning.layers.kind import LayerKind, join
from locoprop_lightning.local.blocks import Blocks
from locoprop_lightning.local.operator import LinearOperator


class Content(IntEnum):
    """What the record of a layer is good for; of several records of a layer, the largest counts."""

    UNSEEN = 0  # no call was recorded, or the backward pass reached none
    EMPTY = 1  # the layer was called without rows, as an expert is to which no token was sent
    SOLVABLE = 2
    UNFIT = 3  # images of several sizes, which cannot be joined, or a parameter that is frozen or made of others


class Record:
    """What one layer did in one pass. A layer that was called several times has its rows joined.

    Calls that the backward pass did not reach, as where an output was detached, count for nothing once it is over.

    Args:
        module: The layer.
        kind: Its kind.
        moving: Addresses of memory that changes before the record is used; inputs in it are copied.
        scale: Multiplies every gradient that is read from the record.

    Attributes:
        scale: As given.
        calls: How many calls count.
        followers: By call, the calls, each with its record, whose input is made of this one's output row by row.
        edges: Where the gradient w.r.t. the pre-activation of each call leaves the graph.
        autocast: Whether a call was under autocast.
        dtype: The coarsest type that a call was computed in.
    """

    def __init__(
        self,
        module: nn.Module,
        kind: LayerKind,
        moving: Collection[int] = (),
        scale: float = 1.0,
    ) -> None:
        self._complete = True
        self._index: Tensor | None = None  # rows that count, once the gradients are there
        self._reaching: dict[int, Tensor] = {}  # rows of each call that a gradient reaches, once something asks
        self._blocks: Blocks | None = None  # once something asks for them
        self._module = module
        self._kind = kind
        self._moving = moving
        self.scale = scale
        self._inputs: list[Tensor] = []
        self._outputs: list[tuple[Tensor, int]] = []
        self._gradients: dict[int, Tensor] = {}
        self._passes: Counter[int] = Counter()  # backward passes that reached each call
        self._inner, self._looked = False, 0  # at so many calls
        self._fits = True
        self._lost = False  # whether a call could not be recorded
        self.followers: dict[int, list[tuple[Record, int]]] = {}
        self.edges: list[GradientEdge] = []
        self.autocast = False
        self.dtype = torch.float64

    def lose(self) -> None:
        """Takes in a call that cannot be recorded, which leaves the layer to the rest optimizer."""
        self._lost = True

    def add(self, inputs: Tensor, output: Tensor) -> None:
        """Takes in one call of the layer; its gradient follows in the backward pass.

        Raises:
            NotImplementedError: Within a transformation of torch.func, whose tensors have no memory of their own.
        """
        y = inputs.detach()
        y = y.to(output.dtype) if y.is_floating_point() else y  # what the layer computes with under autocast
        moves = y.untyped_storage().data_ptr() in self._moving  # the first that may raise
        call, weight = len(self._inputs), self._kind.parameters(self._module)[0]
        self.autocast = self.autocast or torch.is_autocast_enabled(output.device.type)
        self.dtype = rounding.coarsest(inputs, output, weight, at_least=self.dtype)
        self._inputs.append(y.clone() if moves else y)
        self._outputs.append((output.detach(), output._version))
        self._fits = self._fits and self._kind.fits(self._module, inputs, output)
        # Both are taken before any in-place activation, so they stand for the pre-activation itself.
        self.edges.append(get_gradient_edge(output))
        # The hook must not know this record, whose edges know the hook: nothing could free such a circle.
        gradients, passes = self._gradients, self._passes

        def take(gradient: Tensor) -> None:
            gradients[call] = gradient
            passes[call] += 1

        output.register_hook(take)

    @property
    def _counting(self) -> list[int]:
        """The calls that count."""
        return sorted(self._gradients) or list(range(len(self._inputs)))

    @property
    def calls(self) -> int:
        """How many calls count."""
        return len(self._counting)

    @property
    def inner(self) -> bool:
        """Whether a gradient was taken within the forward pass or the loss, or none of the loss has come."""
        several = self._inner or any(count > 1 for count in self._passes.values())
        return several or all(p.grad is None for p in self._module.parameters())

    def look(self) -> None:
        """Notes whether a backward pass has reached a call before that of the loss, which begins now."""
        new = range(self._looked, len(self._inputs))
        self._inner, self._looked = self._inner or any(self._passes[call] for call in new), len(self._inputs)

    @property
    def reached(self) -> tuple[dict[int, Tensor], Counter[int]]:
        """Gradients that backward passes have left, by call, and how many passes have reached each call."""
        return dict(self._gradients), self._passes.copy()

    def go_back(self, reached: tuple[dict[int, Tensor], Counter[int]]) -> None:
        """Drops what a backward pass has left.

        Args:
            reached: ``reached`` before it.
        """
        gradients, passes = reached
        self._gradients.clear()
        self._gradients.update(gradients)
        self._passes.clear()
        self._passes.update(passes)

    def leave_out(self) -> None:
        """Leaves out rows that no gradient reaches, such as padding's, where the kind allows it."""
        self._complete = not self._kind.sparse

    def join(self, gradients: Sequence[Tensor | None] | Mapping[int, Tensor]) -> Tensor:
        """Joins the gradients of all calls, or of those that count, to G [n, d_out], in float32 at least.

        Args:
            gradients: That of each call; None is a gradient of zeros.
        """
        g = self._chosen(self._join(gradients))
        return g if self.scale == 1 else g * self.scale

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
                latest_first = [self._reached(call) for call in reversed(self._counting)]  # which asks no deeper
                reached = join(latest_first[::-1])
                counting = reached if counting is None else counting & reached
            self._index = None if counting is None else counting.nonzero()[:, 0]
        return self._index

    def _reached(self, call: int) -> Tensor:
        """Rows of a call that a gradient reaches, bool, or reaches in a call that follows: here all units may be dead.

        Calls follow each other in time, so that this ends, whatever layers they are of. Made once.
        """
        if call not in self._reaching:
            reached = (self._rows(self._gradients[call]) != 0).any(1)
            for record, other in self.followers.get(call, ()):
                if other in record._gradients and len(after := record._reached(other)) == len(reached):
                    reached = reached | after
            self._reaching[call] = reached
        return self._reaching[call]

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
            if count not in (0, samples):
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
        if not self._outputs or self._lost:
            return Content.UNSEEN
        if self.n == 0:
            return Content.EMPTY
        if not self._gradients:
            return Content.UNSEEN
        signatures = {self._kind.signature(self._module, self._inputs[call]) for call in self._counting}
        own = [p for p in self._kind.parameters(self._module) if p is not None]
        free = all(p.requires_grad for p in self._module.parameters()) and all(p.is_leaf for p in own)
        return Content.SOLVABLE if free and self._fits and len(signatures) == 1 else Content.UNFIT

    def operator(self) -> LinearOperator:
        """How the layer acts on Y, the inputs of all its calls; in float32 at least."""
        operator = self._kind.operator(self._module, [_wide(self._inputs[call]) for call in self._counting])
        index = self._rows_that_count()
        return operator if index is None else operator.keep(index)

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


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.is_floating_point() and x.dtype != torch.float64 else x
