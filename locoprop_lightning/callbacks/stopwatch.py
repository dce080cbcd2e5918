"""Seconds of training, without validation."""

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn


class Stopwatch(Callback):
    """Counts training steps and their seconds; it stands still during validation. Nothing waits for the device."""

    def __init__(self) -> None:
        self.steps = 0
        self._step = -1  # of the trainer, which several batches may share
        self._passed = self._started = 0.0
        self._runs = False

    @property
    def seconds(self) -> float:
        """Seconds of training until now."""
        return self._passed + (time.perf_counter() - self._started if self._runs else 0.0)

    def _start(self) -> None:
        self._started, self._runs = time.perf_counter(), True

    def _stop(self) -> None:
        self._passed, self._runs = self.seconds, False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        self._stop()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        self._step = trainer.global_step

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        self._start()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Starts where a resume within an epoch has not."""
        if not self._runs:
            self._start()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        self._stop()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._start()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:  # noqa: D102
        self._stop()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts the step, once if it took several batches."""
        if trainer.global_step != self._step:
            self.steps += 1
            self._step = trainer.global_step

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        self._stop()


class StepTimer(Stopwatch):
    """Logs ``time/step_ms``: mean milliseconds of the training steps since the last logged one.

    They contain the wait for data and whatever is logged, but no validation. The first value contains what a fit does
    once.
    """

    def __init__(self) -> None:
        super().__init__()
        self._logged = (0, 0.0)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Logs the mean where the trainer logs."""
        before = self.steps
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if self.steps > before and every > 0 and trainer.global_step % every == 0:
            steps, seconds = self._logged
            self._logged = self.steps, self.seconds
            pl_module.log("time/step_ms", 1000 * (self.seconds - seconds) / (self.steps - steps))

    def state_dict(self) -> dict[str, Any]:
        """What has passed since the last logged step, so that the first value after a resume is of a whole interval."""
        steps, seconds = self._logged
        return {"steps": self.steps - steps, "seconds": self.seconds - seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:  # noqa: D102
        self._logged = self.steps - state_dict["steps"], self.seconds - state_dict["seconds"]
