"""A schedule that knows how long the run is."""

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, Timer
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from locoprop_lightning.errors import UserError, check_counts, check_flags, check_fraction, check_object, shown

_SETTINGS = ("base_lrs", "end_factor", "asks_length", "total_steps", "warmup", "by_epoch", "steps_per_epoch")


class LinearDecay(LRScheduler):
    """Rates that fall linearly from their start to a fraction of it, over the whole run.

    Args:
        optimizer: The optimizer.
        end_factor: Fraction of the rate that is left at the end, in [0, 1].
        total_steps: Steps of the run, at least 1; if not given, the modules of this package take them from the trainer.
        warmup: Fraction of the run in which rates rise linearly from zero before they fall, in [0, 1); the very first
            step then does nothing.
        by_epoch: Whether the rate of an epoch is that of its first step, as Amid et al. (2022) have it.

    Attributes:
        steps_per_epoch: Steps with one rate where ``by_epoch``, which the modules take from the trainer.

    Raises:
        UserError: If an argument is out of range.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        end_factor: float = 0.02,
        total_steps: int | None = None,
        warmup: float = 0.0,
        by_epoch: bool = False,
    ) -> None:
        check_object(
            "LinearDecay", Optimizer, "an optimizer, such as SGD(network.parameters(), lr=0.1)", optimizer=optimizer
        )
        check_fraction("LinearDecay", warmup=warmup)
        check_flags("LinearDecay", by_epoch=by_epoch)
        given: Any = end_factor
        if not isinstance(given, Real) or not 0 <= float(given) <= 1:
            raise UserError(f"LinearDecay(end_factor={shown(end_factor)}): must be in [0, 1].")
        if total_steps is not None:
            check_counts("LinearDecay", 1, total_steps=total_steps)
        self.end_factor = end_factor
        self.warmup = warmup
        self.total_steps = total_steps
        self.asks_length = total_steps is None
        self.by_epoch = by_epoch
        self.steps_per_epoch = 1
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        """Rates of the next step, by group."""
        starts = [group.setdefault("initial_lr", group["lr"]) for group in self.optimizer.param_groups]
        if self.last_epoch == 0:  # the length of the run may not be known yet
            return starts if self.warmup == 0 else [0.0 * rate for rate in starts]
        if self.total_steps is None:
            raise RuntimeError("LinearDecay: set total_steps, which a module of this package takes from its trainer.")
        step = self.last_epoch - self.last_epoch % self.steps_per_epoch if self.by_epoch else self.last_epoch
        done = min(step / self.total_steps, 1.0)
        if done < self.warmup:
            factor = done / self.warmup
        else:
            factor = 1 + (self.end_factor - 1) * (done - self.warmup) / (1 - self.warmup)
        return [rate * factor for rate in starts]  # also those of groups that came later

    def state_dict(self) -> dict[str, Any]:
        """Where the schedule stands; neither its settings nor the rates, so that an edited configuration holds."""
        return {k: v for k, v in super().state_dict().items() if k not in _SETTINGS}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on where the schedule stood, at the rates that these settings have there."""
        super().load_state_dict(state_dict)
        for group, start in zip(self.optimizer.param_groups, self.base_lrs, strict=False):
            group["initial_lr"] = start
        self._last_lr = self.get_lr()
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = rate


def tell_length(schedule: LinearDecay, trainer: Trainer, accumulate: int = 1) -> None:
    """Tells a schedule the length of the run, and of an epoch, where it asks.

    Args:
        schedule: The schedule.
        trainer: The trainer of the run.
        accumulate: Batches of a step.

    Raises:
        UserError: Where the run, or an epoch, has no length.
    """
    if schedule.asks_length:
        total = _steps_of(trainer, accumulate)
        if total == float("inf"):
            raise UserError("lr_scheduler=LinearDecay needs an end: set trainer.max_epochs, or its total_steps.")
        schedule.total_steps = int(total)
    if schedule.by_epoch:
        trainer.fit_loop.setup_data()
        if trainer.num_training_batches == float("inf"):
            raise UserError("lr_scheduler=LinearDecay(by_epoch=True) needs data of a known length.")
        schedule.steps_per_epoch = math.ceil(trainer.num_training_batches / accumulate)


def check_length(schedule: Any, trainer: Trainer, accumulate: int = 1) -> None:
    """Refuses a schedule that would stop a run before its end, where nothing else may end that earlier.

    Args:
        schedule: The schedule.
        trainer: The trainer of the run.
        accumulate: Batches of a step.

    Raises:
        UserError: Names both lengths.
    """
    if not isinstance(schedule, OneCycleLR) or any(_may_stop(one) for one in trainer.callbacks):  # type: ignore[attr-defined]
        return
    steps = _steps_of(trainer, accumulate)
    if schedule.total_steps < steps < float("inf"):
        raise UserError(
            f"lr_scheduler.total_steps={schedule.total_steps}: the fit has {int(steps)} steps; give at least that, or "
            "a shorter fit."
        )


def _may_stop(callback: Callback) -> bool:
    """Whether a callback may end a fit early: one that waits for a time or a metric, or is somebody else's."""
    ours = type(callback).__module__.partition(".")[0] in ("lightning", __name__.partition(".")[0])
    return not ours or isinstance(callback, EarlyStopping | Timer)


def _steps_of(trainer: Trainer, accumulate: int) -> float:
    """Steps of a run, infinite where it has no length."""
    total = float(trainer.estimated_stepping_batches)
    if math.isfinite(total) and accumulate > 1 and trainer.max_epochs not in (-1, None):
        steps = math.ceil(trainer.num_training_batches / accumulate) * trainer.max_epochs
        total = steps if trainer.max_steps == -1 else min(steps, trainer.max_steps)
    return total


def rates(optimizers: Sequence[Optimizer], scheduled: str) -> tuple[float, float]:
    """The outer rate, and what multiplies the rates of inner steps.

    Args:
        optimizers: The outer optimizer, which has the schedule where ``scheduled`` is "outer", and the rest optimizer,
            which has it where that is "inner".
        scheduled: What the schedule multiplies.
    """
    outer, rest = optimizers
    return outer.param_groups[0]["lr"], _part_left(rest) if scheduled == "inner" else 1.0


def follow(optimizers: Sequence[Optimizer], scheduled: str) -> None:
    """Gives the rest the part of its first rates that the outer optimizer has, after a schedule of the outer rate.

    Args:
        optimizers: The outer optimizer and the rest optimizer.
        scheduled: What the schedule multiplies; where that is the inner rate, the rest has it itself.
    """
    outer, rest = optimizers
    for group in [*outer.param_groups, *rest.param_groups]:
        group.setdefault("initial_lr", group["lr"])  # where no schedule has, as in a resumed run that had none before
    for group in rest.param_groups if scheduled == "outer" else []:
        group["lr"] = group["initial_lr"] * _part_left(outer)


def _part_left(optimizer: Optimizer) -> float:
    """The part that is left of an optimizer's first rate; 1 where that was 0, or where there is no schedule."""
    group = optimizer.param_groups[0]
    start = group.get("initial_lr", group["lr"])
    return float(group["lr"] / start) if start else 1.0
