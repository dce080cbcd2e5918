"""One pass through a network that watches what consumes the outputs of its layers, and what reads their weights."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from locoprop_lightning.errors import UserError
from locoprop_lightning.layers import rounding
from locoprop_lightning.layers.compiled import uncompiled
from locoprop_lightning.layers.consumers import name_of, transfer_of
from locoprop_lightning.layers.kind import LayerKind
from locoprop_lightning.local.transfer import Identity, Transfer

Candidates = Mapping[str, tuple[nn.Module, LayerKind]]


def call(network: nn.Module, inputs: Any) -> Any:
    """Output of a network; a tuple or list of inputs becomes its arguments, a mapping its keyword arguments."""
    if isinstance(inputs, Mapping):
        return network(**inputs)
    return network(*inputs) if isinstance(inputs, tuple | list) else network(inputs)


def probe(network: nn.Module, inputs: Any, layers: Candidates) -> "Probe":
    """Runs the network once, uncompiled, in eval mode; leaves random state, buffers and modes as they were.

    Args:
        network: The network.
        inputs: Those of a batch, as ``call`` takes them.
        layers: The layers to watch.
    """
    modes = [(m, m.training) for m in network.modules()]
    buffers = [(m, name, b, b.clone()) for m in network.modules() for name, b in m._buffers.items() if b is not None]
    watch = Probe(layers)
    hooks = [m.register_forward_hook(watch.hook(name), with_kwargs=True) for name, (m, _) in layers.items()]
    devices = {x.device for x in tree_leaves(inputs) if isinstance(x, Tensor) and x.device.type == "cuda"}
    try:
        network.eval()
        with torch.random.fork_rng(devices=list(devices)), torch.enable_grad(), uncompiled(), watch:
            output = call(network, inputs)
        watch.finish(output)
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes:
            module.training = training
        with torch.no_grad():
            for module, name, buffer, value in buffers:
                module._buffers[name] = buffer.copy_(value)  # forward may have written into it, or bound another
    return watch


@torch.no_grad()
def _acts(module: nn.Module, kind: LayerKind, x: Any, output: Any) -> bool:
    """Whether an output is the layer's matrix times its input, but for the rounding of its type."""
    if not (isinstance(x, Tensor) and isinstance(output, Tensor) and output.is_floating_point()):
        return False
    weight, bias = kind.parameters(module)
    dtype = rounding.coarsest(x, output, weight)
    wide = torch.promote_types(torch.float32, weight.dtype)
    with torch.autocast(output.device.type, enabled=False):
        matrix = kind.matrix(module, weight.detach()).to(wide)
        start = matrix if bias is None else torch.cat([matrix, bias.detach().to(wide)[:, None]], 1)
        try:
            operator = kind.operator(module, [x.detach().to(wide) if x.is_floating_point() else x])
            a = kind.rows(module, output.detach().to(wide))
            return not bool(rounding.differs(operator, start, a, dtype))
        except (RuntimeError, IndexError, ValueError):  # its input or its output has another shape
            return False


class Probe(TorchFunctionMode):
    """Watches which functions consume the outputs of layers, and which read their weights."""

    def __init__(self, layers: Candidates) -> None:
        super().__init__()
        self._layers = layers
        self._signatures: dict[str, set[Hashable]] = {name: set() for name in layers}
        self._own = {name for name, (layer, kind) in layers.items() if kind.has_own_forward(layer)}  # before any hook
        self.calls = dict.fromkeys(layers, 0)
        self._reads = {id(p): 0 for layer, _ in layers.values() for p in layer.parameters()}
        self._consumers: dict[str, list[Transfer | None]] = {name: [] for name in layers}
        self._functions: dict[str, list[str]] = {name: [] for name in layers}  # names of the consumers
        self._outputs: dict[int, tuple[str, Tensor]] = {}  # keeps the tensors, so that no id is used twice
        self._is_output: set[str] = set()
        self._paused = False  # while the probe itself computes
        self.strangers: set[str] = set()  # layers whose forward is their own, and their output not their operator's

    def hook(self, name: str) -> Callable[[nn.Module, Any, Any, Tensor], None]:
        """A forward hook that takes in the calls of a layer."""
        kind = self._layers[name][1]

        def hook(module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
            self.calls[name] += 1
            self._paused = True
            try:
                x = kind.input(args, kwargs)
            except UserError:
                if name not in self._own:
                    raise
                self.strangers.add(name)  # its forward has arguments of its own
                self._paused = False
                return
            self._signatures[name].add(kind.signature(module, x))
            if (name in self._own and not _acts(module, kind, x, output)) or not kind.fits(module, x, output):
                self.strangers.add(name)
            self._paused = False
            self._outputs[id(output)] = (name, output)

        return hook

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if self._paused:
            return result
        made = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        if not made and func is not Tensor.__setitem__:  # an attribute such as shape or dim() is no consumer
            return result
        taken = {id(x): x for x in tree_leaves((list(args), kwargs)) if isinstance(x, Tensor)}
        for key, tensor in taken.items():
            if key in self._reads and not any(x is tensor for x in made):  # which a cast to its own type gives back
                self._reads[key] += 1
            if key in self._outputs and self._outputs[key][1] is tensor:
                name = self._outputs[key][0]
                layer, kind = self._layers[name]
                self._consumers[name].append(transfer_of(func, args, kwargs, kind.units(layer)))
                self._functions[name].append(name_of(func))
                if any(x is tensor for x in made):  # in place: what follows consumes the activation
                    del self._outputs[key]
        return result

    def read_elsewhere(self, name: str) -> bool:
        """Whether a parameter was used more often than the layer was called, or less, as by a function of its own."""
        return any(self._reads[id(p)] != self.calls[name] for p in self._layers[name][0].parameters())

    def signatures_differ(self, name: str) -> bool:
        """Whether calls had inputs whose rows cannot be joined."""
        return len(self._signatures[name]) > 1

    def finish(self, output: Any) -> None:
        """Takes in the network's output, and lets go of all tensors."""
        for tensor in tree_leaves(output):
            if id(tensor) in self._outputs:
                self._is_output.add(self._outputs[id(tensor)][0])
        self._outputs.clear()

    def transfer(self, name: str) -> tuple[Transfer, str, bool]:
        """The transfer that follows a layer, what there is to say of it, and whether the layer is the output."""
        consumers = self._consumers[name]
        if name in self._is_output:
            return Identity(), "" if not consumers else "output that is used inside too", not consumers
        first = consumers[0] if consumers else None
        if first is None or len(consumers) != self.calls[name]:
            names = ", ".join(dict.fromkeys(self._functions[name]))
            return Identity(), "no single known activation follows" + (f" ({names})" if names else ""), False
        if any(repr(c) != repr(first) for c in consumers):
            return Identity(), "different activations follow", False
        return first, "", False
