"""Plain inner gradient steps, as the LocoProp paper publishes them and as the review corrects them."""

from typing import Any

from torch import Tensor

from locoprop_lightning.errors import UserError
from locoprop_lightning.local import LocalProblem
from locoprop_lightning.solvers.solver import IterativeSolver


class GradientDescent(IterativeSolver):
    """W <- W - eta_k grad, T times (review, Algorithms 1 and 2).

    Args:
        iterations: T, at least 0.
        rate: eta; 1/lambda_r if not given.
        proximal: Whether the gradient contains the proximal term. False is the published LocoProp (Algorithm 1), where
            lambda_r matters through the default rate alone; True is the review's corrected one (Algorithm 2).
        decay: Whether to multiply the rate by max(1 - k/T, 0.25) in iteration k, as published.
    """

    def __init__(
        self,
        iterations: int = 10,  # T
        rate: float | None = None,  # eta
        proximal: bool = False,
        decay: bool = False,
    ) -> None:
        super().__init__(iterations)
        if rate is not None and not rate > 0:
            raise UserError(f"GradientDescent(rate={rate}): must be above 0, or null for 1/lambda_r.")
        self.rate = rate
        self.proximal = proximal
        self.decay = decay

    def step(self, problem: LocalProblem, v: Tensor, gradient: Tensor, k: int, inner: Any) -> Tensor:  # noqa: D102
        rate = 1 / problem.lambda_r if self.rate is None else self.rate
        if self.decay:
            rate = rate * max(1 - k / self.iterations, 0.25)
        return v - rate * gradient
