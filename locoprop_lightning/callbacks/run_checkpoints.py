"""Checkpoints from which a run goes on as if nothing had stopped it."""

import shlex
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from locoprop_lightning import random_state
from locoprop_lightning.callbacks.fit_summary import next_commands, signal_ended, summary_line
from locoprop_lightning.checkpoint_files import write_whole
from locoprop_lightning.checkpoints import at_next_epoch
from locoprop_lightning.edited_settings import edited
from locoprop_lightning.errors import Lost, UserError, check_counts, check_positive
from locoprop_lightning.files import SETTINGS_FILE
from locoprop_lightning.quiet import leave_terminal
from locoprop_lightning.run_folder import checkpoint_folder, settings_folder

SETTINGS = "settings"  # key of a checkpoint: settings of the run by dotted name
RANDOM = "random_state"  # key of a checkpoint: {generator: states of all processes}
AGREE_EVERY = 8  # steps between two questions to the other processes, which wait for each other then
STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class RunCheckpoints(Checkpoint):
    """Writes checkpoints from which a fit goes on bit for bit, within an epoch too, and keeps the last two.

    One is written before the first step, when the time has come, at the end, and at a signal: SIGUSR1 asks for one,
    SIGTERM, Ctrl-C and the closing of the terminal (SIGHUP) for one and the end of the fit. Each is on the disk before
    it takes its name. A batch that is begun is ended first, and so is the validation or the end of an epoch that
    follows it. One that cannot be written is told of, and the fit goes on; `lost` says it where that is the last one.

    Args:
        minutes: Minutes between two checkpoints; null for no clock.
        every_n_steps: Steps between two checkpoints; null for none by steps.

    Attributes:
        lost: Why the weights at the end of the fit are on no disk, in one sentence; None where they are.
    """

    ends_summary = True  # with the commands that come next, which stand below the files

    def __init__(self, minutes: float | None = 5.0, every_n_steps: int | None = None) -> None:
        if minutes is not None:
            check_positive("checkpoints", minutes=minutes)
        if every_n_steps is not None:
            check_counts("checkpoints", 1, every_n_steps=every_n_steps)
        self.minutes = minutes
        self.every_n_steps = every_n_steps
        self.last: Path | None = None
        self.lost: str | None = None
        self._failure: str | None = None  # of the last one, until it is told
        self._before: Path | None = None
        self._step = -1  # of the last one
        self._written = 0.0  # when it was written
        self._due = False
        self._signal: signal.Signals | None = None
        self._handlers: dict[signal.Signals, Any] = {}
        self._random: dict[str, Tensor] | None = None
        self._command: str | None = None
        self._settings: dict[str, Any] = {}
        self._folder = Path()
        self._told_of_objects = False

    def describe(self, command: str, settings: Mapping[str, Any]) -> None:
        """Says what the summary shall name as the way to go on, and what a resumed run is compared by.

        Args:
            command: A command, to which the path of the checkpoint is added.
            settings: Settings of the run by dotted name.
        """
        self._command, self._settings = command, dict(settings)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Finds the folder, the same for all processes."""
        if stage == "fit":
            self._folder = Path(trainer.strategy.broadcast(str(checkpoint_folder(trainer))))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Goes on with the random numbers of the checkpoint, or writes the first checkpoint."""
        if self._random is not None:
            own = {name: states[trainer.global_rank] for name, states in self._random.items()}
            random_state.restore(own, trainer.strategy.root_device)
            self._random = None
        self._watch(trainer)
        self._due, self._signal, self._written, self._step = False, None, time.monotonic(), trainer.global_step
        self.last = self._before = self.lost = self._failure = None
        if trainer.ckpt_path is not None:
            self.last = Path(str(trainer.ckpt_path))
        elif (failure := self._save(trainer)) is not None:
            raise UserError(failure)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Tells of one that could not be written; at the end of the fit it is tried again first."""
        self._tell_failure()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Writes one where it is due, unless validation or the end of the epoch comes first.

        Of several batches that make one step, the last one alone.
        """
        if getattr(pl_module, "within_step", False):  # any Lightning module may have these checkpoints
            return
        loop = trainer.fit_loop.epoch_loop
        ends = loop.global_step == loop.max_steps and not loop.batch_progress.is_last_batch
        self._due = self._due or ends or self._asked(trainer)
        if self._due and not self._more_follows(trainer):
            self._save_and_stop(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes one that was due before, within an epoch."""
        within = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        if within and self._due and not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self._save_and_stop(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes one that was due before."""
        if self._due:
            self._save_and_stop(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the last one."""
        if trainer.global_step != self._step:
            self._save_and_stop(trainer)
        self.lost, self._failure = self._failure, None

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends the summary with the checkpoint, and the way to go on from it."""
        self._unwatch()
        self._tell(trainer, ended=True)
        if self.lost is not None and self._command is None:
            print(f"checkpoints: {self.lost}", file=sys.stderr)  # the command ends with it

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Says where an interrupted fit can go on."""
        self._unwatch()
        if signal_ended(trainer, exception):
            self._tell(trainer, ended=False)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adds the settings, and the random numbers of all processes."""
        checkpoint[SETTINGS] = self._settings
        own = random_state.capture(trainer.strategy.root_device)
        states: dict[str, Tensor] = pl_module.all_gather(own)  # type: ignore[assignment]
        alone = trainer.world_size == 1
        checkpoint[RANDOM] = {name: state[None] if alone else state.cpu() for name, state in states.items()}
        if trainer.global_step == 0:  # Lightning would take the first batch for one that has been
            checkpoint.pop("loops")

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Remembers the random numbers, and mends where Lightning would begin an epoch that has ended.

        Raises:
            UserError: For a setting that may not be another than it was.
        """
        if (saved := checkpoint.get(SETTINGS)) and self._settings:
            for told in edited(saved, self._settings) if trainer.state.fn == TrainerFn.FITTING else []:
                print(f"checkpoints: {told}.", file=sys.stderr)
        found = checkpoint.get(RANDOM)
        same = found is not None and len(found["torch"]) == trainer.world_size
        self._random = found if same else None
        if trainer.max_steps != -1 and "loops" in checkpoint:
            checkpoint["loops"]["fit_loop"] = at_next_epoch(checkpoint["loops"]["fit_loop"])

    def _asked(self, trainer: Trainer) -> bool:
        """Whether a step, the clock or a signal asks for a checkpoint, on any process."""
        if self.every_n_steps is not None and trainer.global_step % self.every_n_steps == 0:
            return trainer.global_step != self._step
        late = self.minutes is not None and time.monotonic() - self._written >= 60 * self.minutes
        wish = late or self._signal is not None
        if trainer.world_size == 1:
            return wish
        return trainer.global_step % AGREE_EVERY == 0 and trainer.strategy.reduce_boolean_decision(wish, all=False)

    @staticmethod
    def _more_follows(trainer: Trainer) -> bool:
        """Whether validation or the end of the epoch comes between this batch and the next."""
        loop = trainer.fit_loop.epoch_loop
        assert trainer.fit_loop._data_fetcher is not None
        return loop._num_ready_batches_reached() or loop._should_check_val_fx(trainer.fit_loop._data_fetcher)

    def _save_and_stop(self, trainer: Trainer) -> None:
        """Writes one, and ends the fit where a signal has asked for it."""
        if trainer.global_step != self._step:
            self._failure = self._save(trainer)
        asked, self._due, self._signal = self._signal, False, None
        if asked in STOPS:
            self._tell_failure()
        if asked is signal.SIGINT:
            raise KeyboardInterrupt
        stop = asked in STOPS
        if trainer.world_size > 1:
            stop = trainer.strategy.reduce_boolean_decision(stop, all=False)
        if stop:
            raise SIGTERMException

    def _tell_failure(self) -> None:
        if self._failure is not None:
            print(f"checkpoints: {self._failure}", file=sys.stderr)
            self._failure = None

    def _save(self, trainer: Trainer) -> str | None:
        """Writes one and removes the last but two; says what went wrong."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return None
        path = self._folder / f"step={trainer.global_step}.ckpt"
        why = write_whole(trainer, path, self._holds_objects(trainer))
        self._written = time.monotonic()
        if why is not None:
            kept = f"the last whole one is {self.last}" if self.last else "there is none yet"
            return f"{path} cannot be written ({why}); {kept}; make room there, or name another folder."
        if trainer.is_global_zero and self._before is not None:
            self._before.unlink(missing_ok=True)
        own = self.last is not None and self.last.parent == self._folder
        self._before, self.last, self._step = self.last if own else None, path, trainer.global_step
        return None

    def _holds_objects(self, trainer: Trainer) -> bool:
        """Whether an optimizer keeps what torch would not read back safely; says so once."""
        names = [type(one).__name__ for one in trainer.optimizers if not _is_plain(one.state_dict())]
        if names and not self._told_of_objects:
            self._told_of_objects = True
            text = f"{names[0]} keeps objects in its state, which torch does not read back safely"
            print(f"checkpoints: {text}: they hold weights alone, and no fit can go on from them.", file=sys.stderr)
        return bool(names)

    def _watch(self, trainer: Trainer) -> None:
        """Takes over the signals, but not SIGUSR1 where Lightning hands it to a cluster, nor SIGHUP under nohup."""
        if threading.current_thread() is not threading.main_thread():
            return
        wanted = [signal.SIGTERM]
        free = (signal.SIG_DFL, None)
        wanted += [one for one in (signal.SIGUSR1, signal.SIGHUP) if signal.getsignal(one) in free]
        if trainer.world_size == 1:  # else each process would be stopped at a step of its own
            wanted.append(signal.SIGINT)
        self._handlers = {one: signal.signal(one, self._on_signal) for one in wanted}

    def _unwatch(self) -> None:
        for one, handler in self._handlers.items():
            if signal.getsignal(one) == self._on_signal:  # Lightning puts back what was before its own, and holds a run
                signal.signal(one, handler)
        self._handlers = {}

    def _on_signal(self, number: int, frame: Any) -> None:
        """Notes a signal; a second Ctrl-C does not wait."""
        if number == signal.SIGINT and self._signal is signal.SIGINT:
            raise KeyboardInterrupt
        if number == signal.SIGHUP:
            leave_terminal()
        if self._signal not in STOPS:
            self._signal = signal.Signals(number)

    def _tell(self, trainer: Trainer, ended: bool) -> None:
        """Ends the summary: the checkpoint, and the commands that come next."""
        folder = Path(trainer.log_dir or ".")  # asks all processes
        settings = settings_folder(trainer) / SETTINGS_FILE
        if not trainer.is_global_zero:
            return
        lines = [] if self.last is None or self.lost else [("checkpoint", str(self.last))]
        lines += (logged := next_commands(trainer.loggers, folder))
        if self.last is not None and self._command:
            checkpoint = f"--ckpt_path {shlex.quote(str(self.last))}"
            if ended and not self.lost and settings.is_file():
                names = ["test"] if len(logged) > 1 else ["test", "predict"]
                lines += [(one, f"locoprop {one} --config {shlex.quote(str(settings))} {checkpoint}") for one in names]
            elif not self._told_of_objects:
                lines.append(("go on", f"{self._command} {checkpoint}"))
        for name, value in lines:
            print(summary_line(name, value))


def check_kept(trainer: Trainer) -> None:
    """Refuses to call a fit done whose weights are on no disk.

    Args:
        trainer: The trainer, after the fit.

    Raises:
        Lost: Says why.
    """
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, RunCheckpoints) and callback.lost:
            raise Lost(callback.lost)


def _is_plain(state: Any) -> bool:
    """Whether a state is of tensors, numbers, strings, and dictionaries and sequences of these."""
    if isinstance(state, dict):
        return all(_is_plain(value) for value in state.values())
    if isinstance(state, list | tuple):
        return all(map(_is_plain, state))
    return state is None or isinstance(state, Tensor | bool | int | float | str | torch.dtype | torch.device)
