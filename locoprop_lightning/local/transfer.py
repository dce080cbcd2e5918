"""Transfer functions f, their convex integrals F and the Bregman divergences that they induce (review, eq. 2)."""

import math

import torch
from torch import Tensor

from locoprop_lightning.errors import UserError, check_object


class Transfer:
    """A monotone function f = grad F that turns a pre-activation into the quantity which a local loss matches.

    F makes the loss: it is the Bregman divergence of F (review, eq. 2).

    Attributes:
        name: What the table of layers and the configurations call it.
        bound: L, an upper bound of the largest eigenvalue of the Jacobian of f.
        range: Open interval of the values of f, for each unit.
        rowwise: Whether F couples the units of a row; then ``F`` gives one value a row.
    """

    name = ""
    bound = 1.0  # L >= sup f'
    range = (-math.inf, math.inf)
    rowwise = False

    def f(self, a: Tensor) -> Tensor:
        """Value of the transfer function [same shape as ``a``]."""
        raise NotImplementedError

    def f_(self, a: Tensor) -> Tensor:
        """``f`` written over its argument, for inner loops."""
        return a.copy_(self.f(a))

    def F(self, a: Tensor) -> Tensor:  # noqa: N802  (the review's symbol)
        """Convex integral of ``f`` [same shape as ``a``, or one dimension less where ``rowwise``]."""
        raise NotImplementedError

    def divergence(self, z: Tensor, a: Tensor) -> Tensor:
        """Bregman divergence D_F(a + z, a) = F(a + z) - F(a) - f(a) z, summed over the units of a row.

        Args:
            z: Step away from ``a`` [n, d].
            a: Point of linearisation [n, d].

        Returns:
            One value a row [n], at least 0 up to rounding, in float64, as in float32 the difference would cancel.
        """
        dtype, z, a = z.dtype, z.double(), a.double()
        linear = (self.f(a) * z).sum(-1)
        gap = self.F(a + z) - self.F(a)
        return ((gap if self.rowwise else gap.sum(-1)) - linear).to(dtype)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


def check_transfer(owner: str, transfer: Transfer) -> None:
    """Refuses what is no transfer, such as a name.

    Raises:
        UserError: Says what it is.
    """
    check_object(owner, Transfer, "a transfer, such as resolve_transfer('tanh')", transfer=transfer)


class Identity(Transfer):
    """f(a) = a: the squared loss, LocoProp-S."""

    name = "identity"

    def f(self, a: Tensor) -> Tensor:  # noqa: D102
        return a

    def f_(self, a: Tensor) -> Tensor:  # noqa: D102
        return a

    def F(self, a: Tensor) -> Tensor:  # noqa: D102, N802
        return a.square() / 2

    def divergence(self, z: Tensor, a: Tensor) -> Tensor:  # noqa: D102
        return z.square().sum(-1) / 2  # free of cancellation


class ReLU(Transfer):
    """f(a) = max(a, 0)."""

    name = "relu"
    range = (0.0, math.inf)

    def f(self, a: Tensor) -> Tensor:  # noqa: D102
        return a.relu()

    def f_(self, a: Tensor) -> Tensor:  # noqa: D102
        return a.relu_()

    def F(self, a: Tensor) -> Tensor:  # noqa: D102, N802
        return a.relu().square() / 2


class LeakyReLU(Transfer):
    """f(a) = a where a > 0, ``slope`` a elsewhere.

    Args:
        slope: Slope for negative arguments, at least 0 so that f is monotone.
    """

    name = "leaky_relu"

    def __init__(self, slope: float = 0.01) -> None:
        if not slope >= 0:
            raise UserError(f"LeakyReLU(slope={slope}): a matching loss needs a monotone function, so slope >= 0.")
        self.slope = slope
        self.bound = max(1.0, slope)

    def f(self, a: Tensor) -> Tensor:  # noqa: D102
        return torch.nn.functional.leaky_relu(a, self.slope)

    def F(self, a: Tensor) -> Tensor:  # noqa: D102, N802
        return torch.where(a > 0, a, self.slope * a) * a / 2

    def __repr__(self) -> str:
        return f"LeakyReLU({self.slope})"


class Tanh(Transfer):
    """f(a) = tanh(a), F(a) = log cosh(a)."""

    name = "tanh"
    range = (-1.0, 1.0)

    def f(self, a: Tensor) -> Tensor:  # noqa: D102
        return a.tanh()

    def f_(self, a: Tensor) -> Tensor:  # noqa: D102
        return a.tanh_()

    def F(self, a: Tensor) -> Tensor:  # noqa: D102, N802
        return torch.logaddexp(a, -a) - math.log(2)


class Sigmoid(Transfer):
    """f(a) = 1 / (1 + exp(-a)), F(a) = log(1 + exp(a)): binary cross-entropy."""

    name = "sigmoid"
    bound = 0.25
    range = (0.0, 1.0)

    def f(self, a: Tensor) -> Tensor:  # noqa: D102
        return a.sigmoid()

    def f_(self, a: Tensor) -> Tensor:  # noqa: D102
        return a.sigmoid_()

    def F(self, a: Tensor) -> Tensor:  # noqa: D102, N802
        return torch.logaddexp(a, torch.zeros_like(a))


class Softplus(Transfer):
    """f(a) = log(1 + exp(beta a)) / beta; F is a dilogarithm, -Li2(-exp(beta a)) / beta^2.

    Args:
        beta: Sharpness, above 0.
    """

    name = "softplus"
    range = (0.0, math.inf)

    def __init__(self, beta: float = 1.0) -> None:
        if not beta > 0:
            raise UserError(f"Softplus(beta={beta}): a matching loss needs a monotone function, so beta > 0.")
        self.beta = beta

    def f(self, a: Tensor) -> Tensor:  # noqa: D102
        a = self.beta * a
        return torch.logaddexp(a, torch.zeros_like(a)) / self.beta

    def F(self, a: Tensor) -> Tensor:  # noqa: D102, N802
        a = self.beta * a
        # With x = -|a| and w = log(1 + e^x) in (0, log 2], Landen's identity gives -Li2(-e^x) = Li2(1 - e^-w) + w^2/2,
        # and Li2(1 - e^-w) = w - w^2/4 + sum_k B_2k w^(2k+1)/(2k+1)!, whose terms shrink by (w / 2 pi)^2 < 0.013.
        w = torch.logaddexp(-a.abs(), torch.zeros_like(a))
        series = sum(b * w ** (2 * k + 1) / math.factorial(2 * k + 1) for k, b in _BERNOULLI)
        negative = w + w.square() / 4 + series  # F(-|a|)
        # Inversion: F(a) + F(-a) = a^2/2 + pi^2/6.
        return torch.where(a > 0, a.square() / 2 + math.pi**2 / 6 - negative, negative) / self.beta**2

    def __repr__(self) -> str:
        return f"Softplus({self.beta})"


_BERNOULLI = ((1, 1 / 6), (2, -1 / 30), (3, 1 / 42), (4, -1 / 30), (5, 5 / 66), (6, -691 / 2730), (7, 7 / 6))


class Softmax(Transfer):
    """f(a) = softmax over the units of a row, F(a) = log sum exp(a): cross-entropy."""

    name = "softmax"
    bound = 0.5
    range = (0.0, 1.0)
    rowwise = True

    def f(self, a: Tensor) -> Tensor:  # noqa: D102
        return a.softmax(-1)

    def F(self, a: Tensor) -> Tensor:  # noqa: D102, N802
        return a.logsumexp(-1)
