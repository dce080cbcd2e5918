"""One layer that is trained locally: what it is, its settings, and all that evolves with it."""

import logging
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from locoprop_lightning.layers import LayerKind
from locoprop_lightning.local import State, Transfer
from locoprop_lightning.solvers import Solution, Status

_log = logging.getLogger(__name__)


class LocalLayer:
    """A layer that a local solver may train.

    Args:
        name: Name in the network.
        module: The layer.
        kind: Its kind.
        lambda_a: Length of the oracle's step.
        lambda_r: Strength of the proximal term.

    Attributes:
        transfer: f, once the first batch has told what follows the layer; None where the layer is not local.
        solver_state: What the solver keeps from step to step.
        oracle_state: What the oracle keeps.
        counts: Solves that failed at first, by status.
    """

    def __init__(self, name: str, module: nn.Module, kind: LayerKind, lambda_a: float, lambda_r: float) -> None:
        self.name = name
        self.module = module
        self.kind = kind
        self.lambda_a = lambda_a
        self.lambda_r = lambda_r
        self.transfer: Transfer | None = None  # f
        self.solver_state: State = {}
        self.oracle_state: State = {}
        self.counts: dict[str, int] = {}

    def matrices(self) -> tuple[Tensor, Tensor | None]:
        """W0 [d_out, d_in] and b0 [d_out]."""
        weight, bias = self.kind.parameters(self.module)
        return self.kind.matrix(self.module, weight.detach()), None if bias is None else bias.detach()

    def gradients(self) -> list[Tensor] | None:
        """The back-propagated gradients of weight, as a matrix [d_out, d_in], and bias [d_out, 1]; None without."""
        weight, bias = self.kind.parameters(self.module)
        if weight.grad is None:
            return None
        parts = [self.kind.matrix(self.module, weight.grad)]
        return parts if bias is None or bias.grad is None else [*parts, bias.grad[:, None]]

    def clear_gradients(self) -> None:
        """Leaves the layer alone: optimizers pass over parameters without a gradient."""
        self.module.zero_grad(set_to_none=True)

    def write(self, solution: Solution) -> None:
        """Puts W0 - W+ where the gradients are."""
        weight, bias = solution.problem.split(solution.displacement)
        self.kind.write_gradient(self.module, weight.neg(), None if bias is None else bias.neg())

    def count(self, status: Status) -> None:
        """Counts a solve that failed at first, and says so once."""
        if status is not Status.RETRIED and not self.counts.keys() - {Status.RETRIED.value}:
            ended, way_out = "diverged", "a larger lambda_r or a smaller lambda_a helps"
            if status is Status.NONFINITE:
                ended = "was not finite, and the layer keeps its weights"
                way_out = "look at the inputs and the loss first"
            _log.warning("Layer %r: its local solution %s (said once, then counted); %s.", self.name, ended, way_out)
        self.counts[status.value] = self.counts.get(status.value, 0) + 1

    def state_dict(self) -> dict[str, Any]:
        """What evolves."""
        return {"solver": self.solver_state, "oracle": self.oracle_state, "counts": self.counts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what evolved."""
        self.solver_state, self.oracle_state, self.counts = state["solver"], state["oracle"], state["counts"]
