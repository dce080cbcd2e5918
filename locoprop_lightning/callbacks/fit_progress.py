"""One row that says how a fit is getting on."""

import math
import sys
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar as Bar
from rich.table import Table
from torch import Tensor

from locoprop_lightning.callbacks.stopwatch import Stopwatch

_FAST, _SLOW = 0.7, 0.97  # decays of the loss that is shown, and of the one that it is compared with
_LEVEL = 0.01  # relative difference of the two below which the loss goes neither up nor down
_EVERY = 0.25  # seconds between two looks at the device
_TENTHS, _LONG = 10, 600.0  # without a terminal: lines of a fit, and the most seconds between two


class FitProgress(Stopwatch, ProgressBar):
    """Shows epoch, share of the whole fit, loss with its trend, accuracy, pace and time left, in one row.

    The loss is smoothed by 0.7, and an arrow says whether it falls, stays or rises against the last 30 batches or so.
    The metric is the task's first of the last validation, the pace that of training without validation, the time left
    that of the whole fit with it. Where the output is no terminal, there is a line at each tenth of the fit.
    """

    def __init__(self) -> None:
        Stopwatch.__init__(self)
        ProgressBar.__init__(self)
        self._enabled = True
        self._live: Live | None = None
        self._console = Console()
        self._what = ""
        self._part = self._first = 0.0  # how much of what is shown is done, and how much was when it began
        self._looked = self._told = self._began = 0.0
        self._lines = 0
        self._pace: float | None = None  # seconds a step of late
        self._counted = (0, 0.0)  # steps and seconds that are in it
        self._losses: tuple[Tensor, Tensor] | None = None
        self._shown: tuple[float, float] | None = None  # of the last look

    def disable(self) -> None:
        """Shows nothing from here on."""
        self._close()
        self._enabled = False

    def enable(self) -> None:
        """Shows the row again."""
        self._enabled = True

    def _open(self, what: str) -> None:
        """Begins a row."""
        self._close()
        self._what, self._part, self._first, self._lines = what, 0.0, 0.0, 0
        self._losses, self._shown, self._pace, self._counted = None, None, None, (0, 0.0)
        self._began = self._looked = self._told = time.monotonic()
        self._console = Console()
        if self._enabled and self._console.is_terminal:
            self._live = Live(get_renderable=self.row, console=self._console, refresh_per_second=8)
            self._live.start()

    def _close(self) -> None:
        """Ends the row; it stays where it is."""
        live, self._live = self._live, None
        if live is not None:
            live.stop()

    def row(self) -> Table:
        """The row as it is now, as wide as the terminal."""
        row = Table.grid(padding=(0, 1), expand=True)
        parts = self._texts()
        row.add_column(no_wrap=True)
        row.add_column(ratio=1)
        for _ in parts:
            row.add_column(no_wrap=True)
        row.add_row(self._what, Bar(total=1.0, completed=self._part), *parts)
        return row

    def line(self) -> str:
        """The row as a line of text, for a file."""
        return "  ".join([self._what, f"{100 * self._part:3.0f}%", *self._texts()])

    def _texts(self) -> list[str]:
        """What stands behind the bar."""
        texts = []
        if self._shown is not None:
            fast, slow = self._shown
            arrows = "\\/=" if self._console.options.ascii_only else "↓↑→"
            trend = 2 if abs(fast - slow) <= _LEVEL * abs(slow) else int(fast > slow)
            texts.append(f"loss {fast:.4g} {arrows[trend]}" if math.isfinite(fast) else "loss not finite")
        metrics = self._trainer.callback_metrics if self._trainer is not None and self._losses is not None else {}
        name = next((str(n) for n in metrics if n.startswith("val/") and n != "val/loss"), None)
        if name is not None:
            texts.append(f"{name} {float(metrics[name]):.3f}")
        if self._pace is not None:
            texts.append(f"{1000 * self._pace:.{0 if self._pace >= 0.1 else 1}f} ms/step")
        done, passed = self._part - self._first, time.monotonic() - self._began
        if done > 0:
            left = passed * (1 - self._part) / done
            texts.append(f"{int(left) // 3600}:{int(left) // 60 % 60:02d}:{int(left) % 60:02d} left")
        return texts

    def _advance(self, part: float) -> None:
        """Takes in how much is done, and looks at the device when it is time."""
        self._part, now = min(part, 1.0), time.monotonic()
        if now - self._looked >= _EVERY or self._part == 1.0:
            self._look()
            self._looked = now
        if self._live is not None or not self._enabled or self._losses is None:
            return
        if int(_TENTHS * self._part + 1e-9) > self._lines or now - self._told > _LONG:
            self._look()
            self._lines, self._told = int(_TENTHS * self._part + 1e-9), now
            print(self.line(), flush=True)

    def _look(self) -> None:
        if self._losses is not None:
            self._shown = (float(self._losses[0]), float(self._losses[1]))
        steps, seconds = self.steps - self._counted[0], self.seconds - self._counted[1]
        if steps:
            self._pace = seconds / steps if self._pace is None else 0.7 * self._pace + 0.3 * seconds / steps
            self._counted = self.steps, self.seconds

    def _share(self, trainer: Trainer, batches: int) -> float:
        """How much of the fit is done after some batches of the epoch; 0 where nothing says how long it will be."""
        parts = [0.0]
        if trainer.max_epochs is not None and trainer.max_epochs > 0:
            whole = trainer.num_training_batches
            within = batches / whole if math.isfinite(whole) and whole else 0.0
            parts.append((trainer.current_epoch + within) / trainer.max_epochs)
        if trainer.max_steps > 0:
            parts.append(trainer.global_step / trainer.max_steps)
        return max(parts)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins the row of the fit."""
        super().on_train_start(trainer, pl_module)
        self.steps, self._passed = 0, 0.0
        self._open("Epoch")
        self._first = self._part = self._share(trainer, trainer.fit_loop.epoch_loop.batch_progress.current.completed)
        self._lines = int(_TENTHS * self._part + 1e-9)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Counts the epochs from 1."""
        super().on_train_epoch_start(trainer, pl_module)
        of = f"/{trainer.max_epochs}" if trainer.max_epochs is not None and trainer.max_epochs > 0 else ""
        self._what = f"Epoch {trainer.current_epoch + 1}{of}"

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Takes in the loss; the device is waited for a few times a second at most."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self.steps == 1:
            self._counted = 1, self.seconds  # the first step also sets up, and would weigh on the pace for long
        loss = outputs["loss"].detach() if isinstance(outputs, dict) else outputs
        if isinstance(loss, Tensor):
            fast, slow = self._losses or (loss, loss)
            self._losses = fast + (1 - _FAST) * (loss - fast), slow + (1 - _SLOW) * (loss - slow)
        self._advance(self._share(trainer, batch_idx + 1))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends the row."""
        self._look()
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Ends the row before anything is told of the end."""
        super().on_exception(trainer, pl_module, exception)
        self._close()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins a row."""
        self._open("Testing")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins a row."""
        self._open("Predicting")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins a row, unless this is the validation of a fit, which its row goes through."""
        super().on_validation_start(trainer, pl_module)
        if trainer.state.fn == "validate":
            self._open("Validating")

    def on_test_batch_end(self, *arguments: Any, **more: Any) -> None:
        """Goes on."""
        self._went(self.trainer.num_test_batches, *arguments, **more)

    def on_predict_batch_end(self, *arguments: Any, **more: Any) -> None:
        """Goes on."""
        self._went(self.trainer.num_predict_batches, *arguments, **more)

    def on_validation_batch_end(self, *arguments: Any, **more: Any) -> None:
        """Goes on, where this is no validation of a fit."""
        if self.trainer.state.fn == "validate":
            self._went(self.trainer.num_val_batches, *arguments, **more)

    def _went(
        self, whole: Any, trainer: Trainer, module: Any, outputs: Any, batch: Any, index: int, loader: int = 0
    ) -> None:
        totals = whole if isinstance(whole, list) else [whole]
        total = sum(totals)
        self._advance((sum(totals[:loader]) + index + 1) / total if total and math.isfinite(total) else 0.0)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends the row."""
        self._close()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends the row."""
        self._close()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends the row of a validation."""
        super().on_validation_end(trainer, pl_module)
        if trainer.state.fn == "validate":
            self._close()

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Prints above the row."""
        print(*args, **kwargs)
        sys.stdout.flush()
