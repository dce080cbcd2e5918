"""The weights that did best in validation."""

import math
import shutil
import sys
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn

from locoprop_lightning.callbacks.fit_summary import signal_ended, summary_line
from locoprop_lightning.checkpoint_files import BEST, write_whole
from locoprop_lightning.errors import UserError, check_object
from locoprop_lightning.files import passing_name, settle
from locoprop_lightning.run_folder import checkpoint_folder
from locoprop_lightning.supervised import SupervisedModule

AUTO = "auto"
_CHOICES = ("val/accuracy", "val/loss")  # what "auto" takes: the first that is logged


class BestCheckpoint(Checkpoint):
    """Keeps the weights that did best in validation, as ``best.ckpt`` beside the run's other checkpoints.

    It holds no state of optimizers: ``validate``, ``test``, ``predict`` and ``load_run`` take it, a fit goes on from
    one of the others. What is best is remembered over a resume; a run that goes on in another folder takes the file
    along.

    Args:
        monitor: What is judged by; "auto" for ``val/accuracy``, or ``val/loss`` where the task has no accuracy, null to
            keep none. Of metrics whose ``higher_is_better`` says so the highest value is the best, of all else the
            lowest.
    """

    def __init__(self, monitor: str | None = AUTO) -> None:
        if monitor is not None:
            check_object("best", str, "the name of a metric of validation, such as val/loss, or auto", monitor=monitor)
        self.monitor = monitor
        self.path: Path | None = None
        self.value: float | None = None
        self.step = 0  # at which that was
        self._judged = ""  # by which metric
        self._folder = Path()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Finds the folder, the same for all processes."""
        if stage == "fit":
            self._folder = Path(trainer.strategy.broadcast(str(checkpoint_folder(trainer))))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins anew, or goes on from what was best before a resume."""
        before = Path(str(trainer.ckpt_path)).parent / BEST if trainer.ckpt_path is not None else None
        kept = before is not None and self.value is not None and before.is_file()
        if not kept:
            self.path, self.value, self.step = None, None, 0
            return
        assert before is not None
        self.path = self._folder / BEST
        if trainer.is_global_zero and not self.path.exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(before, passing_name(self.path))
            settle(passing_name(self.path), self.path)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the weights where they are the best so far.

        Raises:
            UserError: For a metric that validation does not log.
        """
        if trainer.state.fn != TrainerFn.FITTING or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        name = self._metric(trainer)
        if name is None or trainer.sanity_checking:
            return
        value = float(trainer.callback_metrics[name])
        if name != self._judged:
            self._judged, self.value = name, None
        known, sign = self.value, -1 if _rises(pl_module, name) else 1
        better = math.isfinite(value) and (known is None or sign * value < sign * known)
        if trainer.strategy.broadcast(better):  # processes may have logged a value each, and save together
            self._save(trainer, value)

    def _metric(self, trainer: Trainer) -> str | None:
        """The metric that is judged by, None where there is none."""
        known = trainer.callback_metrics
        if self.monitor == AUTO:
            return next((name for name in _CHOICES if name in known), None)
        if self.monitor is not None and self.monitor not in known:
            names = ", ".join(sorted(name for name in known if not name.startswith("train/")))
            raise UserError(f"best.monitor={self.monitor}: validation does not log it; take one of {names}, or auto.")
        return self.monitor

    def _save(self, trainer: Trainer, value: float) -> None:
        """Writes the weights; says where that is not possible, and goes on."""
        path = self._folder / BEST
        if (why := write_whole(trainer, path, weights_only=True)) is not None:
            print(f"best: {path} cannot be written ({why}); make room there.", file=sys.stderr)
            return
        self.path, self.value, self.step = path, value, trainer.global_step

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends the summary with the best weights."""
        if trainer.is_global_zero and self.path is not None:
            print(summary_line("best weights", f"{self.path} ({self._judged} {self.value:.4f} at step {self.step})"))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Does so where a signal ends the fit."""
        if signal_ended(trainer, exception):
            self.on_fit_end(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        return {"judged": self._judged, "value": self.value, "step": self.step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:  # noqa: D102
        self._judged, self.value, self.step = state_dict["judged"], state_dict["value"], state_dict["step"]


def _rises(module: LightningModule, name: str) -> bool:
    """Whether the highest value of a metric is the best."""
    metrics = dict(module.val_metrics.items()) if isinstance(module, SupervisedModule) else {}
    return bool(getattr(metrics.get(name), "higher_is_better", False))
