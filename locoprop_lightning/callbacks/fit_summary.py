"""What a fit came to."""

import re
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from locoprop_lightning.callbacks.stopwatch import Stopwatch
from locoprop_lightning.module import LocoPropModule
from locoprop_lightning.results import metrics_csv
from locoprop_lightning.solvers import Status
from locoprop_lightning.supervised import SupervisedModule

_DECAY = 0.7


def next_commands(loggers: Sequence[Logger], folder: Path) -> list[tuple[str, str]]:
    """What to type to see the curves of a run and to compare it, as fits its loggers, by what it is for.

    TensorBoard is given the folder above the run's, in which the run has a name, and a comparison the one above that,
    where methods lie beside each other; not that of Lightning's own name, below which all runs are, and not the working
    directory, in which there is more than runs.

    Args:
        loggers: The loggers of the run.
        folder: The folder of its logs.
    """
    here = Path.cwd()
    folder = folder.relative_to(here) if folder.is_relative_to(here) else folder
    above = folder.parent
    beside = above.parent.name and above.name != "lightning_logs" and re.fullmatch(r"version_\d+", folder.name)
    methods = above.parent if beside else above
    lines = []
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            lines.append(("see the curves", f"tensorboard --logdir {shlex.quote(str(above))}"))
        elif isinstance(logger, CSVLogger):
            lines.append(("see the metrics", f"less -S {shlex.quote(str(Path(logger.log_dir) / metrics_csv.NAME))}"))
        elif isinstance(logger, WandbLogger):
            run = logger.experiment
            upload = f"wandb sync {shlex.quote(str(Path(run.dir).parent))}"  # of a run that was logged offline
            lines.append(("see the curves", run.url) if run.url else ("upload the curves", upload))
    if any(isinstance(logger, TensorBoardLogger | CSVLogger) for logger in loggers):
        lines.append(("compare", f"locoprop-compare {shlex.quote(str(methods))}"))
    return lines


def summary_line(name: str, value: str) -> str:
    """A line of the summary; a command that a terminal has no room for is continued, an option a line.

    Args:
        name: What it tells of.
        value: What it tells; a command has its options behind ``--``.
    """
    line = f"  {name:<20} {value}"
    if not sys.stdout.isatty() or len(line) <= shutil.get_terminal_size().columns:
        return line
    return line.replace(" --", " \\\n      --")


def signal_ended(trainer: Trainer, exception: BaseException) -> bool:
    """Whether a signal has ended a fit, of which is told then what it came to.

    Args:
        trainer: The trainer.
        exception: What has ended it.
    """
    return isinstance(exception, KeyboardInterrupt | SIGTERMException) and trainer.state.fn == TrainerFn.FITTING


class FitSummary(Stopwatch):
    """Prints final losses, accuracy, times and where the logs are.

    The smoothed train loss is s = 0.7 s + 0.3 x over the raw loss of every batch, from the first on, without bias
    correction; it goes on over a resume.
    """

    def __init__(self) -> None:
        super().__init__()
        self._smoothed: Tensor | None = None
        self._raw: Tensor | None = None
        self._resumed = 0
        self._fit_started = 0.0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        super().on_fit_start(trainer, pl_module)
        self._raw = None
        self._fit_started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Takes in the loss of the batch; nothing waits for the device."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        loss = outputs.get("mean_loss", outputs["loss"]).detach()  # of all processes
        smoothed = self._smoothed
        self._raw = loss
        self._smoothed = loss if smoothed is None else _DECAY * smoothed.to(loss.device) + (1 - _DECAY) * loss

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Prints what an interrupted fit came to."""
        super().on_exception(trainer, pl_module, exception)
        if signal_ended(trainer, exception):
            self.on_fit_end(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints the summary on the first process."""
        folder = trainer.log_dir  # asks all processes
        if not trainer.is_global_zero or self._smoothed is None:
            return
        if self._raw is None:
            print(
                f"\nNothing was trained: the checkpoint is at step {trainer.global_step}, where this fit ends already; "
                "raise trainer.max_epochs or trainer.max_steps to go on."
            )
            return
        lines = [("train loss", f"{self._raw.item():.4f} (smoothed {self._smoothed.item():.4f})")]
        for name, value in sorted(trainer.callback_metrics.items()):
            if name.startswith("val/"):
                lines.append((name.replace("val/", "validation "), f"{value.item():.4f}"))
        lines.append(("steps", str(trainer.global_step)))
        here = f" for the {self.steps - self._resumed} steps since the resume" if self._resumed else ""
        lines.append(("seconds", f"{time.perf_counter() - self._fit_started:.1f}{here}"))
        lines.append(("milliseconds a step", f"{1000 * self.seconds / self.steps:.1f}"))
        if isinstance(pl_module, LocoPropModule):
            for layer, counts in pl_module.engine.counts.items():
                failed = ", ".join(f"{count} {status}" for status, count in counts.items())
                lines.append((f"layer {layer}", f"{failed} of {self.steps} local solutions"))
                if counts.get(Status.NONFINITE.value, 0) > self.steps / 2:
                    lines.append(
                        ("", "most of them were not finite: look at inputs and loss; a larger lambda_r may help")
                    )
                elif sum(counts.get(s.value, 0) for s in (Status.DIVERGED, Status.NONFINITE)) > self.steps / 2:
                    lines.append(("", "most of them failed: a larger lambda_r or a smaller lambda_a helps"))
            if skipped := pl_module.rest.skipped:
                lines.append(("rest optimizer", f"{skipped} of {self.steps} gradients were not finite and left out"))
        if isinstance(pl_module, SupervisedModule) and pl_module.untouched:
            lines.append(("never had a gradient", ", ".join(pl_module.untouched)))
        if folder is not None and trainer.loggers:
            lines.append(("logs", folder))
            if not any(getattr(one, "ends_summary", False) for one in trainer.checkpoint_callbacks):
                lines += next_commands(trainer.loggers, Path(folder))
        # Plain lines, not a table: a folder that is cut or wrapped could not be copied.
        print("\nSummary", *(summary_line(name, value) for name, value in lines), sep="\n")

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        return {"smoothed": self._smoothed, "seconds": self.seconds, "steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:  # noqa: D102
        self._smoothed = state_dict["smoothed"]
        self._passed, self.steps = state_dict["seconds"], state_dict["steps"]
        self._resumed = self.steps
