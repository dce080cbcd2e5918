"""The same local problem in another form: with every row at hand, or in float64."""

from functools import partial

import torch
from torch import Tensor

from locoprop_lightning.local.operator import LinearOperator
from locoprop_lightning.local.problem import LocalProblem, Scalar

_SAME = 2**-12  # of two ways to D^T Y: above the rounding of TF32, below what two batches differ by


def whole(problem: LocalProblem) -> LocalProblem:
    """The problem with every row of the batch at hand, for layers with few rows.

    Args:
        problem: The problem.
    """
    rows, operator = problem.operator, problem.operator.whole()
    if operator is rows:
        return problem
    remade = partial(operator.apply, problem.start_matrix())  # the squared loss has no use for A, which is not sent
    return LocalProblem(
        operator,
        remade if problem.squared else rows.whole_rows(problem.pre_activation),
        lambda: rows.whole_rows(problem.direction),
        problem.weight,
        problem.bias,
        problem.transfer,
        _lambda_a(problem),
        problem.lambda_r,
        problem.rate,
        problem.weight_direction,
        problem.offer,
        problem.length,
        problem.name,
    )


def in_float64(problem: LocalProblem) -> LocalProblem:
    """The problem with its products in float64, of the same rows and directions.

    Where C is singular, D^T Y has no part that C knows nothing of, but its rounding has, which a small lambda_r would
    let grow. So D^T Y is made from the rows, and not of the weight gradient that back-propagation has rounded, unless
    the oracle's is another one, as with a momentum.

    Args:
        problem: The problem; the inverse that an oracle asks for has been offered.
    """
    operator = problem.operator.double()
    bias = None if problem.bias is None else problem.bias.double()
    return LocalProblem(
        operator,
        lambda: problem.pre_activation.double(),
        lambda: problem.direction.double(),
        problem.weight.double(),
        bias,
        problem.transfer,
        _lambda_a(problem),
        problem.lambda_r,
        problem.rate,
        partial(_product, problem, operator),
        None,
        problem.length,
        problem.name,
    )


def _product(problem: LocalProblem, operator: LinearOperator) -> Tensor:
    """D^T Y [d_out, width] in float64."""
    short, direction = problem.weight_direction(), problem.direction.double()
    product = operator.adjoint(direction)
    if short is None:
        return product
    size = (operator.total(direction.square()) * operator.trace()).sqrt()
    other = torch.linalg.vector_norm(product - short) > _SAME * size
    return torch.where(other, short, product)


def _lambda_a(problem: LocalProblem) -> Scalar:
    """Lambda_a, or anything where it is made of D."""
    return problem.lambda_a if problem.squared or problem.length is None else 1.0
