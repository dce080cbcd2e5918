"""The local problem of one layer: a matching loss to the oracle's target plus a proximal term (Proposition 1)."""

import math
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor

from locoprop_lightning.errors import UserError
from locoprop_lightning.local.checks import check_problem
from locoprop_lightning.local.operator import LinearOperator, MatrixOperator, gram_cost, times
from locoprop_lightning.local.transfer import Transfer

Scalar = float | Tensor
Inverse = Callable[[Tensor], Tensor]
_STRETCH_ROWS, _STRETCH_OUTPUTS = 256, 2**16  # at least, on which a step in activations is measured


class LocalProblem:
    """Minimise J(W) = sum_n D_F(W y_n, a_n) + lambda_r/2 ||W - W0||^2 over W (review, Proposition 1).

    Everything is a function of the displacement V = W - W0 as one matrix [W | b] [d_out, width]; V = 0 is the start of
    the step. In this form a zero direction gives an exactly zero gradient.

    Args:
        operator: How the layer acts at its inputs, or Y, the inputs of a linear layer [n, d_in].
        pre_activation: A = Y W0^T + b0 [n, d_out], before the activation, which is taken on trust; or a function that
            makes it when something needs it.
        direction: D, the oracle's direction [n, d_out], or such a function; the target is T = f(A) - lambda_a D.
        weight: W0 as the operator has it [d_out, d_in].
        bias: b0 [d_out], if the layer has one.
        transfer: The function f that follows the layer, or the identity.
        lambda_a: Length of the oracle's step.
        lambda_r: Strength of the proximal term, above 0.
        rate: What a schedule of the run multiplies the rates of inner steps by, in solvers that have such rates.
        weight_direction: A function that makes D^T Y [d_out, width] by a shorter way than from Y and D, as a tensor
            that may be written over, or None where there is none.
        prepare: A function that must be given X -> X (C + lambda_r I)^-1 before D is made of it.
        length: Root mean square by which a solution shall move the outputs, measured on 256 rows or 65,536 outputs (a
            trust region in activations); None where D and lambda_a say how far it goes. The targets of M are as far.
        name: Name of the layer.

    Attributes:
        operator: How the layer acts: ``apply``, ``adjoint``, ``gram``, ``trace``.
        transfer: f, with ``bound``, its steepest slope L.
        lambda_r: As given.
        lambda_a: As given; where M has a ``length``, that relative to D's root mean square.
    """

    def __init__(
        self,
        operator: LinearOperator | Tensor,
        pre_activation: Tensor | Callable[[], Tensor],
        direction: Tensor | Callable[[], Tensor],
        weight: Tensor,
        bias: Tensor | None,
        transfer: Transfer,
        lambda_a: Scalar,
        lambda_r: Scalar,
        rate: float = 1.0,
        weight_direction: Callable[[], Tensor | None] | None = None,
        prepare: Callable[[Inverse], None] | None = None,
        length: float | None = None,
        name: str = "",
    ) -> None:
        self.name = name
        self.operator = MatrixOperator(operator, bias is not None) if isinstance(operator, Tensor) else operator
        self._pre_activation = pre_activation  # A
        self.weight, self.bias = weight, bias  # W0, b0
        self.transfer = transfer  # f
        self._lambda_a: Scalar | None = lambda_a
        self.length = length
        self.lambda_r = lambda_r
        self.rate = rate
        self._direction = direction  # D
        self._weight_direction = weight_direction  # D^T Y
        self._prepare = prepare
        self._first_gradient: Tensor | None = None
        self._start: Tensor | None = None  # f(A)
        self._gram: Tensor | None = None  # C
        self._first_loss: Tensor | None = None
        self.uses_gram = False
        check_problem(self.operator, pre_activation, direction, weight, bias, transfer, lambda_a, lambda_r)
        if length is not None and not self.squared:
            self._lambda_a = None

    @property
    def n(self) -> int:
        """Number of rows."""
        return self.operator.n

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of V, which is d_out and width."""
        return self.weight.shape[0], self.operator.width

    @property
    def squared(self) -> bool:
        """Whether f is the identity, LocoProp-S."""
        return self.transfer.name == "identity"

    @property
    def called(self) -> str:
        """What messages call the layer, or the problem where it has no name."""
        return f"layer {self.name!r}" if self.name else "the problem"

    @property
    def pre_activation(self) -> Tensor:
        """A, of the rows at hand [n, d_out]."""
        if callable(self._pre_activation):
            self._pre_activation = self._pre_activation()
        return self._pre_activation

    @property
    def lambda_a(self) -> Scalar:
        """Length of the oracle's step; made of D where M has a ``length``."""
        if self._lambda_a is None:
            size = (self.operator.total(self.direction.square()) / (self.n * self.shape[0])).sqrt()
            self._lambda_a = _ratio(self.length, size)
        return self._lambda_a

    def offer(self, inverse: Inverse) -> None:
        """Gives an oracle that asks for it (C + lambda_r I)^-1; what it makes of the first one that comes holds.

        Args:
            inverse: X -> X (C + lambda_r I)^-1 [d_out, width].
        """
        if self._prepare is not None:
            self._prepare(inverse)
            self._prepare = None

    def _check_offer(self) -> None:
        if self._prepare is not None:
            raise UserError(
                f"{self.called}: the oracle asks for (C + lambda_r I)^-1, which the solver does not offer; take "
                "ClosedForm or Majorization."
            )

    @property
    def direction(self) -> Tensor:
        """D, of the rows at hand [n, d_out].

        Raises:
            UserError: Where the oracle's has another shape, or lacks what it asks for.
        """
        if callable(self._direction):
            self._check_offer()
            self._direction = self._direction()
            shape = [self.operator.own_rows, self.weight.shape[0]]  # A's, which is not made for this
            if not isinstance(self._direction, Tensor) or list(self._direction.shape) != shape:
                self._refuse("direction", self._direction, shape)
        return self._direction

    @property
    def target(self) -> Tensor:
        """T = f(A) - lambda_a D, of the rows at hand [n, d_out]."""
        return self.transfer.f(self.pre_activation) - self.lambda_a * self.direction

    def start_matrix(self) -> Tensor:
        """[W0 | b0] [d_out, width], what V is added to."""
        return self.weight if self.bias is None else torch.cat([self.weight, self.bias[:, None]], 1)

    def zeros(self) -> Tensor:
        """The start of the step, V = 0 [d_out, width]."""
        return self.weight.new_zeros(self.shape)

    def first_gradient(self) -> Tensor:
        """Grad J(W0) = lambda_a D^T Y [d_out, width]; made once; not to be changed."""
        if self._first_gradient is None:
            self._check_offer()
            product = self.weight_direction()
            if product is None:
                product = self.operator.adjoint(self.direction)
            self._first_gradient = product.mul_(self.lambda_a)
        return self._first_gradient

    def weight_direction(self) -> Tensor | None:
        """D^T Y [d_out, width] by a shorter way than from Y and D, made anew, or None where there is none."""
        product = None if self._weight_direction is None else self._weight_direction()
        if product is not None and (not isinstance(product, Tensor) or product.shape != self.shape):
            self._refuse("weight_direction", product, list(self.shape))
        return product

    def gram(self) -> Tensor:
        """C = Y^T Y as ``LinearOperator.gram`` gives it; made once; not to be changed."""
        if self._gram is None:
            self._gram = self.operator.gram()
        return self._gram

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
            change = self.transfer.f_(self.operator.apply(v, start=self.pre_activation)).sub_(self._start)
            gradient = self.operator.adjoint(change)  # (f(A + Z) - f(A))^T Y
        gradient.add_(self.first_gradient())
        return gradient.add_(v * self.lambda_r) if proximal else gradient

    def curvature(self, v: Tensor) -> Tensor:
        """V C [d_out, width], what the divergence of the squared loss adds to the gradient."""
        if self.uses_gram:
            return times(v, self.gram())
        return self.operator.adjoint(self.operator.apply(v))

    def value(self, v: Tensor, proximal: bool = True, at_most: int | None = None) -> Tensor:
        """J(W0 + V) - J(W0), scalar: defined also where a target is out of the range of f.

        Args:
            v: Displacement [d_out, width].
            proximal: Whether the proximal term takes part.
            at_most: Estimate the divergence, not the linear term, on at most so many rows, spread over all.
        """
        operator, start = self.operator, None if self.squared else self.pre_activation
        if at_most is not None and at_most < self.n:
            operator, index = self.operator.sample(at_most)
            start = None if start is None else start[index]
        z = operator.apply(v)  # Y V^T
        rise = self.transfer.divergence(z, z if start is None else start)  # that of the squared loss needs no A
        divergence = operator.total(rise) * (self.n / operator.n)
        loss = divergence + _dot(self.first_gradient(), v)  # lambda_a <D, Z> = <lambda_a D^T Y, V>
        return loss + self.lambda_r * _dot(v, v) / 2 if proximal else loss

    def first_loss(self) -> Tensor:
        """lambda_a^2 ||D||^2 / (2 n), the first value of the local-loss curves, per sample."""
        if self._first_loss is None:
            square = self.operator.total(self.direction.square())
            self._first_loss = self.lambda_a**2 * square / (2 * self.n)
        return self._first_loss

    def stretch(self, v: Tensor) -> Tensor:
        """V, or where there is a ``length`` the multiple of V that moves the outputs by it; zero stays zero.

        Args:
            v: Displacement [d_out, width].
        """
        if self.length is None:
            return v
        v = v * _ratio(1.0, v.abs().max())  # its square may be too small a number
        operator, _ = self.operator.sample(max(_STRETCH_ROWS, _STRETCH_OUTPUTS // self.shape[0]))
        size = (operator.total(operator.apply(v).square()) / (operator.n * self.shape[0])).sqrt()
        return v * _ratio(self.length, size)

    def loss(self, v: Tensor) -> Tensor:
        """``first_loss`` plus the change of J per sample: for S the local loss itself."""
        return self.first_loss() + self.value(v) / self.n

    def out_of_range(self) -> Tensor:
        """Fraction of the targets that no output of f comes near: outside the closed range of f, scalar."""
        low, high = self.transfer.range
        if low == -math.inf and high == math.inf:
            return self.weight.new_zeros(())
        outside = ((self.target < low) | (self.target > high)).to(self.weight.dtype)
        return self.operator.total(outside) / (self.n * self.shape[0])

    def relative(self, v: Tensor) -> Tensor:
        """Norm of a displacement relative to that of [W0 | b0], scalar."""
        start = torch.stack([torch.linalg.vector_norm(p) for p in (self.weight, self.bias) if p is not None])
        return torch.linalg.vector_norm(v) / torch.linalg.vector_norm(start).clamp_min(torch.finfo(v.dtype).tiny)

    def plan(self, gradients: int) -> float:
        """Chooses the form of the gradients to come by counting operations.

        On the squared loss grad J(W0 + V) = V C + lambda_a D^T Y + lambda_r V does without the n rows once C is there.

        Args:
            gradients: How many will be asked for.

        Returns:
            Floating-point operations of these gradients.
        """
        by_gram = self.gram_cost() + 2.0 * gradients * self.shape[0] * self.shape[1] ** 2
        by_rows = 4.0 * gradients * self.operator.rows_at_hand * self.shape[0] * self.shape[1]
        self.uses_gram = self.squared and by_gram < by_rows
        return by_gram if self.uses_gram else by_rows

    def gram_cost(self) -> float:
        """Floating-point operations that C still takes; infinite where it is not one matrix for all units."""
        if self.operator.groups > 1 or self.operator.diagonal:
            return math.inf
        return gram_cost(self.operator.rows_at_hand, self.operator.width) if self._gram is None else 0.0

    def _refuse(self, method: str, got: Any, expected: list[Any]) -> NoReturn:
        found = list(got.shape) if isinstance(got, Tensor) else f"a {type(got).__name__}"
        shape = ", ".join(map(str, expected))
        raise UserError(f"{self.called}: the oracle's {method} is {found}, and must be [{shape}].")

    def split(self, v: Tensor) -> tuple[Tensor, Tensor | None]:
        """Cuts [W | b] into a weight [d_out, d_in] and a bias [d_out]."""
        d = self.operator.d_in
        return v[:, :d], v[:, d] if self.operator.bias else None

    def __repr__(self) -> str:
        d_out, width = self.shape
        return f"LocalProblem({self.name!r}, n={self.n}, {width}->{d_out}, f={self.transfer.name})"


def _ratio(a: float | None, b: Tensor) -> Tensor:
    """The ratio a / b, scalar; zero where b is."""
    return torch.where(b > 0, (a or 0.0) / b, 0.0)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """<A, B>, scalar, in one pass and without a temporary."""
    return torch.dot(a.reshape(-1), b.reshape(-1))
