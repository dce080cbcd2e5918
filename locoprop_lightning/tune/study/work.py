"""One run of a study: a trial or a final run, trained from its first step to its last, however often it is killed."""

import contextlib
import fcntl
import io
import json
import math
import pickle
import platform
import shutil
import statistics
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from locoprop_lightning import LocoPropModule
from locoprop_lightning.callbacks import LocalLossMonitor, StepTimer
from locoprop_lightning.callbacks.recorder import FitEnded, LossRecorder
from locoprop_lightning.files import passing_name, replace, settle
from locoprop_lightning.results.runs import smooth
from locoprop_lightning.results.store import finite
from locoprop_lightning.tune.study.search import LEARNT, RUNGS
from locoprop_lightning.tune.study.spec import LOSS
from locoprop_lightning.tune.study.store import Line, write_curve
from locoprop_lightning.tune.trial import build

RECORD, CURVE = "record.json", "curve.csv"
PAUSE = 60.0  # seconds between two checkpoints


class Job(NamedTuple):
    """A run.

    Attributes:
        line: What is known of it before: method, mark, trial or seed, values.
        config: Path of its configuration.
        settings: What is changed in it, by name.
        seed: Its seed.
        threads: CPU threads.
        gpus: GPUs that it has; with 0 it stays on the processor, whatever the machine has.
        folder: Where it works; what it holds is of this job alone.
        judge: Tag of the judged metric.
        limits: Smoothed loss above which it is stopped at each rung; None for a final run, which never is.
    """

    line: Line
    config: str
    settings: dict[str, Any]
    seed: int
    threads: int
    gpus: float
    folder: str
    judge: str
    limits: list[float] | None


class Referee(LossRecorder):
    """Takes down losses, and ends a trial where its smoothed loss is above a limit, or has not fallen at all.

    Args:
        limits: The limit at each rung, none or None for a run that is never stopped.
    """

    def __init__(self, limits: list[float] | None) -> None:
        super().__init__()
        self.limits = limits
        self.rungs: list[float | None] = []
        self.metrics: dict[str, float | None] = {}
        self.stopped = False
        self._steps: list[int] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        super().on_train_start(trainer, pl_module)
        length = int(trainer.estimated_stepping_batches)
        self._steps = [max(1, round(fraction * length)) for fraction in RUNGS]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Looks at the loss where a rung is reached.

        Raises:
            FitEnded: Where it is above the limit.
        """
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if len(self.losses) in self._steps:
            value = float(smooth(self.losses)[-1])
            self.rungs.append(finite(value))
            if self.limits:
                self.stopped = value > min(self.limits[len(self.rungs) - 1], LEARNT * self.losses[0])
            if self.stopped:
                raise FitEnded

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        return super().state_dict() | {"rungs": list(self.rungs), "metrics": dict(self.metrics)}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes down the metrics, which a resume of a fit that is at its end would not have."""
        super().on_train_epoch_end(trainer, pl_module)
        self.metrics = {name: finite(float(value)) for name, value in trainer.callback_metrics.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:  # noqa: D102
        super().load_state_dict(state_dict)
        self.rungs, self.metrics = list(state_dict["rungs"]), dict(state_dict["metrics"])


class Keeper(Checkpoint):
    """Writes a checkpoint at the end of an epoch, if the last one was written a while ago.

    Args:
        path: The checkpoint.
        pause: Seconds in between.
    """

    def __init__(self, path: Path, pause: float) -> None:
        self.path = path
        self.pause = pause
        self._last = time.monotonic()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        if time.monotonic() - self._last >= self.pause:
            passing = passing_name(self.path)
            trainer.save_checkpoint(passing)
            settle(passing, self.path)
            self._last = time.monotonic()


def run(job: Job, pause: float = PAUSE) -> Line:
    """Runs a job, or goes on with it.

    Args:
        job: The job.
        pause: Seconds between two checkpoints.

    Returns:
        Its line. A final run leaves its curve in the folder, too.
    """
    folder = Path(job.folder)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the worker of a killed study may be at it still
        stored = folder / RECORD
        if not stored.is_file():
            line, losses = _train(job, folder, pause)
            write_curve(folder / CURVE, losses)
            replace(stored, json.dumps(line))
        line = json.loads(stored.read_text())
        return dict(line)


def discard(job: Job) -> None:
    """Removes what a job left in its folder.

    Args:
        job: The job.
    """
    shutil.rmtree(job.folder, ignore_errors=True)


def _train(job: Job, folder: Path, pause: float) -> tuple[Line, list[float]]:
    """The line and the losses of a run."""
    warnings.filterwarnings("ignore")
    begun = time.monotonic()
    referee = Referee(job.limits)
    checkpoint = folder / "last.ckpt"
    on_loss = job.judge == LOSS
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # the table of layers
            cli = build(job.config, job.seed, job.threads, job.settings | plain(job.gpus, validate=not on_loss))
            trainer, module, data = cli.trainer, cli.model, cli.datamodule
            kept = [c for c in trainer.callbacks if not isinstance(c, LocalLossMonitor | StepTimer)]  # type: ignore[attr-defined]
            trainer.callbacks = [*kept, referee, Keeper(checkpoint, pause)]  # type: ignore[attr-defined]
            with contextlib.suppress(FitEnded):
                trainer.fit(module, data, ckpt_path=checkpoint if _can_be_read(checkpoint) else None, weights_only=True)
            metrics = dict(referee.metrics)
            whole = referee.nonfinite_step is None and not referee.stopped
            if job.limits is None and whole:
                (tested,) = trainer.test(module, data, verbose=False)
                metrics |= {name: finite(float(value)) for name, value in tested.items()}
    except torch.linalg.LinAlgError as error:
        if not referee.losses:
            raise
        return job.line | _failed(referee, error), referee.losses  # such as a factor that is singular
    status = "done" if whole else "stopped" if referee.stopped else "non-finite"
    smoothed = smooth(referee.losses)
    judged = float(smoothed[-1]) if on_loss else metrics.get(job.judge)
    known = {name: value for name, value in metrics.items() if name.split("/")[0] in ("val", "test")}
    line = job.line | {
        "status": status,
        "value": None if judged is None else finite(judged),
        "first": finite(referee.losses[0]),
        "loss": finite(float(smoothed[-1])),
        "rungs": referee.rungs,
        "steps": len(referee.losses),
        **known,
        "highest": highest(referee.losses),
        "refused": module.engine.counts if isinstance(module, LocoPropModule) else {},
        "ms": round(statistics.median(referee.step_ms), 2),
        "seconds": round(time.monotonic() - begun, 1),
        **here(trainer),
    }
    return line, referee.losses


def _can_be_read(checkpoint: Path) -> bool:
    """Whether there is a checkpoint to go on from; some optimizers keep objects that torch refuses to read back."""
    if not checkpoint.is_file():
        return False
    try:
        torch.load(checkpoint, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        return False
    return True


def plain(gpus: float, validate: bool) -> dict[str, str]:
    """Settings of a run that writes nothing of its own, on one device.

    Args:
        gpus: GPUs that it has.
        validate: Whether it looks at held-out data after each epoch.
    """
    settings = {"trainer.logger": "false", "trainer.num_sanity_val_steps": "0", "trainer.devices": "1"}
    if gpus == 0:
        settings["trainer.accelerator"] = "cpu"
    return settings if validate else settings | {"trainer.limit_val_batches": "0"}


def highest(losses: list[float], settled: int = 100) -> float | None:
    """Highest raw loss once training has settled, None where it is not finite or the run ends before.

    Args:
        losses: Loss of every step [steps].
        settled: Steps that do not count.
    """
    return finite(max(losses[settled + 1 :], default=math.nan))


def here(trainer: Trainer) -> Line:
    """What the last digits depend on beside the settings.

    Args:
        trainer: The trainer.
    """
    root = trainer.strategy.root_device
    name = torch.cuda.get_device_name(root) if root.type == "cuda" else platform.machine()
    return {"device": name, "torch": torch.__version__}


def _failed(referee: Referee, error: BaseException) -> Line:
    return {
        "status": "failed",
        "value": None,
        "first": finite(referee.losses[0]),
        "loss": None,
        "rungs": referee.rungs,
        "steps": len(referee.losses),
        "error": " ".join(str(error).split())[:300],
    }
