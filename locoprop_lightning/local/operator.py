"""How a layer acts on its weights at fixed inputs: apply, adjoint, Gram matrix, trace, sample.

Weight and bias are one matrix V = [W | b] [d_out, width], with no last column without a bias. A row is what one output
position sees: a sample or token of a linear layer, a patch of a convolution. The constant-one input that belongs to the
bias exists in the mathematics only; the rows are never copied.
"""

from abc import ABC, abstractmethod
from copy import copy

import torch
from torch import Tensor

from locoprop_lightning.local.blocks import Blocks

_BLOCK = 128  # columns of X^T X below which a block does not pay


class LinearOperator(ABC):
    """The linear map V -> Y V^T of a layer at fixed inputs Y, from [d_out, width] to rows [n, d_out].

    What an operator gives of all rows (``n``, ``adjoint``, ``gram``, ``trace``, ``total``) is of the whole batch; rows
    that are taken or given (``apply``, ``adjoint``, ``sample``) are those at hand, which need not be all of them. See
    ``docs/mathematics.md``, section 11.

    Attributes:
        bias: Whether the layer has a bias.
        groups: Groups of units, each of which sees inputs of its own.
        diagonal: Whether C is a diagonal, which is then all that ``gram`` gives.
        expanded: The operator of all rows, where these are but means of them: the weight gradient is its G^T Y.
    """

    bias: bool
    groups = 1
    diagonal = False
    expanded: "LinearOperator | None" = None

    @property
    @abstractmethod
    def n(self) -> int:
        """Number of rows."""

    @property
    def rows_at_hand(self) -> int:
        """Rows that a product goes over, for counting operations."""
        return self.n

    @property
    def own_rows(self) -> int:
        """Rows that are here, each of which has a direction."""
        return self.n

    @property
    @abstractmethod
    def d_in(self) -> int:
        """Inputs that a unit sees."""

    @property
    def width(self) -> int:
        """Columns of V, which are d_in and one for the bias."""
        return self.d_in + self.bias

    @abstractmethod
    def apply(self, v: Tensor, start: Tensor | None = None) -> Tensor:
        """Y V^T, added to ``start`` if given [n, d_out]; a new tensor."""

    @abstractmethod
    def adjoint(self, r: Tensor) -> Tensor:
        """R^T Y [d_out, width] of R [n, d_out]."""

    @abstractmethod
    def gram(self) -> Tensor:
        """C = Y^T Y [width, width], [groups, width, width] with several groups, or its diagonal [width]."""

    @abstractmethod
    def squares(self) -> Tensor:
        """||y||^2 of each of the rows at hand [n], with the bias's 1; the mean over groups."""

    def trace(self) -> Tensor:
        """The trace of C, scalar; the mean over groups."""
        return self.total(self.squares())

    @abstractmethod
    def select(self, index: Tensor) -> "LinearOperator":
        """The operator at some of the rows at hand, int64 [m]."""

    def keep(self, index: Tensor) -> "LinearOperator":
        """As ``select``, for products that go over most of the rows."""
        return self.select(index)

    def average(self, blocks: Blocks) -> "LinearOperator":
        """The operator, with one group, whose rows are the means of blocks of the rows at hand."""
        return MatrixOperator(blocks.means(self.dense().rows), self.bias, expanded=self)

    @abstractmethod
    def dense(self) -> "MatrixOperator":
        """The same operator, with one group, as a product with a matrix Y."""

    def kernel(self) -> Tensor:
        """Y Y^T [n, n], with one group."""
        rows = self.dense().rows
        out = rows @ rows.t()
        return out.add_(1) if self.bias else out

    def total(self, x: Tensor) -> Tensor:
        """The sum, scalar, of what was computed for each of the rows at hand [n, ...]."""
        return x.sum()

    def sample(self, count: int) -> tuple["LinearOperator", Tensor]:
        """The operator at about ``count`` rows spread over all, and which of those at hand they are, int64."""
        index = spread(self.n, count, self.device)
        return self.select(index), index

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the inputs are."""

    def whole(self) -> "LinearOperator":
        """The operator with every row of the batch at hand."""
        return self

    def whole_rows(self, x: Tensor) -> Tensor:
        """Rows [n, d] of the whole batch, of those at hand."""
        return x

    def double(self) -> "LinearOperator":
        """The same operator with all numbers that it holds in float64."""
        made = copy(self)
        for name, value in vars(self).items():
            if isinstance(value, LinearOperator) or (isinstance(value, Tensor) and value.is_floating_point()):
                setattr(made, name, value.double())
        return made


class MatrixOperator(LinearOperator):
    """The operator of a matrix of inputs, as ``nn.Linear`` has them.

    Args:
        rows: Y, inputs of the layer [n, d_in].
        bias: Whether the layer has a bias.
        expanded: As in ``LinearOperator``.
    """

    def __init__(self, rows: Tensor, bias: bool, expanded: LinearOperator | None = None) -> None:
        self.rows = rows  # Y
        self.bias = bias
        self.expanded = expanded

    @property
    def n(self) -> int:  # noqa: D102
        return self.rows.shape[0]

    @property
    def d_in(self) -> int:  # noqa: D102
        return self.rows.shape[1]

    @property
    def device(self) -> torch.device:  # noqa: D102
        return self.rows.device

    def apply(self, v: Tensor, start: Tensor | None = None) -> Tensor:  # noqa: D102
        d = self.d_in
        weight = v[:, :d].t()
        out = self.rows @ weight if start is None else torch.addmm(start, self.rows, weight)
        return out.add_(v[:, d]) if self.bias else out

    def adjoint(self, r: Tensor) -> Tensor:  # noqa: D102
        d = self.d_in
        out = r.new_empty(r.shape[1], self.width)
        torch.mm(r.t(), self.rows, out=out[:, :d])
        if self.bias:
            torch.sum(r, 0, out=out[:, d])
        return out

    def gram(self) -> Tensor:  # noqa: D102
        d = self.d_in
        out = self.rows.new_zeros(self.width, self.width)
        gram(self.rows, out[:d, :d])
        if self.bias:
            out[d, :d] = out[:d, d] = self.rows.sum(0)
            out[d, d] = self.n
        return out

    def squares(self) -> Tensor:  # noqa: D102
        return torch.linalg.vecdot(self.rows, self.rows) + float(self.bias)

    def select(self, index: Tensor) -> "MatrixOperator":  # noqa: D102
        return MatrixOperator(self.rows[index], self.bias)

    def dense(self) -> "MatrixOperator":  # noqa: D102
        return self


class Rows:
    """Rows that stand for a batch: how many they are, what is summed over them, and a sample of them.

    Here all of them are at hand, so that a sum over those at hand is the sum.
    """

    def count(self, own: int) -> int:
        """Number of all rows, of which ``own`` are at hand."""
        return own

    def sum(self, x: Tensor) -> Tensor:
        """The sum over all rows, of X summed over those at hand; X may be written over."""
        return x

    def sample(self, own: int, count: int, device: torch.device) -> tuple[Tensor, int]:
        """Those of at most ``count`` rows, spread over all, that are at hand.

        Args:
            own: Rows at hand.
            count: How many of all.
            device: Where the indices shall be.

        Returns:
            Indices among the rows at hand, int64 [at most count], and how many were taken of all.
        """
        index = spread(own, count, device)
        return index, len(index)


def spread(n: int, count: int, device: torch.device) -> Tensor:
    """At most ``count`` different ones of n rows, the same at each call, int64 [at most count].

    Their distance is the golden ratio's, so that they fall on all positions of an image, or tokens of a sequence;
    equal distances would fall on the first of each.
    """
    if count >= n:
        return torch.arange(n, device=device)
    steps = torch.arange(count, dtype=torch.float64, device=device)
    return (steps * 0.6180339887498949 % 1 * n).long().unique()


def times(v: Tensor, c: Tensor) -> Tensor:
    """V C [d_out, width] with C as ``LinearOperator.gram`` gives it: a matrix, one for each group, or a diagonal."""
    if c.dim() == 1:
        return v * c
    return v @ c if c.dim() == 2 else torch.bmm(v.unflatten(0, (len(c), -1)), c).flatten(0, 1)


def gram(x: Tensor, out: Tensor | None = None) -> Tensor:
    """X^T X [d, d] of X [n, d], added to a symmetric ``out`` if given, in at most four blocks of columns.

    What lies above the diagonal is copied.
    """
    out = x.new_zeros(x.shape[1], x.shape[1]) if out is None else out
    for i, j in _blocks(x.shape[1]):
        block = out[i:, i:j]
        torch.addmm(block, x[:, i:].t(), x[:, i:j], out=block)
        out[i:j, j:] = out[j:, i:j].t()
    return out


def gram_cost(n: int, d: int) -> float:
    """Floating-point operations of ``gram``: from 2 n d^2 with one block to 5/8 of that with four."""
    return 2.0 * n * sum((d - i) * (j - i) for i, j in _blocks(d))


def _blocks(d: int) -> list[tuple[int, int]]:
    size = max(-(-d // 4), _BLOCK)
    return [(i, min(i + size, d)) for i in range(0, d, size)]
