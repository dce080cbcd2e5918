"""The loss of every step, taken down for a comparison of methods."""

import math
from itertools import pairwise
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from locoprop_lightning.callbacks.stopwatch import Stopwatch


class FitEnded(Exception):
    """Ends a fit before its last step."""


class LossRecorder(Stopwatch):
    """Takes down the loss of every batch, before its update, and the second of training at which the step was over.

    Every step is waited for, on a GPU too. A loss that is not finite ends the fit by `FitEnded`. A checkpoint holds
    what has been taken down, so that a fit that is resumed ends with the whole curve.
    """

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[float] = []
        self.ends: list[float] = []

    @property
    def nonfinite_step(self) -> int | None:
        """The step whose loss was not finite, counted from 0; None where there was none."""
        return next((step for step, loss in enumerate(self.losses) if not math.isfinite(loss)), None)

    @property
    def step_ms(self) -> list[float]:
        """Milliseconds of every step [steps]."""
        return [1000 * (end - start) for start, end in pairwise([0.0, *self.ends])]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Takes down a step.

        Raises:
            FitEnded: Where its loss is not finite.
        """
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self.losses.append(float(outputs["loss"]))  # waits for the device
        self.ends.append(self.seconds)
        if not math.isfinite(self.losses[-1]):
            raise FitEnded

    def state_dict(self) -> dict[str, Any]:
        """What has been taken down."""
        return {"losses": list(self.losses), "ends": list(self.ends)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:  # noqa: D102
        self.losses, self.ends = list(state_dict["losses"]), list(state_dict["ends"])
        self._passed = self.ends[-1] if self.ends else 0.0
