"""One layer that is trained locally: what it is, its settings, and all that evolves with it."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from locoprop_lightning.errors import UserError
from locoprop_lightning.layers import LayerKind, Record, rounding
from locoprop_lightning.layers.record import Content
from locoprop_lightning.local import LocalProblem, State, Transfer
from locoprop_lightning.solvers import Solution, Status

_log = logging.getLogger(__name__)
OTHER_GRADIENT = "its weight gradient is not that of its calls alone, as where the pass or the loss takes gradients"
UNRECORDED = "called where its rows cannot be recorded: in checkpoint(use_reentrant=True) or within torch.func"


class Report(NamedTuple):
    """What is logged of one layer's solve, on the device.

    Attributes:
        losses: Local loss a sample before the first and after each iteration [T + 1], or the first and last alone [2].
        displacement: Norm of the applied displacement relative to the weights', scalar; 0 for a refused solution.
        out_of_range: Fraction of the targets outside the range of f, scalar.
    """

    losses: Tensor
    displacement: Tensor
    out_of_range: Tensor


def ends(losses: Sequence[float]) -> dict[str, float]:
    """The local loss before and after a solve, and the part of it that is gone.

    Args:
        losses: As in a report, off the device.
    """
    first, last = losses[0], losses[-1]
    return {"first": first, "last": last, "reduction": 1 - last / first if first else 0.0}


class LocalLayer:
    """A layer that a local solver may train.

    Args:
        name: Name in the network.
        module: The layer.
        kind: Its kind.

    Attributes:
        lambda_a: Length of the oracle's step, as the settings of the fit have it.
        lambda_r: Strength of the proximal term.
        unit_groups: Groups of neighbouring units that are layers of their own to the oracle.
        transfer: f, once the first batch has told what follows the layer; None where the layer is not local.
        solver_state: What the solver keeps from step to step.
        oracle_state: What the oracle keeps.
        counts: Solves that failed at first, by status.
    """

    lambda_a: float
    lambda_r: float
    unit_groups = 1

    def __init__(self, name: str, module: nn.Module, kind: LayerKind) -> None:
        self.name = name
        self.module = module
        self.kind = kind
        self.transfer: Transfer | None = None  # f
        self.solver_state: State = {}
        self.oracle_state: State = {}
        self.counts: dict[str, int] = {}

    def take(self, transfer: Transfer, lambda_a: float, lambda_r: float, unit_groups: float) -> None:
        """Takes the settings of a fit.

        Args:
            transfer: As the attribute.
            lambda_a: As the attribute.
            lambda_r: As the attribute.
            unit_groups: As the attribute.

        Raises:
            UserError: Where the units do not fall into so many groups of one size.
        """
        units = len(self.matrices()[0])
        if units % unit_groups:
            raise UserError(
                f"overrides: unit_groups={unit_groups:g}: layer {self.name!r} has {units} units, which are not "
                "so many groups of one size."
            )
        self.transfer, self.lambda_a, self.lambda_r = transfer, lambda_a, lambda_r
        self.unit_groups = int(unit_groups)

    def __repr__(self) -> str:
        told = (
            ""
            if self.transfer is None
            else f", f={self.transfer.name}, lambda_a={self.lambda_a}, lambda_r={self.lambda_r}"
        )
        return f"LocalLayer({self.name!r}, {type(self.module).__name__}{told})"

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

    def reusable(self, dtype: torch.dtype) -> list[Tensor] | None:
        """``gradients`` where they are the whole of G^T Y in a type, else None: a bias may have none of its own."""
        gradients = self.gradients()
        parts = 1 + (self.kind.parameters(self.module)[1] is not None)
        whole = gradients is not None and len(gradients) == parts and gradients[0].dtype == dtype
        return gradients if whole else None

    def check(self, problem: LocalProblem, record: Record, total: Callable[[Tensor], Tensor]) -> None:
        """Refuses a layer that does not act as its kind says, by the first batch.

        Nothing is seen of an output that an activation in place has overwritten.

        Args:
            problem: The layer's problem.
            record: What was recorded of the layer.
            total: Adds up what each part of the batch says, so that all refuse the layer or none.

        Raises:
            UserError: Names the kind and the layer.
        """
        kind, operator = type(self.kind).__name__, problem.operator.expanded or problem.operator
        weight, bias = self.matrices()
        if (weight.shape[1], bias is not None) != (operator.d_in, operator.bias):
            has, of_operator = (
                f"{n} inputs, bias {b}"
                for n, b in ((weight.shape[1], bias is not None), (operator.d_in, operator.bias))
            )
            raise UserError(f"{kind}: layer {self.name!r} has {has}, but its operator {of_operator}; make them agree.")
        own = self.kind.parameters(self.module)[0].detach()
        if not torch.equal(self.kind.from_matrix(self.module, weight).nan_to_num(), own.nan_to_num()):
            raise UserError(f"{kind}: layer {self.name!r}: from_matrix does not undo matrix.")
        with torch.no_grad(), torch.autocast(own.device.type, enabled=False):
            start = problem.start_matrix()
            a = problem.pre_activation if operator is problem.operator else record.pre_activation(operator)
            wrong = rounding.differs(operator, start, a, record.dtype)
            refused = total(wrong.to(start)) > 0
        if refused and own.dtype != torch.float16:  # whose small numbers are far from what they should be
            raise UserError(
                f"{kind}: layer {self.name!r} gives another output than its operator times its matrix; look at the "
                "operator's rows, at units and at how the layer was called, or leave the layer out with skip."
            )

    def verify(self, problem: LocalProblem, record: Record, total: Callable[[Tensor], Tensor]) -> str:
        """Why the layer cannot be local, by the first batch; empty where it can.

        Args:
            problem: The layer's problem.
            record: What was recorded of it.
            total: As in ``check``.

        Raises:
            UserError: As ``check``, for a kind that is not of this package, in which the mistake is.
        """
        record = record if record.content == Content.SOLVABLE else record.without_rows()
        try:
            self.check(problem, record, total)
        except UserError:
            if type(self.kind).__module__.split(".")[0] != __name__.split(".")[0]:
                raise
            return "its output is not its matrix times its input"
        return OTHER_GRADIENT if self._differs(problem, record, total) else ""

    @torch.no_grad()
    def _differs(self, problem: LocalProblem, record: Record, total: Callable[[Tensor], Tensor]) -> bool:
        """Whether the back-propagated weight gradient is another than G^T Y.

        So it is where gradients are taken inside the forward pass (double backward, or one that the loss does not
        depend on), where a call had other weights, and where hooks change the gradient.
        """
        gradients = self.gradients()
        g, operator = record.gradient(), problem.operator.expanded or problem.operator
        product = operator.adjoint(g)
        own = torch.zeros_like(product)  # also of parameters without a gradient
        if gradients is not None:
            given = torch.cat(gradients, 1)
            own[:, : given.shape[1]] = given
        size = (operator.total(g.square()) * operator.trace()).sqrt()
        off, norm = torch.linalg.vector_norm(own - product), torch.linalg.vector_norm(product)
        own_dtype = self.kind.parameters(self.module)[0].dtype
        dtype = record.dtype if record.autocast else own_dtype
        bound = rounding.bound(norm, size, operator.n, dtype)
        if own_dtype in (torch.bfloat16, torch.float16):  # gradients of several calls are added up in it
            bound = bound * record.calls
        return bool(total((off > bound).to(size)) > 0)

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
                way_out = "look at the inputs and the loss first, then take a larger lambda_r"
            _log.warning("Layer %r: its local solution %s (said once, then counted); %s.", self.name, ended, way_out)
        self.counts[status.value] = self.counts.get(status.value, 0) + 1

    def report(self, solution: Solution, applied: bool) -> Report:
        """What is logged of a solution whose losses were recorded.

        Args:
            solution: The solution.
            applied: Whether it is applied.
        """
        assert solution.losses is not None
        problem = solution.problem
        v = solution.displacement if applied else torch.zeros_like(solution.displacement)
        return Report(solution.losses, problem.relative(v), problem.out_of_range())

    def state_dict(self) -> dict[str, Any]:
        """What evolves."""
        return {"solver": self.solver_state, "oracle": self.oracle_state, "counts": self.counts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what evolved."""
        self.solver_state, self.oracle_state, self.counts = state["solver"], state["oracle"], state["counts"]
