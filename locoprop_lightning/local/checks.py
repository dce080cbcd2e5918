"""What a local problem cannot be made of."""

from typing import Any

from torch import Tensor

from locoprop_lightning.errors import UserError, check_object, check_positive
from locoprop_lightning.local.operator import LinearOperator, MatrixOperator
from locoprop_lightning.local.transfer import check_transfer


def check_problem(
    operator: Any,
    pre_activation: Any,
    direction: Any,
    weight: Any,
    bias: Any,
    transfer: Any,
    lambda_a: Any,
    lambda_r: Any,
) -> None:
    """Refuses parts of a ``LocalProblem`` that are of another kind or shape; of numbers on a device nothing is asked.

    Raises:
        UserError: Names the part.
    """
    check_object("LocalProblem", LinearOperator, "a matrix of rows [n, d_in], or a LinearOperator", operator=operator)
    if isinstance(operator, MatrixOperator) and operator.rows.dim() != 2:
        raise UserError(f"LocalProblem: the rows are {list(operator.rows.shape)}, and must be [n, d_in].")
    if isinstance(operator, MatrixOperator) and not operator.rows.is_floating_point():
        raise UserError(f"LocalProblem: the rows are of {operator.rows.dtype}, and must be floating-point numbers.")
    check_transfer("LocalProblem", transfer)
    check_object("LocalProblem", Tensor, "a tensor [d_out, d_in]", weight=weight)
    for name, value in (("lambda_a", lambda_a), ("lambda_r", lambda_r)):
        if not isinstance(value, Tensor):
            check_positive("LocalProblem", **{name: value})
    if callable(direction):  # of a layer, whose kind has been asked
        return
    shapes = {"weight": (weight, [len(weight), operator.d_in])}
    if bias is not None:
        shapes["bias"] = bias, [len(weight)]
    if isinstance(operator, MatrixOperator):  # others may have but some of the rows at hand
        rows = {"pre_activation": pre_activation, "direction": direction}
        shapes |= {name: (part, [operator.n, len(weight)]) for name, part in rows.items() if not callable(part)}
    for name, (part, shape) in shapes.items():
        found = list(part.shape) if isinstance(part, Tensor) else type(part).__name__
        if found != shape:
            raise UserError(f"LocalProblem: {name} is {found}, and must be {shape}.")
