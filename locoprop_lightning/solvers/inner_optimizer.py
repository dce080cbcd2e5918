"""Inner steps by any torch optimizer, as the LocoProp paper takes them."""

import math
from copy import deepcopy
from typing import Any

from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer, SparseAdam

from locoprop_lightning.errors import UserError, check_flags, shown
from locoprop_lightning.local import LocalProblem, State
from locoprop_lightning.solvers.gradient_descent import Schedule, check_schedule, rate_factor
from locoprop_lightning.solvers.iterative import IterativeSolver, Step
from locoprop_lightning.solvers.solution import Outcome


class InnerOptimizer(IterativeSolver):
    """T steps of a torch optimizer on the local loss (Amid et al., 2022, with T = 10 and RMSProp).

    The optimizer sees one matrix a layer, the displacement [W | b] - [W0 | b0], which starts each batch at zero; decay
    of weights therefore pulls to W0. With ``persistent`` its state (momenta, second moments) goes on from batch to
    batch, and is saved with the checkpoint; a solve that ends non-finite leaves it as it was. For the published numbers
    take ``locoprop_lightning.optimizers.TensorFlowRMSprop``: torch's RMSprop has its epsilon outside the root, starts
    its mean square at zero and multiplies the rate after the momentum. Their schedule multiplies this optimizer's rate
    (``LocoPropModule(scheduled="inner")``).

    Args:
        optimizer: Makes the optimizer from the displacement.
        iterations: T, at least 1.
        proximal: Whether the gradient contains the proximal term; False as published.
        persistent: Whether the optimizer's state is kept across batches.
        schedule: "constant", or "published" to multiply the rate by max(1 - k/T, 0.25) in iteration k.
    """

    has_rate = True

    def __init__(
        self,
        optimizer: OptimizerCallable,
        iterations: int = 10,  # T
        proximal: bool = False,
        persistent: bool = True,
        schedule: Schedule = "constant",
    ) -> None:
        if not callable(optimizer):
            raise UserError(
                f"InnerOptimizer(optimizer={shown(optimizer)}): must make an optimizer, such as torch.optim.SGD."
            )
        super().__init__(iterations)
        check_flags("InnerOptimizer", proximal=proximal, persistent=persistent)
        self.optimizer = optimizer
        self.proximal = proximal
        self.persistent = persistent
        self.schedule = check_schedule(schedule, "InnerOptimizer")

    def init(self, problem: LocalProblem, state: State) -> tuple[Optimizer, list[float]]:
        """The layer's optimizer at zero displacement, and its rates."""
        parameter = nn.Parameter(problem.zeros())
        try:
            made = self.optimizer([parameter])
        except (TypeError, ValueError) as error:
            raise UserError(f"InnerOptimizer(optimizer): {error}.") from error
        if not isinstance(made, Optimizer):
            raise UserError(f"InnerOptimizer(optimizer): makes a {type(made).__name__}, not a torch.optim.Optimizer.")
        if not all(math.isfinite(group["lr"]) for group in made.param_groups):
            raise UserError(f"InnerOptimizer(optimizer): lr={made.param_groups[0]['lr']}: must be a finite number.")
        if isinstance(made, LBFGS):
            raise UserError("InnerOptimizer(optimizer=LBFGS) needs a closure; take one that steps by gradients.")
        if isinstance(made, SparseAdam):
            raise UserError("InnerOptimizer(optimizer=SparseAdam): takes no dense gradients; take Adam.")
        rates = [group["lr"] * problem.rate for group in made.param_groups]
        if self.persistent and state.get("kind") == _kind(made, parameter):
            # A copy, so that the state stays what it was. Rates and the like are those of the configuration.
            made.load_state_dict({**made.state_dict(), "state": deepcopy(state["optimizer"])})
        return made, rates

    def step(  # noqa: D102
        self, problem: LocalProblem, v: Tensor, gradient: Tensor, k: int, carry: tuple[Optimizer, list[float]]
    ) -> Step:
        optimizer, rates = carry
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * rate_factor(self.schedule, k, self.iterations)
        (parameter,) = optimizer.param_groups[0]["params"]
        parameter.grad = gradient.clone() if k == 0 else gradient
        optimizer.step()
        return Step(parameter.detach(), carry)

    def growth(self, problem: LocalProblem, v: Tensor, first: Tensor, last: Tensor, carry: Any) -> Tensor:
        """Zero: such an optimizer promises no fall of the residual, and is judged by finiteness alone."""
        return last.new_zeros(())

    def learnt(self, carry: tuple[Optimizer, list[float]]) -> Optimizer | None:
        """The optimizer, where its state is kept."""
        return carry[0] if self.persistent else None

    def keep(self, state: State, outcome: Outcome) -> None:
        """Takes the optimizer's state, into which nothing that is not finite has come."""
        if outcome.learnt is not None:
            state["optimizer"] = outcome.learnt.state_dict()["state"]
            state["kind"] = _kind(outcome.learnt, outcome.displacement)


def _kind(optimizer: Optimizer, v: Tensor) -> str:
    """What must be the same for a kept state to fit."""
    return f"{type(optimizer).__name__} of {list(v.shape)}"
