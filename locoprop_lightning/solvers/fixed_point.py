"""Fixed-point iteration on the review's eq. 3."""

from typing import Any

from torch import Tensor

from locoprop_lightning.local import LocalProblem
from locoprop_lightning.local.problem import Scalar
from locoprop_lightning.solvers.iterative import IterativeSolver, Step


class FixedPointIteration(IterativeSolver):
    """W <- W0 - (f(Y W^T) - T)^T Y / lambda_r (review, eq. 3).

    It is gradient descent on the local loss with rate 1/lambda_r, and converges where lambda_r > L lambda_max(C). One
    iteration is back-propagation with rate lambda_a / lambda_r.

    Args:
        iterations: T, at least 1.
    """

    def step(self, problem: LocalProblem, v: Tensor, gradient: Tensor, k: int, carry: Any) -> Step:  # noqa: D102
        return Step(v - gradient / problem.lambda_r)

    def affine(self, problem: LocalProblem) -> tuple[Scalar, Scalar]:  # noqa: D102
        return 1 / problem.lambda_r, 0.0
