"""Files of checkpoints: whether one is whole, which is the newest that is, and how one is written."""

import pickle
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile, is_zipfile
from zlib import error as zlib_error

import torch
from lightning.pytorch import Trainer

from locoprop_lightning.errors import UserError, near_names
from locoprop_lightning.files import passing_name, settle, why_unwritten

RUNS_CODE = "weights_only=False: would run whatever code a checkpoint holds; leave it out."
BEST = "best.ckpt"  # weights alone, which no fit goes on from
_KINDS_OF_WEIGHTS: dict[str, type] = {"state_dict": dict, "global_step": int, "pytorch-lightning_version": str}
_KINDS = _KINDS_OF_WEIGHTS | {"epoch": int, "optimizer_states": list, "lr_schedulers": list}


def flaw(path: Path, resume: bool = True) -> str | None:
    """Why a file cannot be used as a checkpoint, None where it can.

    Every byte is held against the checksums that torch writes but does not read.

    Args:
        path: The file.
        resume: Whether a fit shall go on from it, for which weights alone do not do.
    """
    if path.is_dir():
        return "is a folder; name a .ckpt file in it"
    if not is_zipfile(path):
        with suppress(OSError), path.open("rb") as file:
            if file.read(4) == b"PK\x03\x04":  # as a zip begins, whose end says that it is one
                return "is damaged or cut short"
        return "is not a checkpoint that torch has saved"
    try:
        with ZipFile(path) as archive:
            broken = archive.testzip()
    except (BadZipFile, zlib_error, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        return f"is damaged ({error})"
    if broken is not None:
        return f"is damaged (the checksum of its part {broken} does not hold)"
    try:
        content = torch.load(path, map_location="meta", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, KeyError, AttributeError, EOFError) as error:
        return f"holds what torch does not read safely, such as objects ({_first(error)})"
    kinds = _KINDS if resume and isinstance(content, dict) and "optimizer_states" in content else _KINDS_OF_WEIGHTS
    for name, kind in kinds.items():
        if not isinstance(content, dict) or not isinstance(content.get(name), kind):
            return f"is no checkpoint of a run: it has no {name} of one"
    if resume and "optimizer_states" not in content:
        return "holds weights alone, from which no fit can go on"
    return None


def _first(error: Exception) -> str:
    """What torch's long message says of its reason."""
    text = " ".join(str(error).split())
    _, _, reason = text.rpartition("WeightsUnpickler error: ")
    return reason.partition(". ")[0].partition(" Please")[0][:160]


def newest_first(paths: Iterable[Path]) -> list[Path]:
    """Checkpoints in the order in which they were written, the last one first."""

    def age(path: Path) -> tuple[int, Any]:
        return -path.stat().st_mtime_ns, path

    return sorted((path for path in paths if path.is_file()), key=age)


def checked(path: Path, resume: bool, setting: str = "ckpt_path") -> Path:
    """A checkpoint that is named, once it is known to be whole.

    Args:
        path: The file.
        resume: Whether a fit shall go on from it.
        setting: What names it.

    Raises:
        UserError: Why it is none, and which other one in its folder is whole.
    """
    reason = flaw(path, resume) if path.exists() else "there is no such file"
    if reason is None:
        return path
    others = [] if path.is_dir() else newest_first(other for other in path.parent.glob("*.ckpt") if other != path)
    whole = next((other for other in others if flaw(other, resume) is None), None)
    copy = "copy it again, or " if "is damaged" in reason else ""
    way = "" if path.is_dir() else f"; {copy}name one that a fit has written"
    way = f"; the last whole one beside it is {whole}" if whole else way
    near = "" if path.exists() else near_names(str(path), ("last",))
    raise UserError(f"{setting}={path}: {reason}{way}{near}.")


def check_epochs(path: Path, max_epochs: int | None) -> None:
    """Refuses to go on from a checkpoint to an epoch that is behind it.

    Args:
        path: A whole checkpoint.
        max_epochs: Epochs of the fit; any number of them if not given, or -1.

    Raises:
        UserError: Names both numbers.
    """
    loops = torch.load(path, map_location="meta", weights_only=True, mmap=True).get("loops", {})
    done = loops.get("fit_loop", {}).get("epoch_progress", {}).get("current", {}).get("processed", 0)
    if max_epochs is not None and -1 < max_epochs < done:
        raise UserError(
            f"trainer.max_epochs={max_epochs}: {path} has {done} epochs already; give more, or leave out --ckpt_path "
            "to start over."
        )


def resumable(folder: Path, pattern: str) -> list[Path]:
    """Checkpoints that a fit may go on from, the last one first.

    Args:
        folder: Where to look.
        pattern: Of the checkpoints in it.
    """
    return newest_first(path for path in folder.glob(pattern) if path.name != BEST)


def last_of(folder: Path, pattern: str) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint that a fit can go on from, and what is wrong with newer ones.

    Args:
        folder: Where to look.
        pattern: Of the checkpoints in it.
    """
    passed: list[str] = []
    for path in resumable(folder, pattern):
        if (reason := flaw(path)) is None:
            return path, passed
        passed.append(f"{path} {reason}")
    return None, passed


def write_whole(trainer: Trainer, path: Path, weights_only: bool) -> str | None:
    """Writes a checkpoint, which takes its name when it is on the disk; nothing is left of one that fails.

    Args:
        trainer: The trainer.
        path: The file.
        weights_only: Whether it holds no state of optimizers.

    Returns:
        Why it could not be written, None where it is.

    Raises:
        OSError: Where several processes save, and this one cannot: the others do not know.
        RuntimeError: As well.
    """
    passing, failure = passing_name(path), None
    try:
        trainer.save_checkpoint(passing, weights_only=weights_only)
    except (OSError, RuntimeError) as error:
        if trainer.world_size > 1:
            raise
        failure = error
    if trainer.is_global_zero and failure is None:
        try:
            settle(passing, path)
        except OSError as error:
            failure = error
    if failure is None:
        return None
    passing.unlink(missing_ok=True)
    return why_unwritten(failure)
