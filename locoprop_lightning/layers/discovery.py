"""Which layers are local, and the transfer that follows each, found by one probing forward pass."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from locoprop_lightning.errors import UserError, check_object, listed
from locoprop_lightning.layers.compiled import named_modules
from locoprop_lightning.layers.kind import LayerKind, kind_of
from locoprop_lightning.layers.probe import probe
from locoprop_lightning.local import Transfer, resolve_transfer
from locoprop_lightning.local.transfer import Identity

ON_REQUEST = "local on request (include)"
UNSEEN: Mapping[tuple[type[nn.Module], ...], str] = {
    (nn.MultiheadAttention,): "reads its weights in a function of torch; projections that are nn.Linear are local",
    (nn.RNNBase, nn.RNNCellBase): "reads its weights in a kernel of torch; networks.Unrolled has it in local layers",
}


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

    def __repr__(self) -> str:
        told = f"f={self.transfer.name}" if self.transfer is not None else "not local"
        return f"LayerInfo({self.name!r}, {type(self.module).__name__}, {told}{f': {self.reason}' * bool(self.reason)})"


def candidates(
    network: nn.Module, skip: Sequence[str] = (), include: Sequence[str] = ()
) -> dict[str, tuple[nn.Module, LayerKind]]:
    """Layers that a local solver may train, with their kinds, by name.

    They are of a registered kind, real, trainable, not skipped, asked for where their kind is local on request only,
    and their weights are their own. What they compute is looked at in the first passes.

    Args:
        network: The network.
        skip: Patterns of layers that are not local.
        include: Patterns of layers that are local though their kind is so on request only.

    Raises:
        UserError: If a pattern matches no layer.
    """
    known = {name: (m, kind) for name, m in named_modules(network) if (kind := kind_of(m)) is not None}
    check_patterns("skip", skip, known)
    check_patterns("include", include, known)
    told = reasons(network, skip, include)
    return {name: layer for name, layer in known.items() if name not in told}


def check_network(owner: str, network: nn.Module) -> None:
    """Refuses what is no network.

    Raises:
        UserError: Says what it is.
    """
    check_object(owner, nn.Module, "a network, a torch.nn.Module such as MLP(64, 32, 1)", network=network)


def check_shapes(network: nn.Module) -> None:
    """Refuses layers whose weights have no shape yet, which optimizers would be given.

    Raises:
        UserError: Names the layer.
    """
    for name, module in named_modules(network):
        if any(isinstance(p, UninitializedParameter) for p in module.parameters(recurse=False)):
            raise UserError(
                f"network: layer {name!r} has no shape yet: call the network once with a batch of its data."
            )


def check_patterns(
    setting: str, patterns: Iterable[str], names: Iterable[str], others: Mapping[str, str] | None = None
) -> None:
    """Refuses a pattern that matches no name, as a typing error would.

    Args:
        setting: Name of the setting.
        patterns: The patterns.
        names: Names of the layers.
        others: Why other layers are none of these, by name.

    Raises:
        UserError: Names the setting, the pattern and the names there are.
    """
    names = list(names)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            why = [f"{name}: {reason}" for name, reason in (others or {}).items() if fnmatchcase(name, pattern)]
            told = f" that is local ({listed(why, 3)})" if why else ""
            raise UserError(f"{setting}: {pattern!r} matches no layer{told}; the layers are {listed(names) or 'none'}.")


def check_names(setting: str, names: Iterable[str], layers: Iterable[str]) -> None:
    """Refuses a name that is no local layer's.

    Raises:
        UserError: Names the setting, the name and the layers there are.
    """
    layers = list(layers)
    for name in names:
        if name not in layers:
            raise UserError(f"{setting}: {name!r} is not a local layer; they are {listed(layers) or 'none'}.")


def discover(
    network: nn.Module,
    inputs: Any,
    skip: Sequence[str] = (),
    transfers: Mapping[str, "str | Transfer"] | None = None,
    objective: str = "matching",
    output_transfer: str | Transfer = "identity",
    include: Sequence[str] = (),
) -> list[LayerInfo]:
    """Runs the network once, in eval mode, and says of every layer who trains it.

    The pass watches which functions consume each layer's output, so modules, functional calls and Tensor methods all
    count. It builds a graph, which is dropped, since a network may take gradients inside its forward. Random state,
    buffers and training modes are left as they were.

    Args:
        network: The network.
        inputs: Those of a batch, as ``call`` takes them.
        skip: Patterns of layers that are not local.
        transfers: Transfer of a layer by name, overriding what is found.
        objective: "matching" takes the activation that follows a layer, "squared" the identity for all.
        output_transfer: Transfer of a layer whose pre-activation is the network's output.
        include: As ``candidates`` takes it.

    Returns:
        Every layer that has parameters of its own, in the network's order.
    """
    found, told = candidates(network, skip, include), reasons(network, skip, include)
    transfers = dict(transfers or {})
    check_names("transfers", transfers, found)
    watched = probe(network, inputs, found)
    layers = []
    for name, module in named_modules(network):
        if not any(True for _ in module.parameters(recurse=False)):
            continue
        if name not in found:
            layers.append(LayerInfo(name, module, None, told.get(name, "")))
        elif name in watched.strangers:
            layers.append(LayerInfo(name, module, None, "its output is not its matrix times its input"))
        elif watched.read_elsewhere(name):
            layers.append(LayerInfo(name, module, None, "weights are read outside the layer"))
        elif watched.calls[name] == 0:  # a later batch may call it
            transfer = resolve_transfer(transfers.get(name, "identity"))
            layers.append(LayerInfo(name, module, transfer, "not called in the first batch"))
        elif watched.signatures_differ(name):
            layers.append(LayerInfo(name, module, None, "called with images of different sizes"))
        else:
            transfer, reason, output = watched.transfer(name)
            if objective == "squared":
                transfer, reason = Identity(), ""
            elif output:
                transfer = resolve_transfer(output_transfer)
            if name in transfers:
                transfer, reason = resolve_transfer(transfers[name]), "set by transfers"
            layers.append(LayerInfo(name, module, transfer, reason, output))
    return layers


def reasons(network: nn.Module, skip: Sequence[str] = (), include: Sequence[str] = ()) -> dict[str, str]:
    """Why layers with weights are not local, by name, where there is a reason to give.

    Args:
        network: The network.
        skip: As ``candidates`` takes it.
        include: As ``candidates`` takes it.
    """
    owners: Counter[Tensor] = Counter(parameter for _, parameter in network.named_parameters(remove_duplicate=False))
    told = {}
    for name, module in named_modules(network):
        kind, own = kind_of(module), list(module.parameters(recurse=False))
        if kind is None and not own:
            continue
        if any(fnmatchcase(name, pattern) for pattern in skip):
            told[name] = "skipped"
        elif not all(p.requires_grad for p in own):
            told[name] = "partly frozen" if any(p.requires_grad for p in own) else "frozen"
        elif kind is None:
            told[name] = _without_kind(module)
        else:
            asked = any(fnmatchcase(name, pattern) for pattern in include)
            told[name] = _refusal(module, kind, owners) or ("" if asked or not kind.on_request else ON_REQUEST)
    return {name: reason for name, reason in told.items() if reason}


def _refusal(layer: nn.Module, kind: LayerKind, owners: Mapping[Tensor, int]) -> str:
    """Why a layer of a kind cannot be local; empty where it can."""
    parameters = list(layer.parameters())
    named = [p for p in kind.parameters(layer) if p is not None]
    if any(p.is_complex() for p in parameters):
        return "complex weights"
    if any(owners[p] > 1 for p in parameters):
        return "weights are shared with another layer"
    if not all(isinstance(p, nn.Parameter) and p.is_leaf and p.is_floating_point() for p in named):
        return "weights are made of other parameters (a parametrization)"
    if len(parameters) != len(named):
        others = [name for name, p in layer.named_parameters() if not any(p is own for own in named)]
        return f"has parameters beside weight and bias ({', '.join(others)})"
    if not all(p.requires_grad for p in parameters):
        return "partly frozen"
    return kind.refusal(layer)


def _without_kind(module: nn.Module) -> str:
    """Why a layer of no kind is not local; normalisations and the like need no word."""
    for classes, reason in UNSEEN.items():
        if isinstance(module, classes):
            return reason
    sizes = [p.shape for p in module.parameters(recurse=False)]
    if any(len(size) == 3 and size[0] > 1 for size in sizes):
        return "several matrices in one tensor, such as fused experts; layers that are nn.Linear are local"
    return "no registered kind takes it" if any(len(size) > 1 for size in sizes) else ""
