"""Settings that were typed though nothing would come of them, beside what else the command was given."""

import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from locoprop_lightning.errors import UserError
from locoprop_lightning.supervised import BackpropModule

_OFF = ("0", "false", "no", "null", "none")  # what asks for nothing


def check_checkpoints(arguments: Sequence[str], trainer: Mapping[str, Any]) -> None:
    """Refuses to be told when to write checkpoints where none are written.

    Args:
        arguments: Arguments of the command. A file may say so for other fits.
        trainer: The trainer's settings by name.

    Raises:
        UserError: Names both settings.
    """
    if trainer.get("enable_checkpointing") is False:
        for name, value in _typed(arguments, ("checkpoints", "best")).items():
            raise UserError(
                f"{name}={value}: trainer.enable_checkpointing=False writes none; leave out one of the two."
            )


def tell_idle(arguments: Sequence[str], trainer: Trainer, model: LightningModule) -> None:
    """Says what of the local losses was asked for in vain; the fit goes on, as one command may be for several methods.

    Args:
        arguments: Arguments of the command.
        trainer: The trainer.
        model: The module.
    """
    why = "trainer.logger=False has nowhere to put them; leave one of the two out" if not trainer.loggers else ""
    if isinstance(model, BackpropModule):
        why = f"{type(model).__name__} has no local losses; leave it out"
    for name, value in _typed(arguments, ("local_losses",)).items() if why and trainer.is_global_zero else ():
        print(f"locoprop fit: --{name}={value}: {why}.", file=sys.stderr)


def _typed(arguments: Sequence[str], groups: Collection[str]) -> dict[str, str]:
    """The settings of groups that arguments ask something for, by name."""
    found = {}
    for one, after in zip(arguments, [*arguments[1:], ""], strict=True):
        option, equals, value = one.partition("=")
        name = option.removeprefix("--")
        if option.startswith("--") and name.partition(".")[0] in groups and "." in name:
            found[name] = value if equals else after
    return {name: value for name, value in found.items() if value.lower() not in _OFF}
