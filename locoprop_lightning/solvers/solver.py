"""What a local solver is, and how it solves the problems of all layers of a step."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from functools import partial
from typing import Any, Self

import torch
from lightning.pytorch import Callback
from torch import Tensor

from locoprop_lightning.errors import UserError, check_counts, check_object
from locoprop_lightning.local import LocalProblem, State
from locoprop_lightning.reprs import Shown
from locoprop_lightning.solvers.solution import Outcome, Recording, Solution, Status, check_outcome, judge

Tasks = Mapping[str, Callable[[], Any]]


def in_turn(tasks: Tasks) -> dict[str, Any]:
    """Runs a task a layer, one after the other."""
    return {name: task() for name, task in tasks.items()}


def as_it_is(x: Tensor) -> Tensor:
    """X."""
    return x


class LocalSolver(Shown, Callback, ABC):
    """Solves local problems.

    A solver of one's own overrides ``run``, or derives from ``IterativeSolver`` and overrides ``step``. Its attributes
    are hyper-parameters. What evolves from step to step lives in a state, a dictionary a layer of tensors, numbers,
    strings and dictionaries of these, that whoever asks for a solution keeps; in training it is saved with the
    checkpoint. A solver is a callback of the trainer, so that it may use Lightning's hooks too.

    Not all rows of a batch need be at hand: ``pre_activation``, ``direction`` and ``target`` of a problem are of those
    that are, all else is of all rows, ``n``, ``gram``, ``gradient`` and ``value`` included. A sum over rows of one's
    own goes through ``problem.operator.total``. The layers may be taken up in turns, up to where each next needs such a
    sum: whatever one layer's solve keeps must be a local variable or in the layer's state, and no context but that of
    gradients may be open there.
    """

    squared_only = False  # whether the solver takes the squared loss alone
    offers_inverse = False  # whether ``run`` offers (C + lambda_r I)^-1 to the problem before it asks for D
    has_rate = False  # whether its inner steps have a rate, multiplied by that of the problem

    @abstractmethod
    def run(self, problem: LocalProblem, state: State, recording: Recording) -> Outcome:
        """Solves one problem without waiting for the device.

        Args:
            problem: The problem; not changed.
            state: What evolves for this layer; may be changed.
            recording: Which local losses to compute.
        """

    def retry(self, problem: LocalProblem, state: State, status: Status, recording: Recording) -> Outcome | None:
        """Another attempt at a problem whose solution did not do, or None.

        Args:
            problem: The problem; not changed.
            state: What evolves for this layer, as ``run`` left it.
            status: How the first attempt ended, NONFINITE or DIVERGED.
            recording: Which local losses to compute.
        """
        return None

    def keep(self, state: State, outcome: Outcome) -> None:  # noqa: B027, a solver may keep nothing
        """Takes what shall evolve out of a solve that ended finite.

        Args:
            state: What evolves for this layer; may be changed.
            outcome: What ``run`` or ``retry`` returned.
        """

    @staticmethod
    def _stretched(solve: Callable[..., Any], problem: LocalProblem, *arguments: Any) -> Any:
        """What a solve gives, with a displacement as long as the problem asks for."""
        outcome = solve(problem, *arguments)
        if problem.length is None or not isinstance(outcome, Outcome):
            return outcome
        v, losses = problem.stretch(outcome.displacement), outcome.losses
        if losses is not None:
            losses = torch.cat([losses[:-1], problem.loss(v)[None]])
        return outcome._replace(displacement=v, losses=losses)

    def taking(self, iterations: int | None) -> Self:
        """The solver with other iterations; itself where none are given.

        Raises:
            UserError: Where it has no iterations, and for what is no number of them.
        """
        if iterations is None:
            return self
        if not hasattr(self, "iterations"):
            raise UserError(f"solver={type(self).__name__}: has no iterations to schedule; leave them out.")
        check_counts("", 1, iterations=iterations)
        made = copy(self)
        made.iterations = iterations
        return made

    def check(self, problem: LocalProblem) -> None:
        """Refuses a problem that the solver cannot solve; called for each layer before training.

        Raises:
            UserError: Names the layer and its transfer.
        """
        if self.squared_only and not problem.squared:
            raise UserError(
                f"{type(self).__name__} solves the squared loss only, but {problem.called} matches through "
                f"{problem.transfer.name}: set objective to 'squared', or take another solver."
            )

    def describe(self, problem: LocalProblem) -> str:
        """Who trains the layer, for the table of layers."""
        return type(self).__name__

    def solve(
        self, problem: LocalProblem, state: State | None = None, recording: Recording = Recording.NOTHING
    ) -> Solution:
        """Solves one problem alone, without a trainer.

        Args:
            problem: The problem; not changed.
            state: What evolves from one solve of the layer to the next, changed here; ``{}`` at first, and if not
                given.
            recording: Which local losses to compute.

        Returns:
            The solution, whatever its status, which says whether a trainer would apply it.

        Raises:
            UserError: Where the solver does not take the problem, and for a state or a recording that is none.
        """
        own = f"{type(self).__name__}.solve"
        check_object(own, LocalProblem, "a LocalProblem, such as layer.problem(...) makes", problem=problem)
        check_object(own, Recording, "Recording.NOTHING, ENDS or CURVE", recording=recording)
        if state is not None:
            check_object(own, dict, "a dictionary, or None", state=state)
        self.check(problem)
        return self.solve_all({problem.name: problem}, {problem.name: {} if state is None else state}, recording)[
            problem.name
        ]

    @torch.no_grad()
    def solve_all(
        self,
        problems: Mapping[str, LocalProblem],
        states: Mapping[str, State],
        recording: Recording = Recording.NOTHING,
        run_all: Callable[[Tasks], dict[str, Any]] = in_turn,
        agree: Callable[[Tensor], Tensor] = as_it_is,
        retries: bool = True,
    ) -> dict[str, Solution]:
        """Solves the problems of all layers, and those again that failed where the solver knows another way.

        The device is waited for once to judge the solutions, and once more where some are tried again.

        Args:
            problems: The problems by name of the layer; not changed.
            states: What evolves for each; changed.
            recording: Which local losses to compute.
            run_all: Runs a function a layer.
            agree: See ``judge``.
            retries: Whether failed ones are solved again.
        """
        with _full_precision():
            outcomes = run_all(
                {name: partial(self._stretched, self.run, p, states[name], recording) for name, p in problems.items()}
            )
            for name, outcome in outcomes.items():
                check_outcome(f"{type(self).__name__}.run", outcome, problems[name])
            statuses = judge(outcomes, agree)
            failed = {name: status for name, status in statuses.items() if retries and status is not Status.SOLVED}
            tasks = {
                name: partial(self._stretched, self.retry, problems[name], states[name], status, recording)
                for name, status in failed.items()
            }
            again = {name: outcome for name, outcome in run_all(tasks).items() if outcome is not None}
            for name, outcome in again.items():
                check_outcome(f"{type(self).__name__}.retry", outcome, problems[name])
            for name, status in judge(again, agree).items():
                outcomes[name] = again[name]
                statuses[name] = Status.RETRIED if status is Status.SOLVED else status
        for name, outcome in outcomes.items():
            if statuses[name] is not Status.NONFINITE:
                self.keep(states[name], outcome)
        return {
            name: Solution(problems[name], outcome.displacement, statuses[name], outcome.losses)
            for name, outcome in outcomes.items()
        }


@contextmanager
def _full_precision() -> Iterator[None]:
    """Convolutions on a GPU without TF32, which torch allows them by default."""
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = allowed
