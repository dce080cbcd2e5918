"""Records chosen layers in one forward and backward pass."""

from collections.abc import Iterable, Mapping
from itertools import islice
from types import TracebackType

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.utils.hooks import RemovableHandle

from locoprop_lightning.errors import UserError
from locoprop_lightning.layers.kind import LayerKind
from locoprop_lightning.layers.record import Record

_FEW = 8  # functions between two layers
_ROWWISE = {  # backward functions of what keeps rows in their places: activations that may be flat, dropout, and views
    f"{name}Backward"
    for name in (
        *("Relu", "Clamp", "ClampMin", "ClampMax", "Hardtanh", "Hardsigmoid", "Hardswish", "Threshold", "Pow", "Mul"),
        *("NativeDropout", "View", "UnsafeView", "ReshapeAlias", "Clone", "ToCopy"),
    )
}


class Tape:
    """Context manager around a forward pass; the gradients come with the backward pass after it.

    Nothing is hooked outside of it, so that a forward pass repeated during the backward pass is not recorded. It may be
    entered again for the pass of a further batch, whose rows follow.

    Args:
        layers: The layers to record and their kinds, by name.
        moving: Tensors that change before the records are used; inputs that share their memory are copied.
        scale: Multiplies every gradient that leaves the tape.
    """

    def __init__(
        self,
        layers: Mapping[str, tuple[nn.Module, LayerKind]],
        moving: Iterable[Tensor] = (),
        scale: float = 1.0,
    ) -> None:
        self._layers = layers
        self._complete = True
        self._makers: dict[Node, tuple[Record, int]] = {}  # calls by the end of their layer's part of the graph
        self._handles: list[RemovableHandle] = []
        storages = {x.untyped_storage().data_ptr() for x in moving}
        self.records = {name: Record(module, kind, storages, scale) for name, (module, kind) in layers.items()}

    def of(self, complete: bool) -> "Tape":
        """The tape, for the pass of a batch.

        Args:
            complete: Whether all rows count; else those that no gradient reaches, such as padding's, are left out.
        """
        self._complete = complete
        for record in self.records.values() if not complete else ():
            record.leave_out()
        return self

    def look(self) -> None:
        """Notes which layers a backward pass has reached before that of the loss, which begins now."""
        for record in self.records.values():
            record.look()

    def rescale(self, factor: float) -> None:
        """Multiplies every gradient that leaves the tape from now on."""
        for record in self.records.values():
            record.scale *= factor

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
        self._makers.clear()

    def gradients(self, loss: Tensor) -> dict[str, list[Tensor | None]]:
        """Gradients of another loss of the same forward pass, of each call of a layer, as ``Record.join`` takes them.

        To be called before the backward pass.
        """
        edges = [edge for record in self.records.values() for edge in record.edges]
        before = [record.reached for record in self.records.values()]
        try:
            found = iter(torch.autograd.grad(loss, edges, retain_graph=True, allow_unused=True))
        except RuntimeError as error:
            if "checkpoint" not in str(error).lower():
                raise
            raise UserError(
                "The oracle's sampled labels need a backward pass of their own, which checkpoint(use_reentrant=True) "
                "refuses: set its samples=0, or use_reentrant=False."
            ) from error
        for record, reached in zip(self.records.values(), before, strict=True):
            record.go_back(reached)  # what the hooks kept of this pass
        return {name: list(islice(found, len(record.edges))) for name, record in self.records.items() if record.edges}

    def _hook(self, record: Record, kind: LayerKind):  # type: ignore[no-untyped-def]
        def hook(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: Tensor) -> None:
            if output.requires_grad:
                x = kind.input(args, kwargs)
                before, call = None if self._complete else self._made_of(x), len(record.edges)
                try:
                    record.add(x, output)
                except NotImplementedError:
                    record.lose()
                    return
                self._makers[record.edges[call].node] = record, call
                if before is not None:
                    maker, its = before
                    maker.followers.setdefault(its, []).append((record, call))

        return hook

    def _made_of(self, x: Tensor) -> tuple[Record, int] | None:
        """The call, with its record, whose output alone a tensor was made of, by few functions that keep rows."""
        node = x.grad_fn
        for _ in range(_FEW):
            if node is None or node in self._makers:
                break
            before = [n for n, _ in node.next_functions if n is not None]
            node = before[0] if len(before) == 1 and node.name().rstrip("0123456789") in _ROWWISE else None
        return None if node is None else self._makers.get(node)
