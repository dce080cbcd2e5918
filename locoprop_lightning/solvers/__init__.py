"""Local solvers: Lightning callbacks that move the weights of every local layer, each usable alone as well."""

from locoprop_lightning.solvers.anderson import AndersonAcceleration
from locoprop_lightning.solvers.closed_form import ClosedForm
from locoprop_lightning.solvers.conjugate_gradient import ConjugateGradient
from locoprop_lightning.solvers.factored import FactoredSolver
from locoprop_lightning.solvers.fixed_point import FixedPointIteration
from locoprop_lightning.solvers.gradient_descent import GradientDescent
from locoprop_lightning.solvers.inner_optimizer import InnerOptimizer
from locoprop_lightning.solvers.majorization import Majorization
from locoprop_lightning.solvers.solver import IterativeSolver, LocalSolver, Outcome, Solution, Status

__all__ = [
    "AndersonAcceleration",
    "ClosedForm",
    "ConjugateGradient",
    "FactoredSolver",
    "FixedPointIteration",
    "GradientDescent",
    "InnerOptimizer",
    "IterativeSolver",
    "LocalSolver",
    "Majorization",
    "Outcome",
    "Solution",
    "Status",
]
