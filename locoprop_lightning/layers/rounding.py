"""Whether a layer's output and weight gradient are the products they should be, but for rounding."""

import torch
from torch import Tensor

from locoprop_lightning.local.operator import LinearOperator

_SLACK = 8.0  # standard deviations of a sum of rounded products, whose errors have random signs
_ROUNDING = {torch.float64: 2.0**-20, torch.float32: 2.0**-10}  # the latter above TF32's, the former float32's
_ROUNDING_16 = 2.0**-7  # above bfloat16's


def coarsest(*tensors: Tensor, at_least: torch.dtype = torch.float64) -> torch.dtype:
    """The type with the largest rounding among those of tensors, autocast's, and another one."""
    device = tensors[0].device.type
    dtypes = [at_least, *(x.dtype for x in tensors if x.is_floating_point())]
    if torch.is_autocast_enabled(device):
        dtypes.append(torch.get_autocast_dtype(device))
    return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)


def bound(norm: Tensor, factors: Tensor, terms: int, dtype: torch.dtype) -> Tensor:
    """How far a product may be from itself with other rounding.

    Args:
        norm: Norm of the product.
        factors: Product of the norms of its factors, which it would be if nothing in its sums cancelled.
        terms: Products that each of its entries is the sum of.
        dtype: The coarsest type in which it was made.
    """
    relative = _ROUNDING.get(dtype, _ROUNDING_16)
    return relative * (norm + min(1.0, _SLACK * max(terms, 1) ** -0.5) * factors)


def differs(operator: LinearOperator, matrix: Tensor, rows: Tensor, dtype: torch.dtype) -> Tensor:
    """Whether any row is another than the operator's, scalar.

    Args:
        operator: The operator of a layer at an input.
        matrix: W and b as it has them [d_out, width].
        rows: The rows of the layer's output [n, d_out].
        dtype: The type that the output was made in.
    """
    own = operator.apply(matrix)
    if own.shape != rows.shape:
        return torch.ones((), dtype=torch.bool, device=own.device)
    factors = torch.linalg.vector_norm(matrix) * operator.squares().sqrt()
    norm, off = torch.linalg.vector_norm(rows, dim=1), torch.linalg.vector_norm(own - rows, dim=1)
    return (off > bound(norm, factors, operator.width, dtype)).any()
