"""What the solvers that invert a Gram matrix share: exact or kept factors, and protection against stale ones."""

from collections.abc import Callable

from torch import Tensor

from locoprop_lightning.local import LocalProblem
from locoprop_lightning.local.factor import Factor, State, invert
from locoprop_lightning.local.linear_map import times
from locoprop_lightning.solvers.solver import LocalSolver, Outcome, Status

_STALE_ROWS = 32  # rows on which a step from a kept factor is checked

Inverse = Callable[[Tensor], Tensor]


class FactoredSolver(LocalSolver):
    """A solver that multiplies gradients with (L C + lambda_r I)^-1.

    The defaults are exact on the current batch. With ``average`` or ``refresh_every`` C is n times a moving average of
    C/n, gathered and inverted at refreshes. A step from such a C is checked: where J rises, its divergence estimated on
    at most 32 rows, or where the kept inverse is not finite, the inverse is made anew from the current batch alone,
    which the average restarts from, and the layer is solved again in the same step.

    Layers with more than twice as many inputs as rows, or more inputs than rows where nothing is kept, go through
    Y Y^T [n, n] of the current batch, whose rows each of several processes is then given. A grouped convolution has one
    C for each group.

    Args:
        average: Decay of the moving average of C/n, bias-corrected, in [0, 1); 0 takes the current batch alone.
        refresh_every: Steps between refreshes, at least 1.
        warmup: Steps at the start of training in which every step refreshes, at least 0.
    """

    def __init__(self, average: float = 0.0, refresh_every: int = 1, warmup: int = 40, **others: int) -> None:
        super().__init__(**others)
        self.factor = Factor(average, refresh_every, warmup, type(self).__name__)

    def uses_kernel(self, problem: LocalProblem) -> bool:
        """Whether the layer is solved through Y Y^T."""
        return problem.map.groups == 1 and problem.n * (1 if self.factor.current else 2) < problem.map.width

    def describe(self, problem: LocalProblem) -> str:  # noqa: D102
        name = type(self).__name__
        return f"{name} ({problem.n} x {problem.n} kernel)" if self.uses_kernel(problem) else name

    def inverse(self, problem: LocalProblem, state: State, bound: float = 1.0) -> tuple[Inverse, bool]:
        """The function X -> X (bound C + lambda_r I)^-1 [d_out, width], and whether C is exactly the batch's.

        To be called once a step.
        """
        shape = [problem.map.groups, problem.map.width]
        if state.get("shape", shape) != shape:
            state.clear()  # another layer of the same name
        state["shape"] = shape
        if self.factor.current:
            inverse = invert(bound * problem.gram, problem.lambda_r)
            return lambda x: times(x.to(inverse.dtype), inverse).to(x.dtype), True
        ridge = problem.lambda_r if isinstance(problem.lambda_r, float | int) else 0.0
        settings = [float(ridge), float(bound)]
        restart = state.pop("restart", False)
        refreshed = restart or self.factor.due(state) or state.get("settings", settings) != settings
        state["settings"] = settings
        alone = restart or self.factor.average == 0 or "mean" not in state  # whether C will be this batch's own
        if refreshed:
            moment = problem.gram * (bound / problem.n)
            self.factor.refresh(state, moment, problem.n, problem.lambda_r, restart)
        if restart:  # in a step that has been counted
            state["age"] = 1
        else:
            self.factor.tick(state)
        exact = refreshed and alone
        return lambda x: self.factor.solve(state, x, problem.n), exact

    def rise(self, problem: LocalProblem, v: Tensor, exact: bool) -> Tensor:
        """The change of J, scalar, where the inverse is not of the batch's own C; zero else."""
        return v.new_zeros(()) if exact else problem.value(v, rows=_STALE_ROWS)

    def retry(self, problem: LocalProblem, state: State, status: Status, record: bool = False) -> Outcome | None:
        """Solves with a factor made anew."""
        if "inverse" not in state or (status is Status.NONFINITE and state["inverse"].isfinite().all()):
            return None
        state["restart"] = True
        return self.run(problem, state, record)
