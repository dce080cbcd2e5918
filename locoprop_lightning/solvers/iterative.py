"""Solvers that iterate: one driver loop for all, of which a solver says one step."""

import math
from abc import abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from locoprop_lightning.errors import UserError, check_counts
from locoprop_lightning.local import LocalProblem, State
from locoprop_lightning.local.powers import power_sum, power_sum_products
from locoprop_lightning.local.problem import Scalar
from locoprop_lightning.solvers.solution import Outcome, Recording
from locoprop_lightning.solvers.solver import LocalSolver


class Step(NamedTuple):
    """What one inner step gives.

    Attributes:
        point: V of the next gradient [d_out, width].
        carry: What the next step is given of this one; nothing if left out.
        residual: How far the step's start was from a solution, scalar; the norm of its gradient if not said.
        solution: V that would be the solution if this step were the last [d_out, width]; ``point`` if not said.
    """

    point: Tensor
    carry: Any = None
    residual: Tensor | None = None
    solution: Tensor | None = None


class IterativeSolver(LocalSolver):
    """T inner steps from V = 0; the first gradient is the back-propagated one, so T steps cost T - 1 gradients.

    A solve whose residual grew from the first step to the last diverged (``docs/mathematics.md``, section 8).

    Args:
        iterations: T, at least 1.
    """

    iterations: int
    proximal = True  # whether the gradients contain lambda_r V

    def __init__(self, iterations: int = 10) -> None:  # T
        check_counts(type(self).__name__, 1, iterations=iterations)
        self.iterations = iterations

    def affine(self, problem: LocalProblem) -> tuple[Scalar, Scalar] | None:
        """Constants (r, s) where every step is V <- s V - r (grad J less its proximal term), else None.

        On the squared loss such steps are powers of one matrix, taken by repeated squaring where that costs less.
        """
        return None

    def init(self, problem: LocalProblem, state: State) -> Any:
        """What the first step is given to carry on.

        Args:
            problem: The problem; not changed.
            state: What evolves for this layer; may be changed.
        """
        return None

    @abstractmethod
    def step(self, problem: LocalProblem, v: Tensor, gradient: Tensor, k: int, carry: Any) -> Step:
        """Iteration k.

        Args:
            problem: The problem; not changed.
            v: The point [d_out, width]; not changed.
            gradient: grad J there [d_out, width]; not changed.
            k: Number of the iteration, from 0.
            carry: What ``init`` or the step before gave. It belongs to this solve and may be changed and given on.
        """

    def growth(self, problem: LocalProblem, v: Tensor, first: Tensor, last: Tensor, carry: Any) -> Tensor:
        """How much worse the solution ``v`` is than the start, scalar; above 0 it diverged.

        Args:
            problem: The problem.
            v: The solution [d_out, width].
            first: Residual of the first step.
            last: Residual of the last.
            carry: What the last step gave.
        """
        return last - first

    def learnt(self, carry: Any) -> Any:
        """What ``keep`` is handed of a solve, out of what its last step gave to carry on; nothing if not overridden."""
        return None

    def run(self, problem: LocalProblem, state: State, recording: Recording) -> Outcome:
        """The steps, from what ``init`` gives."""
        return self.iterate(problem, self.init(problem, state), recording)

    def iterate(self, problem: LocalProblem, carry: Any, recording: Recording) -> Outcome:
        """The steps, or all of them at once where that costs less.

        Args:
            problem: The problem; not changed.
            carry: What the first step is given.
            recording: Which local losses to compute.
        """
        cost = problem.plan(self.iterations - 1)
        affine = self.affine(problem)
        if affine is None or _squaring_cost(problem, self.iterations) >= cost:
            return self._loop(problem, carry, recording)
        outcome = self._squared(problem, *affine)  # the same V whether recorded or not
        losses = None
        if recording is Recording.CURVE:
            losses = self._loop(problem, carry, recording).losses
        elif recording is Recording.ENDS:
            losses = torch.stack([problem.first_loss(), problem.loss(outcome.displacement)])
        return outcome._replace(losses=losses)

    def _loop(self, problem: LocalProblem, carry: Any, recording: Recording) -> Outcome:
        """The driver loop."""
        v = solution = problem.zeros()
        gradient = problem.first_gradient()
        first = last = gradient.new_zeros(())
        losses = [] if recording is Recording.NOTHING else [problem.first_loss()]
        for k in range(self.iterations):
            if k > 0:
                gradient = problem.gradient(v, self.proximal)
            made = self.step(problem, v, gradient, k, carry)
            if not isinstance(made, Step):
                raise UserError(f"{type(self).__name__}.step: must return a Step, not {type(made).__name__}.")
            if made.point.shape != v.shape or made.point.dtype != v.dtype:
                found, wanted = ([*one.shape] for one in (made.point, v))
                raise UserError(
                    f"{type(self).__name__}.step: its point is {found} of {made.point.dtype}, and must be {wanted} of "
                    f"{v.dtype}."
                )
            v, carry, residual, early = made
            solution = v if early is None else early
            if k in (0, self.iterations - 1):
                last = torch.linalg.vector_norm(gradient) if residual is None else residual
            if k == 0:
                first = last
            if recording is Recording.CURVE or (recording is Recording.ENDS and k == self.iterations - 1):
                losses.append(problem.loss(solution))
        growth = self.growth(problem, solution, first, last, carry)
        return Outcome(solution, growth, torch.stack(losses) if losses else None, self.learnt(carry))

    def _squared(self, problem: LocalProblem, rate: Scalar, shrink: Scalar) -> Outcome:
        """All iterations at once: V <- V M - rate g with M = shrink I - rate C, from V = 0."""
        m = problem.gram() * -rate
        m.diagonal().add_(shrink)
        v = power_sum(problem.first_gradient() * -rate, m, self.iterations - 1)
        gradient = torch.addmm(problem.first_gradient(), v, problem.gram())  # of the last step, less its proximal term
        first = torch.linalg.vector_norm(problem.first_gradient())
        last = torch.linalg.vector_norm(gradient + v * problem.lambda_r if self.proximal else gradient)
        return Outcome(shrink * v - rate * gradient, last - first, None)


def _squaring_cost(problem: LocalProblem, iterations: int) -> float:
    """Floating-point operations of ``IterativeSolver._squared``; infinite where the loss is not squared."""
    if not problem.squared or iterations < 2:
        return math.inf
    products, squarings = power_sum_products(iterations - 1)
    d_out, width = problem.shape
    return problem.gram_cost() + 2.0 * width**2 * ((products + 1) * d_out + squarings * width)
