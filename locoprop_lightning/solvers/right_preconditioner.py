"""(L C + lambda_r I)^-1, which solvers multiply gradients with from the right: exact, or kept and protected."""

from collections.abc import Callable
from functools import cache, partial
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor

from locoprop_lightning.errors import check_choice
from locoprop_lightning.local import LocalProblem, Preconditioner, State
from locoprop_lightning.local.factorization import factorize, invert
from locoprop_lightning.local.operator import times
from locoprop_lightning.local.preconditioner import PreconditionerState
from locoprop_lightning.local.variants import in_float64, whole
from locoprop_lightning.solvers.solution import Status

Gather = Literal["refreshes", "steps"]
Kernel = Callable[[], tuple[Tensor, LocalProblem]]
_STALE_ROWS = 32  # rows on which a step from a kept inverse is checked
_YOUNG = 10  # steps in which C moves so fast that an average is far behind
_KEY = "preconditioner"  # of what is kept, in the state of a layer


class Inverse(NamedTuple):
    """The inverse of one step.

    Attributes:
        apply: X -> X (L C + lambda_r I)^-1 [d_out, width].
        judged: Part of a step at which J may not have risen; 0 where C is the current batch's own.
        problem: The problem whose gradients it is for: in float64 where the inverse is.
    """

    apply: Callable[[Tensor], Tensor]
    judged: float
    problem: LocalProblem


class RightPreconditioner:
    """(L C + lambda_r I)^-1 of the current batch, or with C as n times a moving average of C/n.

    With L = 1 it is the inverse of the review's eq. 5, as FOOF keeps it (Benzing, 2022); with L above, that of a
    majorisation step (``docs/mathematics.md``, sections 8 and 10).

    The average is gathered and inverted at refreshes, or gathered at every step. A step from such a C is checked: where
    J rises, its divergence estimated on at most 32 rows, or where the kept inverse is not finite, the inverse is made
    anew from the current batch alone, which the average restarts from, and the layer is solved again in the same step.
    Where a step's length is measured (``length``), J may rise in whole steps: a batch has more curvature along a step
    from its own gradient than others have, by 1 + width/n if its rows are independent. So J is judged at that part of
    the step, but in the first 10 steps.

    Layers with more than twice as many inputs as rows, or more inputs than rows where nothing is kept, go through
    Y Y^T [n, n] of the current batch. A grouped convolution has one C for each group. Where C is a diagonal, as of an
    embedding, nothing is kept: that of the current batch costs next to nothing.

    Where lambda_r is so small that rounding in float32 would put the solution off by more than about a thousandth, all
    that it is made of is made in float64 (``factorize``).

    Args:
        average: Decay of the moving average of C/n, in [0, 1); 0 takes the current batch alone.
        refresh_every: Steps between refreshes, at least 1.
        warmup: Steps at the start of training in which every step refreshes, at least 0.
        owner: Name of the class whose settings these are, for messages.
        gather: "refreshes" or "steps".
        bias_correction: Whether the average is bias-corrected; else its first value has the weight 1.
    """

    def __init__(
        self,
        average: float,
        refresh_every: int,
        warmup: int,
        owner: str,
        gather: Gather = "refreshes",
        bias_correction: bool = True,
    ) -> None:
        check_choice(owner, ("refreshes", "steps"), gather=gather)
        self.owner = owner
        self.gather = gather
        self.kept = Preconditioner(average, refresh_every, warmup, owner, bias_correction=bias_correction)

    def uses_kernel(self, problem: LocalProblem) -> bool:
        """Whether the layer is solved through Y Y^T."""
        operator = problem.operator
        if operator.groups > 1 or operator.diagonal or operator.expanded is not None:
            return False
        return problem.n * (1 if self.kept.current else 2) < operator.width

    def describe(self, problem: LocalProblem) -> str:
        """Who trains the layer, for the table of layers."""
        return f"{self.owner} ({problem.n} x {problem.n} kernel)" if self.uses_kernel(problem) else self.owner

    def inverse(self, problem: LocalProblem, state: State, bound: float = 1.0) -> Inverse:
        """The inverse of this step, which the problem is offered; to be called once a step.

        Args:
            problem: The problem.
            state: What evolves for this layer.
            bound: Upper bound L of the slope of f.
        """
        kept = _kept(state)
        shape = [problem.operator.groups, problem.operator.width]
        if kept.get("shape", shape) != shape:
            kept.clear()  # type: ignore[attr-defined]  # another layer of the same name
        kept["shape"] = shape
        wide = cache(partial(in_float64, problem))
        if self.kept.current or problem.operator.diagonal:
            inverse = invert(bound * problem.gram(), problem.lambda_r, lambda: bound * wide().gram())
            return _offered(problem, inverse, lambda x: times(x.to(inverse.dtype), inverse).to(x.dtype), 0.0)
        damping = problem.lambda_r if isinstance(problem.lambda_r, float | int) else 0.0
        settings = [float(damping), float(bound)]
        refreshes = self.kept.due(kept) or kept.get("settings", settings) != settings
        kept["settings"] = settings
        alone = self.kept.average == 0 or "average" not in kept  # whether C will be this batch's own
        if refreshes or self.gather == "steps":
            moment = problem.gram() * (bound / problem.n)
            if refreshes:
                anew = lambda: wide().gram() * (bound / problem.n)  # noqa: E731
                self.kept.refresh(kept, moment, problem.n, problem.lambda_r, wide=anew)
            else:
                self.kept.gather(kept, moment)
        self.kept.tick(kept)
        judged = 1.0
        if refreshes and alone:
            judged = 0.0
        elif problem.length is not None and kept["steps"] > _YOUNG:
            judged = problem.n / (problem.n + problem.operator.width)
        return _offered(problem, kept["inverse"], lambda x: self.kept.solve(kept, x, problem.n), judged)

    def through_kernel(self, problem: LocalProblem, state: State) -> tuple[Kernel, LocalProblem]:
        """Solves through Y Y^T; once a step.

        Args:
            problem: The problem; it is offered the inverse, by Woodbury's identity.
            state: What evolves for this layer.

        Returns:
            What makes the Cholesky factor of Y Y^T + lambda_r I, with the problem that it is for, in float64 where the
            factor is; and the problem with all rows at hand.
        """
        self.kept.tick(_kept(state))
        problem = whole(problem)
        wide = cache(partial(in_float64, problem))

        @cache
        def kernel() -> tuple[Tensor, LocalProblem]:
            factor = factorize(problem.operator.kernel(), problem.lambda_r, lambda: wide().operator.kernel())
            return factor, _matching(problem, factor)

        def inverse(x: Tensor) -> Tensor:
            factor, own = kernel()
            x_ = x.to(factor.dtype)
            inner = torch.cholesky_solve(own.operator.apply(x_), factor)
            return ((x_ - own.operator.adjoint(inner)) / own.lambda_r).to(x.dtype)

        problem.offer(inverse)
        return kernel, problem

    def rise(self, problem: LocalProblem, v: Tensor, judged: float) -> Tensor:
        """The change of J, scalar, at a part of a step; zero where the inverse is of the batch's own C."""
        if not judged:
            return v.new_zeros(())
        return problem.value(v if judged == 1 else judged * v, at_most=_STALE_ROWS)

    def renew(self, problem: LocalProblem, state: State, status: Status) -> State | None:
        """What to try a failed solve again with, where it may be the fault of a kept inverse; else None.

        Args:
            problem: The problem.
            state: What evolves for this layer; the inverse and its average are forgotten, to be made anew, but for a
                batch that stands out.
            status: How it failed. One that is not finite is the batch's fault where the first gradient is not either.

        Returns:
            The state, or for one batch that stands out an empty one, so that what is kept of the others stays.
        """
        kept = _kept(state)
        if "inverse" not in kept:
            return None
        if status is Status.NONFINITE and kept["inverse"].isfinite().all() and not _finite(problem):
            return None
        if self.kept.is_outlier(kept, problem.gram() / problem.n):
            return {}
        self.kept.forget(kept)
        return state


def _offered(problem: LocalProblem, inverse: Tensor, apply: Callable[[Tensor], Tensor], judged: float) -> Inverse:
    problem.offer(apply)
    return Inverse(apply, judged, _matching(problem, inverse))


def _matching(problem: LocalProblem, factor: Tensor) -> LocalProblem:
    """The problem, in float64 where a factor of it is."""
    return problem if factor.dtype == problem.weight.dtype else in_float64(problem)


def _finite(problem: LocalProblem) -> bool:
    return bool(problem.first_gradient().isfinite().all())


def _kept(state: State) -> PreconditionerState:
    return cast(PreconditionerState, state.setdefault(_KEY, {}))
