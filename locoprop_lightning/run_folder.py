"""The folder of a run: found free, claimed before anything is written, and given up where the run never began."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from locoprop_lightning.checkpoint_files import BEST, last_of, newest_first, resumable
from locoprop_lightning.errors import UserError
from locoprop_lightning.files import SETTINGS_FILE


class RunFolder:
    """The folder that a run has to itself: that of its first logger's version, or the trainer's root without loggers.

    Args:
        trainer: The trainer, before it runs.

    Attributes:
        path: The folder, once it is claimed.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.path: Path | None = None
        self._made: list[Path] = []
        self._held: int | None = None  # descriptor of the folder, while it is locked
        self._keeps = bool(trainer.checkpoint_callbacks)
        self._root = Path(trainer.default_root_dir)
        first = trainer.loggers[0] if trainer.loggers else None
        self._logger = first if isinstance(first, TensorBoardLogger | CSVLogger) else None
        self._fixed = self._logger is None or self._logger._version is not None
        self._bare = first is None
        settings = self._root / SETTINGS_FILE  # where a run without a logger writes them
        self._fresh = None if settings.exists() else settings

    @property
    def searched(self) -> tuple[Path, str]:
        """The folder where checkpoints of this run and earlier ones are, and the pattern of their paths in it."""
        if self._logger is None:
            return self._root, "checkpoints/*.ckpt" if self._bare else "**/checkpoints/*.ckpt"
        if self._fixed:
            return Path(self._logger.log_dir), "checkpoints/*.ckpt"
        return Path(self._logger.root_dir), "*/checkpoints/*.ckpt"

    def last(self) -> tuple[Path, list[str]]:
        """The newest whole checkpoint of all runs there, and what is wrong with newer ones.

        Raises:
            UserError: Where there is none.
        """
        folder, pattern = self.searched
        path, passed = last_of(folder, pattern)
        if path is None:
            told = f" ({'; '.join(passed)})" if passed else ""
            raise UserError(
                f"ckpt_path=last: there is no whole checkpoint at {folder / pattern}{told}; leave it out to start, or "
                "name a file."
            )
        return path, passed

    def best(self) -> Path:
        """The best weights of the last run there that has some.

        Raises:
            UserError: Where there are none.
        """
        folder, pattern = self.searched
        pattern = pattern.replace("*.ckpt", BEST)
        for path in newest_first(folder.glob(pattern)):
            return path
        raise UserError(
            f"ckpt_path=best: there is no {folder / pattern}, which a fit with validation writes; take last, or name a "
            "file."
        )

    def claim(self, ckpt_path: Path | None) -> str | None:
        """Makes the folder, which must be new unless the run goes on from a checkpoint that lies in it.

        Args:
            ckpt_path: The checkpoint that the run goes on from.

        Returns:
            What to tell of earlier runs.

        Raises:
            UserError: Where another run is there, or the folder cannot be made.
        """
        folder, pattern = self.searched
        known = resumable(folder, pattern) if self._logger is not None or self._bare else []
        if self._fixed:
            own = folder if self._logger is not None else folder / "checkpoints"
            inside = ckpt_path is not None and own.resolve() in ckpt_path.resolve().parents
            if not inside and (known or (self._logger is not None and own.is_dir() and any(own.iterdir()))):
                setting = "trainer.default_root_dir" if self._logger is None else "trainer.logger.version"
                value = self._root if self._logger is None else self._logger.version
                raise UserError(
                    f"{setting}={value}: {own} holds a run already; go on with it by --ckpt_path last, or name another "
                    "folder."
                )
        self.open()
        if self._logger is None and self._bare and self._keeps:
            with self._writable("trainer.default_root_dir", self._root, folder / "checkpoints"):
                self._make_parents(folder / "checkpoints" / "of it")
            self._lock(folder / "checkpoints")
        if self.path is None:
            return None
        self._lock(self.path)
        if not known or ckpt_path is not None:
            return None
        return f"starts a run of its own in {self.path}; --ckpt_path last would go on from {known[0]}"

    def open(self) -> None:
        """Makes the folder of the logs, if there are any here.

        Raises:
            UserError: If it cannot be made.
        """
        if self._logger is not None:
            with self._writable("trainer.logger.save_dir", self._logger.save_dir, self._logger.root_dir):
                self._make(self._logger)

    @staticmethod
    @contextmanager
    def _writable(setting: str, value: Any, folder: Any) -> Iterator[None]:
        """Names the setting where its folder cannot be made."""
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{setting}={value}: {folder} cannot be made or written to ({error.strerror}); name a folder that can."
            ) from error

    def _lock(self, folder: Path) -> None:
        """Keeps another run from writing into the folder while this one does; the lock ends with the process.

        Raises:
            UserError: Where another run has it.
        """
        held = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(held)
            self.path, self._made = None, []  # which are not this run's to remove
            raise UserError(f"{folder}: another run is writing there; wait for it, or name another folder.") from error
        except OSError:  # a file system without locks
            os.close(held)
            return
        self._held = held

    def release(self) -> None:
        """Lets other runs write there."""
        if self._held is not None:
            os.close(self._held)
            self._held = None

    def _make_parents(self, path: Path) -> None:
        for parent in reversed(path.parents):
            if not parent.exists():
                parent.mkdir(exist_ok=True)
                self._made.append(parent)

    def _make(self, logger: TensorBoardLogger | CSVLogger) -> None:
        """Makes the folder of the version, which several runs that start at one time do not share."""
        while True:
            path = Path(logger.log_dir)
            self._make_parents(path)
            try:
                path.mkdir()
                self._made.append(path)
            except FileExistsError:
                if not path.is_dir():
                    raise
                if not self._fixed:
                    logger._version = None  # another run has just taken it
                    continue
            self.path = path
            return

    def give_up(self) -> None:
        """Removes what a run that never took a step has left, with the folders that were made for it."""
        if self.path is not None and self._made and self._made[-1] == self.path:
            shutil.rmtree(self.path, ignore_errors=True)
        if self._fresh is not None:
            self._fresh.unlink(missing_ok=True)
        for folder in reversed(self._made):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


def checkpoint_folder(trainer: Trainer) -> Path:
    """The folder of a run's checkpoints: beside its logs, or in the trainer's root where there are none."""
    if not trainer.loggers:
        return Path(trainer.default_root_dir) / "checkpoints"
    logger = trainer.loggers[0]
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    return Path(logger.save_dir or trainer.default_root_dir) / str(logger.name) / version / "checkpoints"


def settings_folder(trainer: Trainer) -> Path:
    """The folder of a run's configuration: that of its logs, or its own where a logger keeps all runs in one.

    All processes ask for it together.
    """
    logs = Path(trainer.log_dir or ".")
    shared = trainer.loggers and not isinstance(trainer.loggers[0], TensorBoardLogger | CSVLogger)
    return checkpoint_folder(trainer).parent if shared else logs
