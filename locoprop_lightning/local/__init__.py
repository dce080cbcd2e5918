"""The mathematics of one layer: transfers, linear operators, the local problem, preconditioners. Imports torch only."""

from locoprop_lightning.local.activations import resolve_transfer
from locoprop_lightning.local.operator import LinearOperator, MatrixOperator, Rows
from locoprop_lightning.local.preconditioner import Preconditioner, State
from locoprop_lightning.local.problem import LocalProblem
from locoprop_lightning.local.transfer import Transfer

__all__ = [
    "LinearOperator",
    "LocalProblem",
    "MatrixOperator",
    "Preconditioner",
    "Rows",
    "State",
    "Transfer",
    "resolve_transfer",
]
