"""Which layers are local, and the transfer that follows each, found by one probing forward pass."""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from locoprop_lightning.errors import UserError
from locoprop_lightning.layers.kind import LayerKind, kind_of
from locoprop_lightning.local.transfer import (
    Identity,
    LeakyReLU,
    ReLU,
    Sigmoid,
    Softmax,
    Softplus,
    Tanh,
    Transfer,
    resolve_transfer,
)


class LayerInfo:
    """A layer with weights and who trains it.

    Attributes:
        name: Name in the network.
        module: The layer.
        transfer: What follows it; None for a layer that is not local.
        reason: Why it is not local, or why its transfer is the identity; empty where there is nothing to say.
        output: Whether its pre-activation is the network's output.
    """

    def __init__(
        self, name: str, module: nn.Module, transfer: Transfer | None, reason: str = "", output: bool = False
    ) -> None:
        self.name = name
        self.module = module
        self.transfer = transfer
        self.reason = reason
        self.output = output

    @property
    def local(self) -> bool:
        """Whether a local solver trains the layer."""
        return self.transfer is not None


def call(network: nn.Module, inputs: Any) -> Any:
    """Output of a network; a tuple or list of inputs becomes its arguments, a mapping its keyword arguments."""
    if isinstance(inputs, Mapping):
        return network(**inputs)
    return network(*inputs) if isinstance(inputs, tuple | list) else network(inputs)


Candidates = Mapping[str, tuple[nn.Module, LayerKind]]


def candidates(network: nn.Module, skip: Sequence[str] = ()) -> dict[str, tuple[nn.Module, LayerKind]]:
    """Layers that a local solver may train, with their kinds, by name.

    They are of a registered kind, trainable, not skipped, and their weights are their own.

    Raises:
        UserError: If a pattern of ``skip`` matches no layer.
    """
    known = {name: (m, kind) for name, m in network.named_modules() if (kind := kind_of(m)) is not None}
    check_patterns("skip", skip, known)
    owners: dict[Tensor, int] = {}
    for _, parameter in network.named_parameters(remove_duplicate=False):
        owners[parameter] = owners.get(parameter, 0) + 1
    found = {}
    for name, (layer, kind) in known.items():
        parameters = list(layer.parameters())
        own = all(p.is_leaf and p.requires_grad and owners[p] == 1 for p in parameters)
        named = [p for p in kind.parameters(layer) if p is not None]
        plain = all(isinstance(p, nn.Parameter) for p in named) and len(parameters) == len(named)
        plain = plain and not kind.has_own_forward(layer)
        if own and plain and not any(fnmatchcase(name, pattern) for pattern in skip):
            found[name] = layer, kind
    return found


def check_patterns(setting: str, patterns: Iterable[str], names: Iterable[str]) -> None:
    """Refuses a pattern that matches no name, as a typing error would.

    Raises:
        UserError: Names the setting, the pattern and the names there are.
    """
    names = list(names)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UserError(f"{setting}: {pattern!r} matches no layer; the layers are {', '.join(names) or 'none'}.")


def check_names(setting: str, names: Iterable[str], layers: Iterable[str]) -> None:
    """Refuses a name that is no local layer's.

    Raises:
        UserError: Names the setting, the name and the layers there are.
    """
    layers = list(layers)
    for name in names:
        if name not in layers:
            raise UserError(f"{setting}: {name!r} is not a local layer; they are {', '.join(layers) or 'none'}.")


def discover(
    network: nn.Module,
    inputs: Any,
    skip: Sequence[str] = (),
    transfers: Mapping[str, "str | Transfer"] | None = None,
    objective: str = "matching",
    output_transfer: str | Transfer = "identity",
) -> list[LayerInfo]:
    """Runs the network once, in eval mode and without gradients, and says of every layer who trains it.

    The pass watches which functions consume each layer's output, so modules, functional calls and Tensor methods all
    count. Random state, buffers and training modes are left as they were.

    Args:
        network: The network.
        inputs: Those of a batch, as ``call`` takes them.
        skip: Patterns of layers that are not local.
        transfers: Transfer of a layer by name, overriding what is found.
        objective: "matching" takes the activation that follows a layer, "squared" the identity for all.
        output_transfer: Transfer of a layer whose pre-activation is the network's output.

    Returns:
        Every layer that has parameters of its own, in the network's order.
    """
    found = candidates(network, skip)
    transfers = dict(transfers or {})
    check_names("transfers", transfers, found)
    probe = _probe(network, inputs, found)
    layers = []
    for name, module in network.named_modules():
        if not any(True for _ in module.parameters(recurse=False)):
            continue
        if name not in found:
            layers.append(LayerInfo(name, module, None, _why_not(name, module, skip)))
        elif probe.read_elsewhere(name):
            layers.append(LayerInfo(name, module, None, "weights are read outside the layer"))
        elif probe.calls[name] == 0:  # a later batch may call it
            transfer = resolve_transfer(transfers.get(name, "identity"))
            layers.append(LayerInfo(name, module, transfer, "not called in the first batch"))
        elif probe.signatures_differ(name):
            layers.append(LayerInfo(name, module, None, "called with images of different sizes"))
        else:
            transfer, reason, output = probe.transfer(name)
            if objective == "squared":
                transfer, reason = Identity(), ""
            elif output:
                transfer = resolve_transfer(output_transfer)
            if name in transfers:
                transfer, reason = resolve_transfer(transfers[name]), "set by transfers"
            layers.append(LayerInfo(name, module, transfer, reason, output))
    return layers


def _why_not(name: str, module: nn.Module, skip: Sequence[str]) -> str:
    if any(fnmatchcase(name, pattern) for pattern in skip):
        return "skipped"
    trainable = [p.requires_grad for p in module.parameters(recurse=False)]
    if not all(trainable):
        return "partly frozen" if any(trainable) else "frozen"
    kind = kind_of(module)
    if kind is None:  # normalisations and the like need no word
        return "no registered kind takes it" if any(p.dim() > 1 for p in module.parameters(recurse=False)) else ""
    own = kind.has_own_forward(module)
    return "a forward or a forward hook of its own" if own else "weights are shared or parametrized"


def _probe(network: nn.Module, inputs: Any, layers: Candidates) -> "_Probe":
    modes = [(m, m.training) for m in network.modules()]
    buffers = [(m, name, b, b.clone()) for m in network.modules() for name, b in m._buffers.items() if b is not None]
    probe = _Probe(layers)
    hooks = [m.register_forward_hook(probe.hook(name), with_kwargs=True) for name, (m, _) in layers.items()]
    devices = {x.device for x in tree_leaves(inputs) if isinstance(x, Tensor) and x.device.type == "cuda"}
    try:
        network.eval()
        with torch.random.fork_rng(devices=list(devices)), torch.no_grad(), probe:
            output = call(network, inputs)
        probe.finish(output)
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes:
            module.training = training
        with torch.no_grad():
            for module, name, buffer, value in buffers:
                module._buffers[name] = buffer.copy_(value)  # forward may have written into it, or bound another
    return probe


class _Probe(TorchFunctionMode):
    """Watches which functions consume the outputs of layers, and which read their weights."""

    def __init__(self, layers: Candidates) -> None:
        super().__init__()
        self._layers = layers
        self._signatures: dict[str, set[Hashable]] = {name: set() for name in layers}
        self.calls = dict.fromkeys(layers, 0)
        self._reads = {id(p): 0 for layer, _ in layers.values() for p in layer.parameters()}
        self._consumers: dict[str, list[Transfer | None]] = {name: [] for name in layers}
        self._functions: dict[str, list[str]] = {name: [] for name in layers}  # names of the consumers
        self._outputs: dict[int, tuple[str, Tensor]] = {}  # keeps the tensors, so that no id is used twice
        self._is_output: set[str] = set()

    def hook(self, name: str) -> Callable[[nn.Module, Any, Any, Tensor], None]:
        kind = self._layers[name][1]

        def hook(module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
            self.calls[name] += 1
            self._signatures[name].add(kind.signature(module, kind.input(args, kwargs)))
            self._outputs[id(output)] = (name, output)

        return hook

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        made = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        if not made and func is not Tensor.__setitem__:  # an attribute such as shape or dim() is no consumer
            return result
        taken = {id(x): x for x in tree_leaves((list(args), kwargs)) if isinstance(x, Tensor)}
        for key, tensor in taken.items():
            if key in self._reads:
                self._reads[key] += 1
            if key in self._outputs and self._outputs[key][1] is tensor:
                name = self._outputs[key][0]
                layer, kind = self._layers[name]
                self._consumers[name].append(_transfer_of(func, args, kwargs, kind.units(layer)))
                self._functions[name].append(getattr(func, "__name__", "a function").strip("_"))
                if any(x is tensor for x in made):  # in place: what follows consumes the activation
                    del self._outputs[key]
        return result

    def read_elsewhere(self, name: str) -> bool:
        """Whether a parameter was used more often than the layer was called, or less, as by a function of its own."""
        return any(self._reads[id(p)] != self.calls[name] for p in self._layers[name][0].parameters())

    def signatures_differ(self, name: str) -> bool:
        return len(self._signatures[name]) > 1

    def finish(self, output: Any) -> None:
        for tensor in tree_leaves(output):
            if id(tensor) in self._outputs:
                self._is_output.add(self._outputs[id(tensor)][0])
        self._outputs.clear()

    def transfer(self, name: str) -> tuple[Transfer, str, bool]:
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


def _transfer_of(
    func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], units: int
) -> Transfer | None:
    """The transfer that a torch function or Tensor method computes of its first argument, if it is a known one.

    Args:
        func: The function.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        units: The dimension of the units in the first argument, from the last, which is -1.
    """

    def argument(position: int, name: str, default: Any) -> Any:
        return args[position] if len(args) > position else kwargs.get(name, default)

    name = getattr(func, "__name__", "").rstrip("_")
    if name == "tanh":
        return Tanh()
    if name == "relu":
        return ReLU()
    if name == "sigmoid":
        return Sigmoid()
    if name == "leaky_relu":
        slope = argument(1, "negative_slope", 0.01)
        return LeakyReLU(slope) if slope >= 0 else None
    if name == "softplus":
        return Softplus(float(argument(1, "beta", 1.0)))
    if name == "softmax" and args:
        dim = argument(1, "dim", None)
        return Softmax() if dim is not None and dim in (units, args[0].dim() + units) else None
    return None
