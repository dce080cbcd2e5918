"""What Lightning's trainer refuses, told with the setting, and what it takes though nothing can come of it."""

import os
import re
import traceback
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import BackboneFinetuning, EarlyStopping, ModelCheckpoint, Timer
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from locoprop_lightning.callbacks.best_checkpoint import AUTO, BestCheckpoint
from locoprop_lightning.errors import UserError, check_counts
from locoprop_lightning.module import LocoPropModule
from locoprop_lightning.supervised import BackpropModule, SupervisedModule

_LIMITS = {"validate": "limit_val_batches", "test": "limit_test_batches", "predict": "limit_predict_batches"}
PROCESSES_A_CORE = 8  # at most, of a fit on processors
_KINDS = (ValueError, TypeError, RuntimeError, ModuleNotFoundError, MisconfigurationException)
_OURS = ("lightning.", "locoprop_lightning.")


def refused(error: Exception, settings: Mapping[str, Any]) -> str | None:
    """The sentence for what Lightning itself has raised against a setting of the trainer, None for another error.

    Args:
        error: The error.
        settings: The trainer's settings by name.
    """
    frames = traceback.extract_tb(error.__traceback__)
    if not isinstance(error, _KINDS) or isinstance(error, UserError) or not frames:
        return None
    if not re.search(r"[/\\]lightning[/\\](pytorch|fabric)[/\\]", frames[-1].filename):
        return None
    text = " ".join(str(error).split()).rstrip(".!")
    given = {name: value for name, value in settings.items() if value is not None}
    places = {name: re.search(rf"\b{name}\b", text) for name in given}
    named = {name: found.start() for name, found in places.items() if found is not None}
    valued = [
        name
        for name, value in given.items()
        for part in ([*value] if isinstance(value, dict) else [value])
        if part and isinstance(part, str) and re.search(rf"(?<!\w){re.escape(part)}(?!\w)", text)
    ]
    name = min(named, key=named.__getitem__) if named else next(iter(valued), None)
    if name is None:
        return f"trainer: {text}."
    way = "; take auto, or one that this machine has" if name == "accelerator" and "vailable" not in text else ""
    if name == "max_time" and "DD:HH" not in text:
        way = "; give DD:HH:MM:SS, such as 00:01:30:00"
    if name == "devices" and str(given[name]) == "0":
        way = "; take 1 or more, or auto"
    return f"trainer.{name}={given[name]}: {text}{way}."


def check_settings(trainer: Trainer, settings: Mapping[str, Any], command: str | None = None) -> None:
    """Refuses settings that Lightning takes though nothing, or something else, comes of them.

    Args:
        trainer: The trainer that was made of them.
        settings: Its settings by name.
        command: The command: fit, validate, test or predict.

    Raises:
        UserError: Names the setting.
    """
    if command in _LIMITS and settings.get(_LIMITS[command]) == 0:
        raise UserError(f"trainer.{_LIMITS[command]}=0: leaves {command} no batch; give a number above 0.")
    if isinstance(trainer.strategy, SingleDeviceStrategy) and (count := _devices(settings)) > 1:
        name = settings["strategy"] if isinstance(settings["strategy"], str) else type(trainer.strategy).__name__
        raise UserError(f"trainer.strategy={name}: takes one device, not {count}; take ddp, or trainer.devices=1.")
    for name, least in (("log_every_n_steps", 0), ("check_val_every_n_epoch", 1), ("num_sanity_val_steps", -1)):
        if settings.get(name) is not None:
            check_counts("", least, **{f"trainer.{name}": settings[name]})
    for name in ("max_epochs", "max_steps"):
        if settings.get(name) == 0:
            raise UserError(f"trainer.{name}=0: trains nothing; give a number above 0, or take validate.")
    if any(isinstance(one, Timer) and one._duration == 0 for one in trainer.callbacks):  # type: ignore[attr-defined]
        raise UserError(f"trainer.max_time={settings['max_time']}: trains nothing; give a time above 0.")
    if settings.get("val_check_interval") == 0:
        raise UserError(
            "trainer.val_check_interval=0: is never; give a number of batches above 0, a part of an epoch such as 0.5, "
            "or trainer.limit_val_batches=0 for no validation."
        )
    for unit in ("epochs", "steps"):
        least, most = settings.get(f"min_{unit}") or 0, settings.get(f"max_{unit}")
        if most is not None and 0 < most < least:
            raise UserError(f"trainer.min_{unit}={least}: is above trainer.max_{unit}={most}; change one of the two.")
    many = PROCESSES_A_CORE * (os.cpu_count() or 1)
    if trainer.strategy.root_device.type == "cpu" and trainer.num_devices > many:
        raise UserError(f"trainer.devices={trainer.num_devices}: this machine has processors for {many} at most.")
    precision = settings.get("precision")
    if str(precision) in ("16", "16-mixed") and trainer.precision != "16-mixed":
        raise UserError(
            f"trainer.precision={precision}: a processor has no such arithmetic; take 'bf16-mixed', or a GPU "
            "(trainer.accelerator)."
        )


def _devices(settings: Mapping[str, Any]) -> int:
    """How many devices the settings name; 1 where that is left to the trainer."""
    given = settings.get("devices")
    if isinstance(given, list | tuple):
        return len(given)
    return int(given) if isinstance(given, int) or (isinstance(given, str) and given.isdecimal()) else 1


def check_monitors(trainer: Trainer, module: SupervisedModule) -> None:
    """Refuses callbacks that wait for a metric which no fit of this module logs.

    Nothing is said where the module or a callback is of somebody else, and may log whatever it likes.

    Args:
        trainer: The trainer.
        module: The module.

    Raises:
        UserError: Names the callback, the metric, and those there are.
    """
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    if any(isinstance(one, BackboneFinetuning) for one in callbacks) and not hasattr(module, "backbone"):
        raise UserError(
            f"trainer.callbacks=BackboneFinetuning: {type(module).__name__} has no `backbone`; take one of "
            "your own, a BaseFinetuning that says what it freezes."
        )
    for one in callbacks:
        if isinstance(one, BestCheckpoint) and one.monitor not in (None, AUTO) and not trainer.limit_val_batches:
            raise UserError(f"best.monitor={one.monitor}: there is no validation; leave it out, or validate.")
    if type(module) not in (LocoPropModule, BackpropModule):
        return
    if not all(type(one).__module__.startswith(_OURS) for one in callbacks):
        return
    logged = [*module.train_metrics, "lr", "time/step_ms"] if trainer.log_every_n_steps else []  # type: ignore[attr-defined]
    judged = ["val/loss", *module.val_metrics] if trainer.limit_val_batches else []
    known = ["train/loss", *logged, *judged]
    for callback in callbacks:
        if isinstance(callback, EarlyStopping | ModelCheckpoint) and callback.monitor not in (None, *known):
            raise UserError(
                f"trainer.callbacks: {type(callback).__name__}(monitor={callback.monitor!r}): is not logged; take one "
                f"of {', '.join(known)}."
            )
