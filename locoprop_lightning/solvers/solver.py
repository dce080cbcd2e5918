"""The solver of local problems: one driver loop, a check of its outcome, and the callback that commits it."""

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from functools import partial
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from locoprop_lightning.errors import UserError, check_counts
from locoprop_lightning.local import LocalProblem
from locoprop_lightning.local.factor import State
from locoprop_lightning.local.powers import power_sum, power_sum_products
from locoprop_lightning.local.problem import Scalar
from locoprop_lightning.local.share import ALONE, Share
from locoprop_lightning.processes import lockstep

_log = logging.getLogger(__name__)


class Status(Enum):
    """How a local solve ended."""

    SOLVED = "solved"
    NONFINITE = "nonfinite"
    DIVERGED = "diverged"
    RETRIED = "retried"  # the first attempt failed, the second did not


class Solution(NamedTuple):
    """What ``LocalSolver.solve`` returns.

    Attributes:
        weight: W+ [d_out, d_in].
        bias: b+ [d_out], or None.
        status: How the solve ended.
        losses: Local loss a sample before the first and after each iteration [T + 1], if asked for.
    """

    weight: Tensor
    bias: Tensor | None
    status: Status
    losses: Tensor | None


class Outcome(NamedTuple):
    """What a solver makes of a problem, on the device; nothing has been waited for.

    Attributes:
        displacement: V = W+ - W0 [d_out, width].
        growth: Scalar, above 0 where the solve diverged: the last residual less the first, or the change of J.
        losses: The local-loss curve [T + 1], if it was recorded.
    """

    displacement: Tensor
    growth: Tensor
    losses: Tensor | None


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


class LocalSolver(Callback, ABC):
    """Solves the local problem of each layer and hands the displacements to the outer optimizer.

    A solver of one's own overrides ``run``, or derives from ``IterativeSolver`` and overrides ``step``. What evolves
    from step to step lives in ``state``, a dictionary a layer; it is saved with the checkpoint and may hold tensors,
    numbers and strings. Hyper-parameters are attributes and are not saved.

    With several processes, each runs the solver with its own rows: ``map``, ``pre_activation``, ``direction`` and
    ``target`` are theirs, and all else of a ``LocalProblem`` is of the rows of all, ``n``, ``gram``, ``gradient`` and
    ``value`` included. A sum over rows of one's own goes through ``problem.share.sum``. The layers are taken up in
    turns, up to where each next needs such a sum: whatever one layer's solve keeps must be a local variable or in the
    layer's state, and no context but that of gradients may be open there.
    """

    squared_only = False  # whether the solver takes the squared loss alone

    def __init__(self) -> None:
        self.state: dict[str, State] = {}  # by name of the layer
        self.reports: dict[str, Report] = {}  # of the latest step, by layer, if it recorded
        self.whole_curves = True  # whether a recorded curve has a value an iteration, or the first and the last alone
        self.counts: dict[str, dict[str, int]] = {}  # solves that failed at first, by layer and status

    @abstractmethod
    def run(self, problem: LocalProblem, state: State, record: bool = False) -> Outcome:
        """Solves one problem without waiting for the device.

        Args:
            problem: The problem; not changed.
            state: What evolves for this layer; may be changed.
            record: Whether to compute the local-loss curve.
        """

    def retry(self, problem: LocalProblem, state: State, status: Status, record: bool = False) -> Outcome | None:
        """Another attempt at a problem whose solution did not do, or None; also the place to undo what it did to state.

        Args:
            problem: The problem; not changed.
            state: What evolves for this layer, as ``run`` left it.
            status: How the first attempt ended, NONFINITE or DIVERGED.
            record: Whether to compute the local-loss curve.
        """
        return None

    def check(self, problem: LocalProblem) -> None:
        """Refuses a problem that the solver cannot solve; called for each layer before training.

        Raises:
            UserError: Names the layer and its transfer.
        """
        if self.squared_only and not problem.squared:
            raise UserError(
                f"{type(self).__name__} solves the squared loss only, but layer {problem.name!r} matches through "
                f"{problem.transfer.name}: set objective to 'squared', or take another solver."
            )

    def describe(self, problem: LocalProblem) -> str:
        """Who trains the layer, for the table of layers."""
        return type(self).__name__

    def solve(self, problem: LocalProblem, record: bool = False) -> Solution:
        """Solves one problem alone, without a trainer.

        Args:
            problem: The problem; not changed.
            record: Whether to compute the local-loss curve.

        Returns:
            The new weights, whatever the status: it says whether a trainer would apply them.
        """
        self.check(problem)
        outcome, status = self._solve_all({problem.name: problem}, record)[problem.name]
        with torch.no_grad():
            weight, bias = problem.split(outcome.displacement)
            return Solution(
                problem.weight + weight,
                None if problem.bias is None or bias is None else problem.bias + bias,
                status,
                outcome.losses,
            )

    @torch.no_grad()
    def _solve_all(self, problems: Mapping[str, LocalProblem], record: bool) -> dict[str, tuple[Outcome, Status]]:
        states = {name: self.state.setdefault(name, {}) for name in problems}
        with _full_precision():
            return self._solve_and_retry(problems, states, record)

    def _solve_and_retry(
        self, problems: Mapping[str, LocalProblem], states: Mapping[str, State], record: bool
    ) -> dict[str, tuple[Outcome, Status]]:
        outcomes = lockstep({n: partial(self.run, p, states[n], record) for n, p in problems.items()})
        share = next((problem.share for problem in problems.values()), ALONE)
        statuses = judge(outcomes, share)
        failed = {name: status for name, status in statuses.items() if status is not Status.SOLVED}
        retried = lockstep({n: partial(self.retry, problems[n], states[n], s, record) for n, s in failed.items()})
        again = {name: outcome for name, outcome in retried.items() if outcome is not None}
        for name, status in judge(again, share).items():
            outcomes[name] = again[name]
            statuses[name] = Status.RETRIED if status is Status.SOLVED else status
        return {name: (outcome, statuses[name]) for name, outcome in outcomes.items()}

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Solves all layers from this one forward pass, then puts W0 - W+ where their gradients are."""
        problems: dict[str, LocalProblem] = pl_module.problems  # type: ignore[assignment]
        record: bool = pl_module.record_losses  # type: ignore[assignment]
        device = next(iter(problems.values())).weight.device.type if problems else "cpu"
        with torch.autocast(device, enabled=False):
            results = self._solve_all(problems, record)
        reports: dict[str, Callable[[], Report]] = {}
        for name, (outcome, status) in results.items():
            if status is not Status.SOLVED:
                self._count(name, status)
            applied = status in (Status.SOLVED, Status.RETRIED) or (status is Status.DIVERGED and not pl_module.guard)
            pl_module.commit(name, outcome.displacement if applied else None)  # type: ignore[operator]
            if outcome.losses is not None:
                reports[name] = partial(_report, problems[name], outcome, applied)
        self.reports = lockstep(reports)

    def _count(self, name: str, status: Status) -> None:
        counts = self.counts.setdefault(name, {})
        if status is not Status.RETRIED and not counts.keys() - {Status.RETRIED.value}:
            said, way_out = "diverged", "a larger lambda_r or a smaller lambda_a helps"
            if status is Status.NONFINITE:
                said = "was not finite, and the layer keeps its weights"
                way_out = "look at the inputs and the loss first"
            _log.warning("Layer %r: its local solution %s (said once, then counted); %s.", name, said, way_out)
        counts[status.value] = counts.get(status.value, 0) + 1

    def state_dict(self) -> dict[str, Any]:
        """What evolves, by layer; no hyper-parameters, so that an edited configuration holds on resume."""
        return {"state": self.state, "counts": self.counts}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:  # noqa: D102
        self.state = state_dict["state"]
        self.counts = state_dict["counts"]


class IterativeSolver(LocalSolver):
    """T inner steps from V = 0; the first gradient is the back-propagated one, so T steps cost T - 1 gradients.

    Args:
        iterations: T, at least 1.
    """

    proximal = True  # whether the gradients contain lambda_r V

    def __init__(self, iterations: int = 10) -> None:  # T
        super().__init__()
        check_counts(type(self).__name__, 1, iterations=iterations)
        self.iterations = iterations

    def affine(self, problem: LocalProblem) -> tuple[Scalar, Scalar] | None:
        """Constants (r, s) where every step is V <- s V - r (grad J less its proximal term), else None.

        On the squared loss such steps are powers of one matrix, taken by repeated squaring where that costs less.
        """
        return None

    def init(self, problem: LocalProblem, state: State) -> Any:
        """Makes what the steps of one solve share; handed to every ``step``."""
        return None

    @abstractmethod
    def step(self, problem: LocalProblem, v: Tensor, gradient: Tensor, k: int, inner: Any) -> Tensor:
        """Displacement of iteration k + 1 [d_out, width].

        Args:
            problem: The problem.
            v: Displacement of iteration k [d_out, width], not to be changed.
            gradient: grad J there [d_out, width], not to be changed.
            k: Number of the iteration, from 0.
            inner: What ``init`` returned.
        """

    def iterate(self, v: Tensor, inner: Any) -> Tensor:
        """The solution that the solver would return now, where that is not the point ``v`` of the next gradient."""
        return v

    def residual(self, problem: LocalProblem, gradient: Tensor, inner: Any) -> Tensor:
        """Size of the residual, scalar, after the step that used ``gradient``; a solve whose residual grew diverged."""
        return torch.linalg.vector_norm(gradient)

    def growth(self, problem: LocalProblem, v: Tensor, first: Tensor, last: Tensor, inner: Any) -> Tensor:
        """How much worse the solution ``v`` is than the start, scalar; above 0 it diverged.

        Args:
            problem: The problem.
            v: The solution [d_out, width].
            first: Residual of the first iteration.
            last: Residual of the last.
            inner: What ``init`` returned.
        """
        return last - first

    def run(self, problem: LocalProblem, state: State, record: bool = False) -> Outcome:
        """The driver loop."""
        inner = self.init(problem, state)
        cost = problem.plan(self.iterations - 1)
        affine = self.affine(problem)
        if affine is None or _squaring_cost(problem, self.iterations) >= cost:
            return self._loop(problem, inner, record)
        if record and self.whole_curves:
            return self._squared(problem, *affine)._replace(losses=self._loop(problem, inner, record).losses)
        outcome = self._squared(problem, *affine)  # the same V whether recorded or not
        if not record:
            return outcome
        return outcome._replace(losses=torch.stack([problem.first_loss(), problem.loss(outcome.displacement)]))

    def _loop(self, problem: LocalProblem, inner: Any, record: bool) -> Outcome:
        v = problem.zeros()
        gradient = problem.first_gradient
        first = last = gradient.new_zeros(())
        losses = [problem.first_loss()] if record else None
        for k in range(self.iterations):
            if k > 0:
                gradient = problem.gradient(v, self.proximal)
            v = self.step(problem, v, gradient, k, inner)
            last = self.residual(problem, gradient, inner)
            if k == 0:
                first = last
            if losses is not None and (self.whole_curves or k == self.iterations - 1):
                losses.append(problem.loss(self.iterate(v, inner)))
        growth = self.growth(problem, v, first, last, inner)
        return Outcome(v, growth, torch.stack(losses) if losses is not None else None)

    def _squared(self, problem: LocalProblem, rate: Scalar, shrink: Scalar) -> Outcome:
        """All iterations at once: V <- V M - rate g with M = shrink I - rate C, from V = 0."""
        m = problem.gram * -rate
        m.diagonal().add_(shrink)
        v = power_sum(problem.first_gradient * -rate, m, self.iterations - 1)
        gradient = torch.addmm(problem.first_gradient, v, problem.gram)  # of the last step, less its proximal term
        first = torch.linalg.vector_norm(problem.first_gradient)
        last = torch.linalg.vector_norm(gradient + v * problem.lambda_r if self.proximal else gradient)
        return Outcome(shrink * v - rate * gradient, last - first, None)


def _squaring_cost(problem: LocalProblem, iterations: int) -> float:
    """Floating-point operations of ``IterativeSolver._squared``; infinite where the loss is not squared."""
    if not problem.squared or iterations < 2:
        return math.inf
    products, squarings = power_sum_products(iterations - 1)
    d_out, width = problem.shape
    return problem.gram_cost + 2.0 * width**2 * ((products + 1) * d_out + squarings * width)


@contextmanager
def _full_precision() -> Iterator[None]:
    """Convolutions on a GPU without TF32, which torch allows them by default."""
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = allowed


def _report(problem: LocalProblem, outcome: Outcome, applied: bool) -> Report:
    assert outcome.losses is not None
    size = problem.relative(outcome.displacement if applied else problem.zeros())
    return Report(outcome.losses, size, problem.out_of_range())


def judge(outcomes: Mapping[str, Outcome], share: Share = ALONE) -> dict[str, Status]:
    """Status of each outcome, with a single wait for the device; all processes come to the same."""
    if not outcomes:
        return {}
    pairs = [torch.stack((torch.linalg.vector_norm(o.displacement), o.growth)) for o in outcomes.values()]
    flags = share.sum(torch.stack(pairs)).tolist()
    return {
        name: Status.NONFINITE if not math.isfinite(norm + growth) else Status.DIVERGED if growth > 0 else Status.SOLVED
        for name, (norm, growth) in zip(outcomes, flags, strict=True)
    }
