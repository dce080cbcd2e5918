"""Callbacks that look at local solves."""

from collections.abc import Mapping

from lightning.pytorch import Callback, Trainer

from locoprop_lightning.engine import Report
from locoprop_lightning.local import LocalProblem
from locoprop_lightning.solvers import Recording


class SolveObserver(Callback):
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
        """Called on a step that recorded, after its local problems are solved and before weights change.

        Args:
            trainer: The trainer; ``global_step`` is the number of this step, from 0.
            problems: The problems of this process by name of the layer.
            reports: What was recorded, of all processes.
            counts: Solves that failed at first, of the whole training, by layer and status.
        """
