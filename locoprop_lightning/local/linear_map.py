"""How a layer with weights acts on its input: apply, adjoint and Gram matrix.

Weight and bias are one matrix V = [W | b] [d_out, d_in + 1] (no last column without a bias). The constant-one input
that belongs to the bias exists in the mathematics only: the products treat it apart, the rows are never copied.
"""

import torch
from torch import Tensor

_BLOCK = 128  # columns of X^T X below which a block does not pay


def _blocks(d: int) -> list[tuple[int, int]]:
    size = max(-(-d // 4), _BLOCK)
    return [(i, min(i + size, d)) for i in range(0, d, size)]


def gram(x: Tensor, out: Tensor | None = None) -> Tensor:
    """X^T X [d, d] of X [n, d], in at most four blocks of columns; what lies above the diagonal is copied."""
    out = x.new_empty(x.shape[1], x.shape[1]) if out is None else out
    for i, j in _blocks(x.shape[1]):
        torch.mm(x[:, i:].t(), x[:, i:j], out=out[i:, i:j])
        out[i:j, j:] = out[j:, i:j].t()
    return out


def gram_cost(n: int, d: int) -> float:
    """Floating-point operations of ``gram``: from 2 n d^2 with one block to 5/8 of that with four."""
    return 2.0 * n * sum((d - i) * (j - i) for i, j in _blocks(d))


class LinearMap:
    """The map of ``nn.Linear`` at fixed inputs.

    Args:
        rows: Y, inputs of the layer [n, d_in].
        bias: Whether the layer has a bias.
    """

    def __init__(self, rows: Tensor, bias: bool) -> None:
        self.rows = rows  # Y
        self.bias = bias

    @property
    def n(self) -> int:
        """Number of rows."""
        return self.rows.shape[0]

    @property
    def width(self) -> int:
        """Columns of V: d_in, and one for the bias."""
        return self.rows.shape[1] + self.bias

    def apply(self, v: Tensor, start: Tensor | None = None, rows: slice = slice(None)) -> Tensor:
        """Y V^T on some rows, added to ``start`` if given [n, d_out]."""
        y = self.rows[rows]
        d = y.shape[1]
        weight = v[:, :d].t()
        out = y @ weight if start is None else torch.addmm(start, y, weight)
        return out.add_(v[:, d]) if self.bias else out

    def adjoint(self, r: Tensor) -> Tensor:
        """R^T Y [d_out, width]."""
        d = self.rows.shape[1]
        out = r.new_empty(r.shape[1], self.width)
        torch.mm(r.t(), self.rows, out=out[:, :d])
        if self.bias:
            torch.sum(r, 0, out=out[:, d])
        return out

    def gram(self) -> Tensor:
        """C = Y^T Y [width, width]."""
        d = self.rows.shape[1]
        out = self.rows.new_empty(self.width, self.width)
        gram(self.rows, out[:d, :d])
        if self.bias:
            out[d, :d] = out[:d, d] = self.rows.sum(0)
            out[d, d] = self.n
        return out

    def kernel(self) -> Tensor:
        """Y Y^T [n, n]."""
        out = self.rows @ self.rows.t()
        return out.add_(1) if self.bias else out

    def trace(self) -> Tensor:
        """The trace of C, scalar."""
        return self.rows.square().sum() + self.n * self.bias
