"""Optimizers of 16-bit weights that lose no update: what rounding drops of a step is kept and added at the next."""

import logging
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

_log = logging.getLogger(__name__)

_KEY = "remainder"  # in the optimizer's state of a parameter
_NARROW = (torch.bfloat16, torch.float16)


def tell_dropped(network: nn.Module) -> None:
    """Says of a network with 16-bit weights that an optimizer as torch has it loses small updates.

    Args:
        network: The network.
    """
    narrow = next((p.dtype for p in network.parameters() if p.dtype in _NARROW), None)
    if narrow is not None:
        name = str(narrow).removeprefix("torch.")
        _log.warning("Weights in %s drop small updates in back-propagation; bf16-mixed keeps them.", name)


def keep_remainders(optimizer: Optimizer) -> None:
    """Has an optimizer step 16-bit parameters in float32; others stay as they are.

    A bfloat16 weight has 8 bits, so that every update below about 1/400 of it would vanish, however many there are. The
    parameter is float32 while the optimizer steps, with the remainder of the steps before, in 16 bits of its own;
    moments are float32 then. The remainder is part of the optimizer's state, and saved with it.

    Args:
        optimizer: The optimizer; its steps must not call the network.
    """
    if any(p.dtype in _NARROW for group in optimizer.param_groups for p in group["params"]):
        steps, loads = _Widening(), _Widening()
        optimizer.register_step_pre_hook(lambda o, args, kwargs: steps.open(o))
        optimizer.register_step_post_hook(lambda o, args, kwargs: steps.close(o))
        optimizer.register_load_state_dict_pre_hook(lambda o, state: loads.open(o, every=True))
        optimizer.register_load_state_dict_post_hook(lambda o: loads.leave())


class _Widening:
    """Parameters that are float32 for a while."""

    def __init__(self) -> None:
        self._open: list[tuple[Tensor, Tensor, Tensor | None]] = []  # each with its data and gradient of 16 bits

    @torch.no_grad()
    def open(self, optimizer: Optimizer, every: bool = False) -> None:
        """Widens the parameters that have a gradient, and the gradients.

        Args:
            optimizer: The optimizer.
            every: Whether to widen all others, too.
        """
        for p in (p for group in optimizer.param_groups for p in group["params"]):
            if p.dtype in _NARROW and (every or p.grad is not None):
                data, gradient = p.data, p.grad
                wide = data.float()
                if not every and _KEY in (state := _state_of(optimizer, p)):
                    wide += state[_KEY]
                _put(p, wide, None if gradient is None else gradient.float())
                self._open.append((p, data, gradient))

    @torch.no_grad()
    def close(self, optimizer: Optimizer) -> None:
        """Rounds the parameters, and keeps what that drops.

        Args:
            optimizer: The optimizer.
        """
        for p, data, _ in self._open:
            wide = p.data
            data.copy_(wide)  # the memory stays what it was, for all that look at it
            optimizer.state[p][_KEY] = wide.sub_(data).to(data.dtype)
        self.leave()

    def leave(self) -> None:
        """Narrows the parameters to what their memory holds."""
        for p, data, gradient in self._open:
            _put(p, data, gradient)
        self._open.clear()


def _state_of(optimizer: Optimizer, p: Tensor) -> dict[str, Any]:
    """The state of a parameter; optimizers take one that is not there for a first step."""
    return optimizer.state[p] if p in optimizer.state else {}


def _put(p: Tensor, data: Tensor, gradient: Tensor | None) -> None:
    p.grad = None  # which must be of the type of the data
    p.data = data
    p.grad = gradient
