"""Copies of a module, as callbacks that average weights make them."""

from copy import deepcopy
from functools import partial
from typing import Any, Self

from lightning.pytorch import LightningModule


class Copied(LightningModule):
    """A Lightning module whose copies share what makes optimizers and schedules.

    What a command has made of its settings to make them holds the command's parser, which cannot be copied.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A copy without the trainer."""
        for part in (self, getattr(self, "solver", None)):
            held = {} if part is None else vars(part)
            memo |= {id(value): value for value in held.values() if isinstance(value, partial)}
        made = memo[id(self)] = self.__class__.__new__(self.__class__)
        made.__setstate__(deepcopy(self.__getstate__(), memo))
        return made
