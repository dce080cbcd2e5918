"""Transfers of further activations, and all transfers by name."""

import math

import torch
from torch import Tensor

from locoprop_lightning.errors import UserError, check_positive
from locoprop_lightning.local.transfer import (
    Identity,
    LeakyReLU,
    ReLU,
    Sigmoid,
    Softmax,
    Softplus,
    Tanh,
    Transfer,
)


class SquaredReLU(Transfer):
    """f(a) = max(a, 0)^2, F(a) = max(a, 0)^3 / 3. Its slope has no bound."""

    name = "squared_relu"
    bound = math.inf
    range = (0.0, math.inf)

    def f(self, a: Tensor) -> Tensor:  # noqa: D102
        return a.relu().square()

    def f_(self, a: Tensor) -> Tensor:  # noqa: D102
        return a.relu_().square_()

    def F(self, a: Tensor) -> Tensor:  # noqa: D102, N802
        return a.relu() ** 3 / 3


class ELU(Transfer):
    """f(a) = scale a where a > 0, scale alpha (exp(sharpness a) - 1) elsewhere.

    Args:
        alpha: How far f goes down, above 0.
        scale: Slope for positive arguments, above 0.
        sharpness: What multiplies negative arguments, above 0.
    """

    name = "elu"

    def __init__(self, alpha: float = 1.0, scale: float = 1.0, sharpness: float = 1.0) -> None:
        check_positive(type(self).__name__, alpha=alpha, scale=scale, sharpness=sharpness)
        self.alpha = alpha
        self.scale = scale
        self.sharpness = sharpness
        self.bound = scale * max(1.0, alpha * sharpness)
        self.range = (-scale * alpha, math.inf)

    def f(self, a: Tensor) -> Tensor:  # noqa: D102
        below = self.alpha * torch.expm1(self.sharpness * a.clamp(max=0))
        return self.scale * torch.where(a > 0, a, below)

    def F(self, a: Tensor) -> Tensor:  # noqa: D102, N802
        below = a.clamp(max=0)
        below = self.alpha * (torch.expm1(self.sharpness * below) / self.sharpness - below)
        return self.scale * torch.where(a > 0, a.square() / 2, below)

    def __repr__(self) -> str:
        return f"ELU({self.alpha}, {self.scale}, {self.sharpness})"


class CELU(ELU):
    """f(a) = a where a > 0, alpha (exp(a / alpha) - 1) elsewhere: the ELU whose slope is continuous.

    Args:
        alpha: How far f goes down, above 0.
    """

    name = "celu"

    def __init__(self, alpha: float = 1.0) -> None:
        check_positive("CELU", alpha=alpha)
        super().__init__(alpha, sharpness=1 / alpha)


class SELU(ELU):
    """The self-normalising ELU (Klambauer et al., 2017)."""

    name = "selu"

    def __init__(self) -> None:
        super().__init__(alpha=1.6732632423543772, scale=1.0507009873554805)


class Softsign(Transfer):
    """f(a) = a / (1 + |a|), F(a) = |a| - log(1 + |a|)."""

    name = "softsign"
    range = (-1.0, 1.0)

    def f(self, a: Tensor) -> Tensor:  # noqa: D102
        return a / (1 + a.abs())

    def F(self, a: Tensor) -> Tensor:  # noqa: D102, N802
        return a.abs() - a.abs().log1p()


class LogSigmoid(Transfer):
    """f(a) = -log(1 + exp(-a)); F is that of softplus at -a."""

    name = "log_sigmoid"
    range = (-math.inf, 0.0)

    def f(self, a: Tensor) -> Tensor:  # noqa: D102
        return -Softplus().f(-a)

    def F(self, a: Tensor) -> Tensor:  # noqa: D102, N802
        return Softplus().F(-a)


class Hardtanh(Transfer):
    """f(a) = slope a + offset, cut off below and above.

    Args:
        low: Least value of f.
        high: Greatest value of f, above ``low``.
        slope: Slope in between, above 0.
        offset: Value at 0, were it not cut off.
    """

    name = "hardtanh"

    def __init__(self, low: float = -1.0, high: float = 1.0, slope: float = 1.0, offset: float = 0.0) -> None:
        if not low < high:
            raise UserError(f"{type(self).__name__}(low={low}, high={high}): low must be below high.")
        check_positive(type(self).__name__, slope=slope)
        self.slope = slope
        self.offset = offset
        self.bound = slope
        self.range = (low, high)

    def f(self, a: Tensor) -> Tensor:  # noqa: D102
        return (self.slope * a + self.offset).clamp(*self.range)

    def F(self, a: Tensor) -> Tensor:  # noqa: D102, N802
        line = self.slope * a + self.offset
        f = line.clamp(*self.range)
        return (line - f / 2) * f / self.slope

    def __repr__(self) -> str:
        return f"Hardtanh({self.range[0]}, {self.range[1]}, {self.slope}, {self.offset})"


class ReLU6(Hardtanh):
    """f(a) = min(max(a, 0), 6)."""

    name = "relu6"

    def __init__(self) -> None:
        super().__init__(0.0, 6.0)


class Hardsigmoid(Hardtanh):
    """f(a) = min(max(a / 6 + 1/2, 0), 1)."""

    name = "hardsigmoid"

    def __init__(self) -> None:
        super().__init__(0.0, 1.0, 1 / 6, 0.5)


_CLASSIC = (Identity, ReLU, LeakyReLU, Tanh, Sigmoid, Softplus, Softmax)
_FURTHER = (SquaredReLU, ELU, CELU, SELU, Softsign, LogSigmoid, Hardtanh, ReLU6, Hardsigmoid)
_TRANSFERS: dict[str, type[Transfer]] = {t.name: t for t in (*_CLASSIC, *_FURTHER)}


def resolve_transfer(transfer: str | Transfer) -> Transfer:
    """Turns a name into a transfer with its default arguments; an instance passes through.

    Raises:
        UserError: For a name that is not known.
    """
    if isinstance(transfer, Transfer):
        return transfer
    if transfer not in _TRANSFERS:
        raise UserError(f"There is no transfer {transfer!r}; take one of {', '.join(_TRANSFERS)}.")
    return _TRANSFERS[transfer]()
