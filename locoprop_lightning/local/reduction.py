"""A local problem in n coordinates instead of width, for layers with more inputs than rows."""

from collections.abc import Callable

import torch
from torch import Tensor

from locoprop_lightning.local.factorization import eigh
from locoprop_lightning.local.problem import LocalProblem


def reduced(problem: LocalProblem) -> tuple[LocalProblem, Callable[[Tensor], Tensor]]:
    """The same problem in the span of its rows.

    Gradients, and what is summed of them, lie there. With Y Y^T = U S U^T and orthonormal rows Q = S^-1/2 U^T Y
    [n, width], V = X Q has the same J as X [d_out, n] has on the rows U S^1/2.

    Args:
        problem: The problem, with all rows at hand.

    Returns:
        The problem of X, and the function that makes V of X.

    Raises:
        UserError: Where not all rows are at hand.
    """
    kernel = problem.operator.dense().double().kernel()
    values, vectors = eigh(kernel)
    kept = values > values[-1] * problem.n * torch.finfo(values.dtype).eps
    # Directions in which no row lies are set to zero, not cut off: their number would have to be waited for.
    root = torch.where(kept, values, 0.0 * values).sqrt()  # not a number stays so
    inverse_root = torch.where(kept, values, torch.inf).rsqrt()
    dtype = problem.weight.dtype
    made = LocalProblem(
        (vectors * root).to(dtype),
        lambda: problem.pre_activation,
        lambda: problem.direction,
        problem.weight.new_zeros(problem.shape[0], problem.n),
        None,
        problem.transfer,
        problem.lambda_a,
        problem.lambda_r,
        problem.rate,
        name=problem.name,
    )
    basis = (vectors * inverse_root).to(dtype)
    return made, lambda x: problem.operator.adjoint(basis @ x.t())
