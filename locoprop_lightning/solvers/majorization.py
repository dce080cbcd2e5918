"""Majorisation-minimisation of the matching loss: quadratic upper bounds solved exactly, without a step size."""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from locoprop_lightning.errors import UserError, shown
from locoprop_lightning.local import LocalProblem, State
from locoprop_lightning.local.reduction import reduced
from locoprop_lightning.solvers.iterative import IterativeSolver, Step
from locoprop_lightning.solvers.right_preconditioner import Inverse, RightPreconditioner
from locoprop_lightning.solvers.solution import Outcome, Recording, Status


class Majorization(IterativeSolver):
    """W <- W - grad J(W) (L C + lambda_r I)^-1, T times, with L the bound of f'.

    The step minimises the quadratic that touches J at W and lies above it everywhere (L bounds the curvature of the
    divergence), so J never rises: no step size, no spikes. On the squared loss one step is the exact solution. It is
    derived in ``docs/mathematics.md``, section 8.

    That promise needs the C of the current batch and plain steps. With a kept C (``average``, ``refresh_every``) the
    quadratic need not lie above J; a result that raised J is solved again with a fresh C. With ``acceleration`` the
    limit is reached in fewer steps, but J may rise from one step to the next; a unit whose step points uphill loses
    its momentum.

    Args:
        iterations: T, at least 1.
        acceleration: None, or "nesterov" (Nesterov, 1983; restarts by O'Donoghue and Candes, 2015).
        average: Decay of the moving average of C/n, bias-corrected, in [0, 1); 0 takes the current batch alone.
        refresh_every: Steps between refreshes, at least 1.
        warmup: Steps at the start of training in which every step refreshes, at least 0.
    """

    offers_inverse = True

    def __init__(
        self,
        iterations: int = 3,  # T
        acceleration: Literal["nesterov"] | None = None,
        average: float = 0.0,
        refresh_every: int = 1,
        warmup: int = 40,
    ) -> None:
        super().__init__(iterations)
        if acceleration not in (None, "nesterov"):
            raise UserError(f"Majorization(acceleration={shown(acceleration)}): take null or 'nesterov'.")
        self.acceleration = acceleration
        self.preconditioner = RightPreconditioner(average, refresh_every, warmup, type(self).__name__)

    def check(self, problem: LocalProblem) -> None:
        """Refuses a transfer whose slope has no bound too.

        Raises:
            UserError: Names the layer and its transfer.
        """
        super().check(problem)
        if not math.isfinite(problem.transfer.bound):
            stand_in = f"set transfers={{{problem.name!r}: 'relu'}}, or " if problem.name else ""
            raise UserError(
                f"Majorization needs a bound of the slope, but {problem.called} matches through "
                f"{problem.transfer.name}, which has none: {stand_in}take AndersonAcceleration."
            )

    def describe(self, problem: LocalProblem) -> str:  # noqa: D102
        return self.preconditioner.describe(problem)

    def run(self, problem: LocalProblem, state: State, recording: Recording) -> Outcome:
        """The steps; a layer with more inputs than rows is solved in the span of its rows."""
        dtype, lift = problem.weight.dtype, None
        if self.preconditioner.uses_kernel(problem):
            _, problem = self.preconditioner.through_kernel(problem, state)
            problem, lift = reduced(problem)
            state = {}
        carry = self.init(problem, state)
        outcome = self.iterate(carry.inverse.problem, carry, recording).to(dtype)
        return outcome if lift is None else outcome._replace(displacement=lift(outcome.displacement))

    def retry(self, problem: LocalProblem, state: State, status: Status, recording: Recording) -> Outcome | None:
        """Solves with an inverse made anew."""
        renewed = self.preconditioner.renew(problem, state, status)
        return None if renewed is None else self.run(problem, renewed, recording)

    def init(self, problem: LocalProblem, state: State) -> "_Momentum":  # noqa: D102
        inverse = self.preconditioner.inverse(problem, state, problem.transfer.bound)
        start = inverse.problem.zeros()
        return _Momentum(inverse, start, start.new_ones(start.shape[0], 1))

    def step(self, problem: LocalProblem, v: Tensor, gradient: Tensor, k: int, carry: "_Momentum") -> Step:
        """One step of the quadratic bound.

        Its residual is the squared norm of the gradient in the metric of the step, which plain steps never let grow.
        """
        step = carry.inverse.apply(gradient)
        size = (gradient * step).sum()
        new = v - step
        if self.acceleration is None:
            return Step(new, carry, size)
        moved = new - carry.last
        slope = gradient * moved
        uphill = (slope.sum() if problem.transfer.rowwise else slope.sum(1, keepdim=True)) > 0
        t = torch.where(uphill, 1.0, carry.t)
        after = (1 + (1 + 4 * t**2).sqrt()) / 2
        point = new if k == self.iterations - 1 else new + moved * ((t - 1) / after)
        return Step(point, carry._replace(last=new, t=after), size, solution=new)

    def growth(self, problem: LocalProblem, v: Tensor, first: Tensor, last: Tensor, carry: "_Momentum") -> Tensor:
        """The growth of the residual where nothing lets J rise, the change of J else."""
        if carry.inverse.judged:
            return self.preconditioner.rise(problem, v, carry.inverse.judged)
        return last - first if self.acceleration is None else problem.value(v)


class _Momentum(NamedTuple):
    """What one step hands to the next.

    Attributes:
        inverse: The preconditioner of all steps.
        last: The last point, before extrapolation [d_out, width].
        t: Nesterov's t_k, for each unit [d_out, 1].
    """

    inverse: Inverse
    last: Tensor
    t: Tensor
