"""Majorisation-minimisation of the matching loss: quadratic upper bounds solved exactly, without a step size."""

from typing import Literal

import torch
from torch import Tensor

from locoprop_lightning.errors import UserError
from locoprop_lightning.local import LocalProblem
from locoprop_lightning.local.factor import State
from locoprop_lightning.solvers.factored import FactoredSolver, Inverse
from locoprop_lightning.solvers.solver import IterativeSolver, Outcome


class Majorization(FactoredSolver, IterativeSolver):
    """W <- W - grad J(W) (L C + lambda_r I)^-1, T times, with L the bound of f'.

    The step minimises the quadratic that touches J at W and lies above it everywhere (L bounds the curvature of the
    divergence), so J never rises: no step size, no spikes. On the squared loss one step is the exact solution.

    That promise needs the C of the current batch and plain steps. With a kept C (``average``, ``refresh_every``) the
    quadratic need not lie above J; a result that raised J is solved again with a fresh C. With ``acceleration`` the
    limit is reached in fewer steps, but J may rise from one step to the next; a unit whose step points uphill loses
    its momentum.

    Args:
        iterations: T, at least 1.
        acceleration: None, or "nesterov" (Nesterov, 1983; restarts by O'Donoghue and Candes, 2015).
        average: See ``FactoredSolver``.
        refresh_every: See ``FactoredSolver``.
        warmup: See ``FactoredSolver``.
    """

    def __init__(
        self,
        iterations: int = 3,  # T
        acceleration: Literal["nesterov"] | None = None,
        average: float = 0.0,
        refresh_every: int = 1,
        warmup: int = 40,
    ) -> None:
        super().__init__(average, refresh_every, warmup, iterations=iterations)
        if acceleration not in (None, "nesterov"):
            raise UserError(f"Majorization(acceleration={acceleration!r}): take null or 'nesterov'.")
        self.acceleration = acceleration

    def run(self, problem: LocalProblem, state: State, record: bool = False) -> Outcome:
        """The driver loop; a layer with more inputs than rows is solved in the span of its rows."""
        if not self.uses_kernel(problem):
            return super().run(problem, state, record)
        self.factor.tick(state)
        reduced, lift = problem.whole().reduced()
        outcome = super().run(reduced, {}, record)
        return outcome._replace(displacement=lift(outcome.displacement))

    def init(self, problem: LocalProblem, state: State) -> "_Inner":  # noqa: D102
        inverse, exact = self.inverse(problem, state, problem.transfer.bound)
        return _Inner(inverse, exact, problem.zeros())

    def step(self, problem: LocalProblem, v: Tensor, gradient: Tensor, k: int, inner: "_Inner") -> Tensor:  # noqa: D102
        step = inner.inverse(gradient)
        inner.size = (gradient * step).sum()
        new = v - step
        if self.acceleration is None:
            return new
        moved = new - inner.last
        slope = gradient * moved
        uphill = (slope.sum() if problem.transfer.rowwise else slope.sum(1, keepdim=True)) > 0
        t = torch.where(uphill, 1.0, inner.t)
        inner.t = (1 + (1 + 4 * t**2).sqrt()) / 2
        inner.last = new
        return new if k == self.iterations - 1 else new + moved * ((t - 1) / inner.t)

    def iterate(self, v: Tensor, inner: "_Inner") -> Tensor:
        """The point before extrapolation."""
        return v if self.acceleration is None else inner.last

    def residual(self, problem: LocalProblem, gradient: Tensor, inner: "_Inner") -> Tensor:
        """Squared norm of the gradient in the metric of the step, which plain steps never let grow."""
        return inner.size

    def growth(self, problem: LocalProblem, v: Tensor, first: Tensor, last: Tensor, inner: "_Inner") -> Tensor:
        """The growth of the residual where nothing lets J rise, the change of J else."""
        if not inner.exact:
            return self.rise(problem, v, exact=False)
        return last - first if self.acceleration is None else problem.value(v)


class _Inner:
    """What the steps of one solve share.

    Args:
        inverse: Multiplies with (L C + lambda_r I)^-1.
        exact: Whether C is the batch's own.
        last: The last point, before extrapolation [d_out, width].
    """

    def __init__(self, inverse: Inverse, exact: bool, last: Tensor) -> None:
        self.inverse = inverse
        self.exact = exact
        self.last = last
        self.t = last.new_ones(last.shape[0], 1)  # Nesterov's t_k, for each unit
        self.size = last.new_zeros(())  # <gradient, step> of the latest step
