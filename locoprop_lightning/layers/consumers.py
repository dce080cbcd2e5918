"""Which transfer a torch function computes of a layer's output."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, TypeVar, cast

from torch import Tensor
from torch.overrides import wrap_torch_function

from locoprop_lightning.local.activations import CELU, ELU, SELU, Hardsigmoid, Hardtanh, LogSigmoid, ReLU6, Softsign
from locoprop_lightning.local.transfer import (
    LeakyReLU,
    ReLU,
    Sigmoid,
    Softmax,
    Softplus,
    Tanh,
    Transfer,
    check_transfer,
)

_PLAIN: dict[str, type[Transfer]] = {  # functions without arguments of their own
    "tanh": Tanh,
    "relu": ReLU,
    "relu6": ReLU6,
    "selu": SELU,
    "sigmoid": Sigmoid,
    "hardsigmoid": Hardsigmoid,
    "log_sigmoid": LogSigmoid,
    "softsign": Softsign,
}


F = TypeVar("F", bound=Callable[..., Tensor])
_OWN: dict[Callable[..., Any], Transfer] = {}  # those of users


def activation(transfer: Transfer) -> Callable[[F], F]:
    """Registers a function of one's own as an activation: a layer whose output it takes is matched through a transfer.

    Anything may be in the function. It is called as before; the probing pass sees the call, and not what is in it.

    Args:
        transfer: What the function computes of its first argument, a tensor, whatever the others are.

    Raises:
        UserError: For what is no transfer.

    Example:
        >>> from locoprop_lightning.local.transfer import Tanh
        >>> @activation(Tanh())
        ... def my_tanh(x):
        ...     return 1 - 2 / ((2 * x).exp() + 1)
    """
    check_transfer("activation", transfer)

    def register(function: F) -> F:
        @wraps(function)
        def own(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            return function(x, *args, **kwargs)

        seen = wrap_torch_function(lambda x, *args, **kwargs: (x,))(own)
        _OWN[seen] = transfer
        return cast(F, seen)

    return register


def name_of(function: Callable[..., Any]) -> str:
    """The name of a torch function or Tensor method, which is that of its in-place form too."""
    return getattr(function, "__name__", "a function").strip("_")


def transfer_of(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], units: int
) -> Transfer | None:
    """The transfer that a torch function or Tensor method computes of its first argument, if it is a known one.

    Args:
        function: The function.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        units: The dimension of the units in the first argument, from the last, which is -1.
    """

    def argument(position: int, name: str, default: Any) -> Any:
        return args[position] if len(args) > position else kwargs.get(name, default)

    if function in _OWN:
        return _OWN[function]
    name = name_of(function)
    if name in _PLAIN:
        return _PLAIN[name]()
    if name == "leaky_relu":
        slope = argument(1, "negative_slope", 0.01)
        return LeakyReLU(slope) if slope >= 0 else None
    if name in ("elu", "celu"):
        alpha = float(argument(1, "alpha", 1.0))
        return (ELU if name == "elu" else CELU)(alpha) if alpha > 0 else None
    if name == "hardtanh":
        return Hardtanh(float(argument(1, "min_val", -1.0)), float(argument(2, "max_val", 1.0)))
    if name in ("clamp", "clip"):
        return _clamp(argument(1, "min", None), argument(2, "max", None))
    if name == "softplus":
        return Softplus(float(argument(1, "beta", 1.0)))
    if name == "softmax" and args:
        dim = argument(1, "dim", None)
        return Softmax() if dim is not None and dim in (units, args[0].dim() + units) else None
    return None


def _clamp(low: Any, high: Any) -> Transfer | None:
    """What cuts off below and above numbers, of which one may be missing; not tensors, which units may have each."""
    if not all(x is None or isinstance(x, int | float) for x in (low, high)):
        return None
    if low == 0 and high is None:
        return ReLU()
    low, high = -math.inf if low is None else float(low), math.inf if high is None else float(high)
    return Hardtanh(low, high) if low < high else None
