"""Local solvers: each solves the local problem of a layer, in training or alone."""

from locoprop_lightning.solvers.anderson import AndersonAcceleration
from locoprop_lightning.solvers.closed_form import ClosedForm
from locoprop_lightning.solvers.conjugate_gradient import ConjugateGradient
from locoprop_lightning.solvers.fixed_point import FixedPointIteration
from locoprop_lightning.solvers.gradient_descent import GradientDescent
from locoprop_lightning.solvers.inner_optimizer import InnerOptimizer
from locoprop_lightning.solvers.iterative import IterativeSolver, Step
from locoprop_lightning.solvers.majorization import Majorization
from locoprop_lightning.solvers.right_preconditioner import RightPreconditioner
from locoprop_lightning.solvers.solution import Outcome, Recording, Solution, Status, within_displacement
from locoprop_lightning.solvers.solver import LocalSolver

__all__ = [
    "AndersonAcceleration",
    "ClosedForm",
    "ConjugateGradient",
    "FixedPointIteration",
    "GradientDescent",
    "InnerOptimizer",
    "IterativeSolver",
    "LocalSolver",
    "Majorization",
    "Outcome",
    "Recording",
    "RightPreconditioner",
    "Solution",
    "Status",
    "Step",
    "within_displacement",
]
