"""What is told to who imports pytorch_lightning, whose classes are others than those of lightning.pytorch."""

import logging
import sys
from typing import Any

from lightning.pytorch import Trainer

from locoprop_lightning.errors import UserError

_OTHER = "pytorch_lightning"
_log = logging.getLogger(__name__)


def tell(name: str) -> None:
    """Says that a trainer of pytorch_lightning will refuse a module, where that package is imported.

    Its refusal, before anything of the module is called, names neither package.

    Args:
        name: Class of the module.
    """
    if _OTHER in sys.modules:
        _log.warning(
            "%s is imported, whose Trainer does not take %s: it is a module of lightning.pytorch; write `from "
            "lightning.pytorch import Trainer`, and take callbacks and loggers from there too.",
            _OTHER,
            name,
        )


def check(trainer: Trainer) -> None:
    """Refuses callbacks and loggers of pytorch_lightning, which this trainer does not know for what they are.

    Args:
        trainer: A trainer of lightning.pytorch.

    Raises:
        UserError: Names the class and where to import it from.
    """
    parts: list[Any] = [*trainer.callbacks, *trainer.loggers]  # type: ignore[attr-defined]
    for part in parts:
        base = next((base for base in type(part).__mro__ if base.__module__.split(".")[0] == _OTHER), None)
        if base is not None:
            own = f" derives from {_OTHER}'s {base.__name__}" if base is not type(part) else f" is of {_OTHER}"
            raise UserError(
                f"trainer: {type(part).__name__}{own}, and the trainer is of lightning.pytorch; import "
                f"{base.__name__} from lightning.pytorch."
            )
