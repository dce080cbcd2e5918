"""Conjugate gradients on the squared local loss, without its Gram matrix."""

import torch
from torch import Tensor

from locoprop_lightning.errors import check_counts
from locoprop_lightning.local import LocalProblem, State
from locoprop_lightning.solvers.solution import Outcome, Recording
from locoprop_lightning.solvers.solver import LocalSolver


class ConjugateGradient(LocalSolver):
    """T steps towards the solution of V (C + lambda_r I) = -lambda_a D^T Y (Hestenes and Stiefel, 1952).

    Each output unit, a row of [W | b], is a system of its own. A product with C is one with Y and one with Y^T, or one
    with C itself where counting operations says so. J falls with every step, the residual need not.

    Args:
        iterations: T, at least 1.
    """

    squared_only = True

    def __init__(self, iterations: int = 10) -> None:  # T
        check_counts("ConjugateGradient", 1, iterations=iterations)
        self.iterations = iterations

    def run(self, problem: LocalProblem, state: State, recording: Recording) -> Outcome:  # noqa: D102
        problem.plan(self.iterations)
        v = problem.zeros()
        start = problem.first_gradient()
        residual = -start
        direction = residual
        square = _dot(residual, residual)
        solved = square * torch.finfo(square.dtype).eps ** 2  # beyond, there is rounding only
        losses = [] if recording is Recording.NOTHING else [problem.first_loss()]
        for k in range(self.iterations):
            product = problem.curvature(direction) + problem.lambda_r * direction
            curvature = _dot(direction, product)
            rate = torch.where(square > solved, square / curvature, torch.zeros_like(square))
            v = v + rate * direction
            residual = residual - rate * product
            last, square = square, _dot(residual, residual)
            direction = residual + torch.where(last > solved, square / last, torch.zeros_like(last)) * direction
            if recording is Recording.CURVE or (recording is Recording.ENDS and k == self.iterations - 1):
                losses.append(problem.loss(v))
        # J(W0 + V) - J(W0) = <V, g_0 + g> / 2 with the gradients g_0 at the start and g = -residual at the end
        change = (v * (start - residual)).sum() / 2
        return Outcome(v, change, torch.stack(losses) if losses else None)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Row by row [d_out, 1]."""
    return (a * b).sum(1, keepdim=True)
