"""Plain inner gradient steps, as the LocoProp paper publishes them and as the review corrects them."""

from typing import Any, Literal

from torch import Tensor

from locoprop_lightning.errors import check_choice, check_flags, check_positive
from locoprop_lightning.local import LocalProblem
from locoprop_lightning.local.problem import Scalar
from locoprop_lightning.solvers.iterative import IterativeSolver, Step

Schedule = Literal["constant", "published"]


class GradientDescent(IterativeSolver):
    """W <- W - eta_k grad, T times (review, Algorithms 1 and 2).

    A schedule of the run may multiply eta (``LocoPropModule``'s ``scheduled``).

    Args:
        iterations: T, at least 1.
        rate: eta; 1/lambda_r if not given.
        proximal: Whether the gradient contains the proximal term. False is the published LocoProp (Algorithm 1), where
            lambda_r matters through the default rate alone; True is the review's corrected one (Algorithm 2).
        schedule: "constant", or "published" to multiply the rate by max(1 - k/T, 0.25) in iteration k.
    """

    has_rate = True

    def __init__(
        self,
        iterations: int = 10,  # T
        rate: float | None = None,  # eta
        proximal: bool = False,
        schedule: Schedule = "constant",
    ) -> None:
        super().__init__(iterations)
        check_flags("GradientDescent", proximal=proximal)
        if rate is not None:
            check_positive("GradientDescent", rate=rate)
        self.rate = rate
        self.proximal = proximal
        self.schedule = check_schedule(schedule, "GradientDescent")

    def step(self, problem: LocalProblem, v: Tensor, gradient: Tensor, k: int, carry: Any) -> Step:  # noqa: D102
        return Step(v - self._rate(problem) * rate_factor(self.schedule, k, self.iterations) * gradient)

    def affine(self, problem: LocalProblem) -> tuple[Scalar, Scalar] | None:  # noqa: D102
        if self.schedule != "constant":
            return None
        rate = self._rate(problem)
        return rate, 1 - rate * problem.lambda_r if self.proximal else 1.0

    def _rate(self, problem: LocalProblem) -> Scalar:
        return (1 / problem.lambda_r if self.rate is None else self.rate) * problem.rate


def check_schedule(schedule: Schedule, owner: str) -> Schedule:
    """Passes a schedule of the inner rate through, or raises a UserError."""
    check_choice(owner, ("constant", "published"), schedule=schedule)
    return schedule


def rate_factor(schedule: Schedule, k: int, iterations: int) -> float:
    """What multiplies the inner rate in iteration k of T."""
    return max(1 - k / iterations, 0.25) if schedule == "published" else 1.0
