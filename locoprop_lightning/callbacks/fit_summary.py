"""What a fit came to."""

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table
from torch import Tensor

_DECAY = 0.7


class FitSummary(Callback):
    """Prints final losses, accuracy, times and where the logs are.

    The smoothed train loss is s = 0.7 s + 0.3 x over the raw loss of every batch, from the first on, without bias
    correction; it goes on over a resume.
    """

    def __init__(self) -> None:
        self._smoothed: Tensor | None = None
        self._raw: Tensor | None = None
        self._seconds = 0.0  # in training batches
        self._steps = 0
        self._started = 0.0
        self._fit_started = 0.0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        self._fit_started = time.perf_counter()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Starts the clock of the batch."""
        self._started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Takes in the loss of the batch; nothing waits for the device."""
        loss = outputs["loss"].detach()
        smoothed = self._smoothed
        self._raw = loss
        self._smoothed = loss if smoothed is None else _DECAY * smoothed.to(loss.device) + (1 - _DECAY) * loss
        self._seconds += time.perf_counter() - self._started
        self._steps += 1

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints the summary on the first process."""
        if not trainer.is_global_zero or self._smoothed is None or self._raw is None:
            return
        table = Table(title="Summary", title_justify="left", show_header=False)
        metrics = trainer.callback_metrics
        table.add_row("train loss", f"{self._raw.item():.4f} (smoothed {self._smoothed.item():.4f})")
        for name in sorted(metrics):
            if name.startswith("val/"):
                table.add_row(name.replace("val/", "validation "), f"{metrics[name].item():.4f}")
        table.add_row("steps", str(trainer.global_step))
        table.add_row("seconds", f"{time.perf_counter() - self._fit_started:.1f}")
        table.add_row("milliseconds a step", f"{1000 * self._seconds / max(self._steps, 1):.1f}")
        if trainer.log_dir is not None:
            table.add_row("logs", trainer.log_dir)
            table.add_row("see them", f"tensorboard --logdir {trainer.log_dir}")
        Console(soft_wrap=True).print(table)

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        return {"smoothed": self._smoothed, "seconds": self._seconds, "steps": self._steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:  # noqa: D102
        self._smoothed = state_dict["smoothed"]
        self._seconds, self._steps = state_dict["seconds"], state_dict["steps"]
