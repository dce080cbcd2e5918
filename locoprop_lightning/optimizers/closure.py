"""What torch's optimizers may be given to compute the loss with."""

from collections.abc import Callable
from typing import Any

import torch


def loss_of(closure: Callable[[], Any] | None) -> Any:
    """What a closure returns, called once and with gradients; None without one.

    Args:
        closure: Computes the loss and the gradients, if given.
    """
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()
