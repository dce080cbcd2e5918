"""The local problem of one layer: a matching loss to the oracle's target plus a proximal term (Proposition 1)."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from locoprop_lightning.errors import UserError
from locoprop_lightning.local.linear_map import LinearMap, gram_cost, times
from locoprop_lightning.local.share import ALONE, Share
from locoprop_lightning.local.transfer import Transfer

Scalar = float | Tensor


class LocalProblem:
    """Minimise J(W) = sum_n D_F(W y_n, a_n) + lambda_r/2 ||W - W0||^2 over W.

    Everything is a function of the displacement V = W - W0 as one matrix [W | b] [d_out, width]; V = 0 is the start of
    the step. In this form a zero direction gives an exactly zero gradient.

    Args:
        rows: Y, inputs of the layer [n, d_in], or the map of a layer of another kind.
        pre_activation: A = Y W0^T + b0 [n, d_out], or a function that makes it when something needs it.
        direction: D, the oracle's direction [n, d_out], or such a function; the target is T = f(A) - lambda_a D.
        weight: W0 [d_out, d_in]; of a convolution, flattened from its second dimension on.
        bias: b0 [d_out], if the layer has one.
        transfer: f.
        lambda_a: Length of the oracle's step.
        lambda_r: Strength of the proximal term, above 0.
        first_gradient: lambda_a D^T Y [d_out, width], or such a function, where there is a shorter way to it than from
            Y and D.
        name: Name of the layer.
        share: Where the rows stand among those of other processes, over which all sums then go.
    """

    def __init__(
        self,
        rows: Tensor | LinearMap,
        pre_activation: Tensor | Callable[[], Tensor],
        direction: Tensor | Callable[[], Tensor],
        weight: Tensor,
        bias: Tensor | None,
        transfer: Transfer,
        lambda_a: float,
        lambda_r: Scalar,
        first_gradient: Tensor | Callable[[], Tensor | None] | None = None,
        name: str = "",
        share: Share = ALONE,
    ) -> None:
        self.name = name
        self.share = share
        self.map = rows if isinstance(rows, LinearMap) else LinearMap(rows, bias is not None)
        self._pre_activation = pre_activation  # A
        self.weight = weight  # W0
        self.bias = bias
        self.transfer = transfer  # f
        self.lambda_a = lambda_a
        self.lambda_r = lambda_r
        self._direction = direction  # D
        self._first_gradient = first_gradient
        self._start: Tensor | None = None  # f(A)
        self._gram: Tensor | None = None  # C
        self._first_loss: Tensor | None = None
        self.uses_gram = False

    @property
    def n(self) -> int:
        """Number of rows, of all processes."""
        return self.share.rows(self.map.n)

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of V: d_out and width."""
        return self.weight.shape[0], self.map.width

    @property
    def squared(self) -> bool:
        """Whether f is the identity, LocoProp-S."""
        return self.transfer.name == "identity"

    @property
    def pre_activation(self) -> Tensor:
        """A [n, d_out]."""
        if callable(self._pre_activation):
            self._pre_activation = self._pre_activation()
        return self._pre_activation

    @property
    def direction(self) -> Tensor:
        """D [n, d_out]."""
        if callable(self._direction):
            self._direction = self._direction()
        return self._direction

    @property
    def target(self) -> Tensor:
        """T = f(A) - lambda_a D [n, d_out]."""
        return self.transfer.f(self.pre_activation) - self.lambda_a * self.direction

    def out_of_range(self) -> Tensor:
        """Fraction of the targets that no output of f comes near: outside the closed range of f, scalar."""
        low, high = self.transfer.range
        if low == -math.inf and high == math.inf:
            return self.weight.new_zeros(())
        outside = ((self.target < low) | (self.target > high)).to(self.weight.dtype)
        return self.share.sum(outside.sum()) / (self.n * self.shape[0])

    def relative(self, v: Tensor) -> Tensor:
        """Norm of a displacement relative to that of [W0 | b0], scalar."""
        start = torch.stack([torch.linalg.vector_norm(p) for p in (self.weight, self.bias) if p is not None])
        return torch.linalg.vector_norm(v) / torch.linalg.vector_norm(start).clamp_min(torch.finfo(v.dtype).tiny)

    def zeros(self) -> Tensor:
        """The start of the step, V = 0 [d_out, width]."""
        return self.weight.new_zeros(self.shape)

    @property
    def first_gradient(self) -> Tensor:
        """Grad J(W0) = lambda_a D^T Y [d_out, width]."""
        if callable(self._first_gradient):
            self._first_gradient = self._first_gradient()
        if self._first_gradient is None:
            self._first_gradient = self.share.sum(self.map.adjoint(self.direction)).mul_(self.lambda_a)
        return self._first_gradient

    @property
    def gram(self) -> Tensor:
        """C = Y^T Y [width, width], or [groups, width, width]; made once; not to be changed."""
        if self._gram is None:
            self._gram = self.share.sum(self.map.gram())
        return self._gram

    def trace(self) -> Tensor:
        """The trace of C, scalar; the mean over groups."""
        return self.share.sum(self.map.trace())

    def plan(self, gradients: int) -> float:
        """Chooses the form of the gradients to come by counting operations.

        On the squared loss grad J(W0 + V) = V C + lambda_a D^T Y + lambda_r V does without the n rows once C is there.

        Args:
            gradients: How many will be asked for.

        Returns:
            Floating-point operations of these gradients.
        """
        by_gram = self.gram_cost + 2.0 * gradients * self.shape[0] * self.shape[1] ** 2
        by_rows = 4.0 * gradients * self._rows_here * self.shape[0] * self.shape[1]
        self.uses_gram = self.squared and by_gram < by_rows
        return by_gram if self.uses_gram else by_rows

    @property
    def gram_cost(self) -> float:
        """Floating-point operations that C still takes; infinite where it is one for each group of units."""
        if self.map.groups > 1:
            return math.inf
        return gram_cost(self._rows_here, self.map.width) if self._gram is None else 0.0

    @property
    def _rows_here(self) -> int:
        """Rows of a process, the same number on all, so that all decide alike."""
        return -(-self.n // self.share.processes)

    def gradient(self, v: Tensor, proximal: bool = True) -> Tensor:
        """Grad J(W0 + V) = (f(Y W^T) - T)^T Y + lambda_r V [d_out, width].

        Args:
            v: Displacement [d_out, width].
            proximal: Whether the proximal term takes part (the published iteration leaves it out).
        """
        if self.squared:
            gradient = self.curvature(v)
        else:
            if self._start is None:
                self._start = self.transfer.f(self.pre_activation)
            change = self.transfer.f_(self.map.apply(v, start=self.pre_activation)).sub_(self._start)
            gradient = self.share.sum(self.map.adjoint(change))  # (f(A + Z) - f(A))^T Y
        gradient.add_(self.first_gradient)
        return gradient.add_(v * self.lambda_r) if proximal else gradient

    def curvature(self, v: Tensor) -> Tensor:
        """V C [d_out, width], what the divergence of the squared loss adds to the gradient."""
        if self.uses_gram:
            return times(v, self.gram)
        return self.share.sum(self.map.adjoint(self.map.apply(v)))

    def value(self, v: Tensor, proximal: bool = True, rows: int | None = None) -> Tensor:
        """J(W0 + V) - J(W0), scalar: defined also where a target is out of the range of f.

        Args:
            v: Displacement [d_out, width].
            proximal: Whether the proximal term takes part.
            rows: Estimate the divergence, not the linear term, on at most so many rows, spread over all.
        """
        some, count = None, self.n
        if rows is not None and rows < self.n:
            some, count = self.share.spread(self.map.n, rows, v.device)
        z = (self.map if some is None else self.map.sample(some)).apply(v)
        start = z  # the squared loss does not depend on A
        if not self.squared:
            start = self.pre_activation if some is None else self.pre_activation[some]
        divergence = self.share.sum(self.transfer.divergence(z, start).sum()) * (self.n / count)
        loss = divergence + _dot(self.first_gradient, v)  # lambda_a <D, Z> = <lambda_a D^T Y, V>
        return loss + self.lambda_r * _dot(v, v) / 2 if proximal else loss

    def first_loss(self) -> Tensor:
        """lambda_a^2 ||D||^2 / (2 n), the first value of the local-loss curves, per sample."""
        if self._first_loss is None:
            self._first_loss = self.lambda_a**2 * self.share.sum(self.direction.square().sum()) / (2 * self.n)
        return self._first_loss

    def loss(self, v: Tensor) -> Tensor:
        """``first_loss`` plus the change of J per sample: for S the local loss itself."""
        return self.first_loss() + self.value(v) / self.n

    def whole(self) -> "LocalProblem":
        """The same problem with the rows of all processes in each; for layers with few rows."""
        if self.share.processes == 1:
            return self
        return LocalProblem(
            rows=LinearMap(self.share.gather(self.map.dense().rows), self.map.bias),
            pre_activation=lambda: self.share.gather(self.pre_activation),
            direction=lambda: self.share.gather(self.direction),
            weight=self.weight,
            bias=self.bias,
            transfer=self.transfer,
            lambda_a=self.lambda_a,
            lambda_r=self.lambda_r,
            first_gradient=self._first_gradient,
            name=self.name,
        )

    def reduced(self) -> tuple["LocalProblem", Callable[[Tensor], Tensor]]:
        """The same problem in n coordinates instead of width, for layers with more inputs than rows.

        Gradients, and what is summed of them, lie in the span of the rows. With Y Y^T = U S U^T and orthonormal rows
        Q = S^-1/2 U^T Y [n, width], V = X Q has the same J as X [d_out, n] has on the rows U S^1/2.

        Returns:
            The problem of X, and the function that makes V of X.

        Raises:
            UserError: Where other processes hold some of the rows.
        """
        if self.share.processes > 1:
            raise UserError(
                f"LocalProblem({self.name!r}).reduced(): needs all rows in one process: take whole() first."
            )
        kernel = self.map.dense().double().kernel()
        finite = kernel.sum().isfinite()
        values, vectors = torch.linalg.eigh(torch.where(finite, kernel, 0.0))  # it refuses what is not finite
        kept = values > values[-1] * self.n * torch.finfo(values.dtype).eps
        # Directions in which no row lies are set to zero, not cut off: their number would have to be waited for.
        root = torch.where(kept, values, 0.0).sqrt() * torch.where(finite, 1.0, torch.nan)
        inverse_root = torch.where(kept, values, torch.inf).rsqrt()
        dtype = self.weight.dtype
        problem = LocalProblem(
            rows=(vectors * root).to(dtype),
            pre_activation=lambda: self.pre_activation,
            direction=lambda: self.direction,
            weight=self.weight.new_zeros(self.shape[0], self.n),
            bias=None,
            transfer=self.transfer,
            lambda_a=self.lambda_a,
            lambda_r=self.lambda_r,
            name=self.name,
        )
        basis = (vectors * inverse_root).to(dtype)
        return problem, lambda x: self.map.adjoint(basis @ x.t())

    def split(self, v: Tensor) -> tuple[Tensor, Tensor | None]:
        """Cuts [W | b] into a weight [d_out, d_in], flattened, and a bias [d_out]."""
        d = self.map.d_in
        return v[:, :d], v[:, d] if self.map.bias else None

    def __repr__(self) -> str:
        d_out, width = self.shape
        return f"LocalProblem({self.name!r}, n={self.n}, {width}->{d_out}, f={self.transfer.name})"


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """<A, B>, scalar, in one pass and without a temporary."""
    return torch.dot(a.reshape(-1), b.reshape(-1))
