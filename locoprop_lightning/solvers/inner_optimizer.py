"""Inner steps by any torch optimizer, as the LocoProp paper takes them."""

from copy import deepcopy
from typing import Any

from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from locoprop_lightning.errors import UserError
from locoprop_lightning.local import LocalProblem
from locoprop_lightning.local.factor import State
from locoprop_lightning.solvers.gradient_descent import Schedule, check_schedule, rate_factor
from locoprop_lightning.solvers.solver import IterativeSolver, Outcome, Status


class InnerOptimizer(IterativeSolver):
    """T steps of a torch optimizer on the local loss (Amid et al., 2022, with T = 10 and RMSProp).

    The optimizer sees one matrix a layer, the displacement [W | b] - [W0 | b0], which starts each batch at zero; decay
    of weights therefore pulls to W0. With ``persistent`` its state (momenta, second moments) goes on from batch to
    batch, and is saved with the checkpoint; a solve that ends non-finite leaves it as it was. For the published numbers
    take ``locoprop_lightning.optimizers.TensorFlowRMSprop``: torch's RMSprop has its epsilon outside the root, starts
    its mean square at zero and multiplies the rate after the momentum.

    Args:
        optimizer: Makes the optimizer from the displacement.
        iterations: T, at least 1.
        proximal: Whether the gradient contains the proximal term; False as published.
        persistent: Whether the optimizer's state is kept across batches.
        schedule: "constant", or "published" to multiply the rate by max(1 - k/T, 0.25) in iteration k.
    """

    def __init__(
        self,
        optimizer: OptimizerCallable,
        iterations: int = 10,  # T
        proximal: bool = False,
        persistent: bool = True,
        schedule: Schedule = "constant",
    ) -> None:
        super().__init__(iterations)
        self.optimizer = optimizer
        self.proximal = proximal
        self.persistent = persistent
        self.schedule = check_schedule(schedule, "InnerOptimizer")
        self._previous: dict[str, Any] = {}  # state of the optimizer before the latest solve, by layer
        self._latest: dict[str, Optimizer] = {}  # the optimizer of the solve in progress, by layer

    def init(self, problem: LocalProblem, state: State) -> tuple[Optimizer, list[float]]:
        """The layer's optimizer at zero displacement, and its rates."""
        parameter = nn.Parameter(problem.zeros())
        made = self._latest[problem.name] = self.optimizer([parameter])
        if isinstance(made, LBFGS):
            raise UserError("InnerOptimizer(optimizer=LBFGS) needs a closure; take one that steps by gradients.")
        rates = [group["lr"] for group in made.param_groups]
        if self.persistent and state.get("kind") == _kind(made, parameter):
            # A copy, so that the state stays what it was. Rates and the like are those of the configuration.
            made.load_state_dict({**made.state_dict(), "state": deepcopy(state["optimizer"])})
        return made, rates

    def step(  # noqa: D102
        self, problem: LocalProblem, v: Tensor, gradient: Tensor, k: int, inner: tuple[Optimizer, list[float]]
    ) -> Tensor:
        optimizer, rates = inner
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * rate_factor(self.schedule, k, self.iterations)
        (parameter,) = optimizer.param_groups[0]["params"]
        parameter.grad = gradient.clone() if k == 0 else gradient
        optimizer.step()
        return parameter.detach()

    def growth(self, problem: LocalProblem, v: Tensor, first: Tensor, last: Tensor, inner: Any) -> Tensor:
        """Zero: such an optimizer promises no fall of the residual, and is judged by finiteness alone."""
        return last.new_zeros(())

    def run(self, problem: LocalProblem, state: State, record: bool = False) -> Outcome:  # noqa: D102
        self._previous[problem.name] = dict(state)
        outcome = super().run(problem, state, record)
        if self.persistent and self.iterations > 0:
            optimizer = self._latest.pop(problem.name)
            learnt = optimizer.state_dict()["state"]
            state |= {"optimizer": learnt, "kind": _kind(optimizer, outcome.displacement)}
        return outcome

    def retry(self, problem: LocalProblem, state: State, status: Status, record: bool = False) -> None:
        """Puts the optimizer's state back, where something non-finite entered it."""
        state.clear()
        state |= self._previous[problem.name]


def _kind(optimizer: Optimizer, v: Tensor) -> str:
    """What must be the same for a kept state to fit."""
    return f"{type(optimizer).__name__} of {list(v.shape)}"
