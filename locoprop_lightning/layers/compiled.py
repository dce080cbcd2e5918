"""Networks of which ``torch.compile`` has compiled parts, where hooks and modes that watch a pass do not reach."""

import logging
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

_log = logging.getLogger(__name__)
_WRAPPED = "_orig_mod"  # what torch.compile calls the module that it wraps


def original(network: nn.Module) -> nn.Module:
    """The network that ``torch.compile`` has wrapped, whose names are the user's; any other as it is."""
    inner = network._modules.get(_WRAPPED)
    return network if inner is None else inner


def named_modules(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """As ``network.named_modules()``, without the names of wrappers."""
    for name, module in network.named_modules():
        if _WRAPPED not in module._modules:
            yield ".".join(part for part in name.split(".") if part != _WRAPPED), module


def is_compiled(network: nn.Module) -> bool:
    """Whether a part of the network is compiled."""
    return any(
        _WRAPPED in module._modules
        or module._compiled_call_impl is not None
        or hasattr(module.forward, "_torchdynamo_orig_callable")
        for module in network.modules()
    )


def uncompiled() -> AbstractContextManager[object]:
    """Context in which networks run as they are written, whatever is compiled of them, or of functions they call."""
    compiles = "torch._dynamo" in sys.modules  # else nothing has been compiled, and importing it takes seconds
    return torch.compiler.set_stance("force_eager") if compiles else nullcontext()


def tell_uncompiled(network: nn.Module) -> None:
    """Says of a network of which something is compiled that training will not make use of it."""
    if is_compiled(network):
        _log.warning("Training steps run the network uncompiled, since they record its layers; other passes do not.")
