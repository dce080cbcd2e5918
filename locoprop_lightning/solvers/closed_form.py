"""The exact solution of the squared local loss: FOOF (review, eq. 5)."""

import torch

from locoprop_lightning.local import LocalProblem, State
from locoprop_lightning.solvers.right_preconditioner import Gather, RightPreconditioner
from locoprop_lightning.solvers.solution import Outcome, Recording, Status
from locoprop_lightning.solvers.solver import LocalSolver


class ClosedForm(LocalSolver):
    """W+ = W0 - lambda_a D^T Y (lambda_r I + C)^-1 (review, eq. 5; Benzing, 2022), for the squared loss alone.

    With fewer rows than inputs it is lambda_a D^T (lambda_r I + Y Y^T)^-1 Y. The defaults are exact on the current
    batch; an inverse that is kept for several steps is checked and made anew (``RightPreconditioner``). With
    ``WhitenedOracle`` this is K-FAC.

    Args:
        average: Decay of the moving average of C/n, in [0, 1); 0 takes the current batch alone.
        refresh_every: Steps between refreshes, at least 1.
        warmup: Steps at the start of training in which every step refreshes, at least 0.
        gather: When the average takes in C/n: at "refreshes", or at all "steps", which costs a product a step.
        bias_correction: Whether the average is bias-corrected; else its first value has the weight 1.
    """

    squared_only = True
    offers_inverse = True

    def __init__(
        self,
        average: float = 0.0,
        refresh_every: int = 1,
        warmup: int = 40,
        gather: Gather = "refreshes",
        bias_correction: bool = True,
    ) -> None:
        name = type(self).__name__
        self.preconditioner = RightPreconditioner(average, refresh_every, warmup, name, gather, bias_correction)

    def describe(self, problem: LocalProblem) -> str:  # noqa: D102
        return self.preconditioner.describe(problem)

    def run(self, problem: LocalProblem, state: State, recording: Recording) -> Outcome:  # noqa: D102
        dtype = problem.weight.dtype
        if self.preconditioner.uses_kernel(problem):
            kernel, _ = self.preconditioner.through_kernel(problem, state)
            factor, problem = kernel()
            scaled = torch.cholesky_solve(problem.direction, factor)
            v, judged = problem.operator.adjoint(scaled).mul_(-problem.lambda_a), 0.0
        else:
            inverse, judged, problem = self.preconditioner.inverse(problem, state)
            v = inverse(problem.first_gradient()).neg_()
        losses = None if recording is Recording.NOTHING else torch.stack([problem.first_loss(), problem.loss(v)])
        return Outcome(v, self.preconditioner.rise(problem, v, judged), losses).to(dtype)

    def retry(self, problem: LocalProblem, state: State, status: Status, recording: Recording) -> Outcome | None:
        """Solves with an inverse made anew."""
        renewed = self.preconditioner.renew(problem, state, status)
        return None if renewed is None else self.run(problem, renewed, recording)
