"""Callbacks that look at local solves."""

from collections.abc import Mapping
from typing import cast

from lightning.pytorch import Callback, Trainer

from locoprop_lightning.errors import UserError
from locoprop_lightning.local import LocalProblem
from locoprop_lightning.local_layer import Report
from locoprop_lightning.reprs import Shown
from locoprop_lightning.solvers import Recording


class SolveObserver(Shown, Callback):
    """A callback that ``LocoPropModule`` asks at each step what to record, and tells what was.

    An observer of one's own overrides one or both; the most that any observer asks for is recorded.
    """

    def recording(self, trainer: Trainer) -> Recording:
        """Which local losses this step shall compute."""
        return Recording.NOTHING

    def on_solved(
        self,
        trainer: Trainer,
        problems: Mapping[str, LocalProblem],
        reports: Mapping[str, Report],
        counts: Mapping[str, Mapping[str, int]],
    ) -> None:
        """Called on a step of which anybody asked for more than nothing, after its solves and before weights change.

        Args:
            trainer: The trainer; ``global_step`` is the number of this step, from 0.
            problems: The problems of this process by name of the layer.
            reports: What was recorded, of all processes, by name of the layer; a solver may record nothing.
            counts: Solves that failed at first, of the whole training, by layer and status.
        """


def observers(trainer: Trainer) -> list[SolveObserver]:
    """Those among the trainer's callbacks."""
    callbacks = cast(list[Callback], trainer.callbacks)  # type: ignore[attr-defined]
    return [callback for callback in callbacks if isinstance(callback, SolveObserver)]


def asked(trainer: Trainer) -> Recording:
    """The most that an observer asks for.

    Raises:
        UserError: For an observer that asks for something else.
    """
    most = Recording.NOTHING
    for observer in observers(trainer):
        wish = observer.recording(trainer)
        if not isinstance(wish, Recording):
            name = type(observer).__name__
            raise UserError(f"{name}.recording: must return Recording.NOTHING, ENDS or CURVE, not {wish!r}.")
        most = max(most, wish)
    return most


def tell(
    trainer: Trainer,
    problems: Mapping[str, LocalProblem],
    reports: Mapping[str, Report],
    counts: Mapping[str, Mapping[str, int]],
) -> None:
    """Tells the observers of a trainer what was recorded.

    Args:
        trainer: The trainer.
        problems: As ``SolveObserver.on_solved`` takes them.
        reports: Those of the solutions.
        counts: Solves that failed at first.
    """
    for observer in observers(trainer):
        observer.on_solved(trainer, problems, reports, counts)
