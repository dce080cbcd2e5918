"""Local solvers: Lightning callbacks that move the weights of every local layer, each usable alone as well."""

from locoprop_lightning.solvers.anderson import AndersonAcceleration
from locoprop_lightning.solvers.closed_form import ClosedForm
from locoprop_lightning.solvers.fixed_point import FixedPointIteration
from locoprop_lightning.solvers.gradient_descent import GradientDescent
from locoprop_lightning.solvers.solver import IterativeSolver, LocalSolver, Outcome, Solution, Status

__all__ = [
    "AndersonAcceleration",
    "ClosedForm",
    "FixedPointIteration",
    "GradientDescent",
    "IterativeSolver",
    "LocalSolver",
    "Outcome",
    "Solution",
    "Status",
]
