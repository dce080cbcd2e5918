"""The exact solution of the squared local loss: FOOF (review, eq. 5)."""

import torch

from locoprop_lightning.local import LocalProblem
from locoprop_lightning.local.factor import State, factorize
from locoprop_lightning.solvers.factored import FactoredSolver
from locoprop_lightning.solvers.solver import Outcome


class ClosedForm(FactoredSolver):
    """W+ = W0 - lambda_a D^T Y (lambda_r I + C)^-1 (review, eq. 5; Benzing, 2022), for the squared loss alone.

    With fewer rows than inputs it is lambda_a D^T (lambda_r I + Y Y^T)^-1 Y. The defaults are exact on the current
    batch; for ``average``, ``refresh_every`` and ``warmup`` see ``FactoredSolver``. With ``WhitenedOracle`` this is
    K-FAC.
    """

    squared_only = True

    def run(self, problem: LocalProblem, state: State, record: bool = False) -> Outcome:  # noqa: D102
        if self.uses_kernel(problem):
            self.factor.tick(state)
            problem = problem.whole()
            factor = factorize(problem.map.kernel(), problem.lambda_r)
            scaled = torch.cholesky_solve(problem.direction.to(factor.dtype), factor).to(problem.direction.dtype)
            v, exact = problem.map.adjoint(scaled).mul_(-problem.lambda_a), True
        else:
            inverse, exact = self.inverse(problem, state)
            v = inverse(problem.first_gradient).neg_()
        losses = torch.stack([problem.first_loss(), problem.loss(v)]) if record else None
        return Outcome(v, self.rise(problem, v, exact), losses)
