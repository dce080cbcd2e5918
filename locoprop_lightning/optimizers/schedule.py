"""A schedule that knows how long the run is."""

from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from locoprop_lightning.errors import UserError, check_counts, check_fraction

_SETTINGS = ("base_lrs", "end_factor", "total_steps", "warmup")


class LinearDecay(LRScheduler):
    """Rates that fall linearly from their start to a fraction of it, over the whole run.

    Args:
        optimizer: The optimizer.
        end_factor: Fraction of the rate that is left at the end, in [0, 1].
        total_steps: Steps of the run, at least 1; if not given, the modules of this package take them from the trainer.
        warmup: Fraction of the run in which rates rise linearly from zero before they fall, in [0, 1); the very first
            step then does nothing.

    Raises:
        UserError: If an argument is out of range.
    """

    def __init__(
        self, optimizer: Optimizer, end_factor: float = 0.02, total_steps: int | None = None, warmup: float = 0.0
    ) -> None:
        check_fraction("LinearDecay", warmup=warmup)
        if not 0 <= end_factor <= 1:
            raise UserError(f"LinearDecay(end_factor={end_factor}): must be in [0, 1].")
        if total_steps is not None:
            check_counts("LinearDecay", 1, total_steps=total_steps)
        self.end_factor = end_factor
        self.warmup = warmup
        self.total_steps = total_steps
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        """Rates of the next step, by group."""
        if self.last_epoch == 0:  # the length of the run may not be known yet
            return list(self.base_lrs) if self.warmup == 0 else [0.0 * rate for rate in self.base_lrs]
        if self.total_steps is None:
            raise RuntimeError("LinearDecay: set total_steps, which a module of this package takes from its trainer.")
        done = min(self.last_epoch / self.total_steps, 1.0)
        if done < self.warmup:
            factor = done / self.warmup
        else:
            factor = 1 + (self.end_factor - 1) * (done - self.warmup) / (1 - self.warmup)
        return [rate * factor for rate in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """Where the schedule stands; neither its settings nor the rates, so that an edited configuration holds."""
        return {k: v for k, v in super().state_dict().items() if k not in _SETTINGS}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on where the schedule stood, at the rates that these settings have there."""
        super().load_state_dict(state_dict)
        self._last_lr = self.get_lr()
        for group, start, rate in zip(self.optimizer.param_groups, self.base_lrs, self._last_lr, strict=True):
            group["initial_lr"], group["lr"] = start, rate


def follow(outer: Optimizer, rest: Optimizer) -> None:
    """Gives one optimizer the part of its first rates that another one has of its own, after a schedule has set that.

    Args:
        outer: The optimizer with the schedule.
        rest: The one that follows.
    """
    group = outer.param_groups[0]
    part = group["lr"] / group["initial_lr"] if group["initial_lr"] else 1.0
    for other in rest.param_groups:
        start = other.setdefault("initial_lr", other["lr"])
        other["lr"] = start * part
