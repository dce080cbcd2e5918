"""A schedule that knows how long the run is."""

from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class LinearDecay(LRScheduler):
    """Rates that fall linearly from their start to a fraction of it, over the whole run.

    Args:
        optimizer: The optimizer.
        end_factor: Fraction of the rate that is left at the end.
        total_steps: Steps of the run; if not given, the modules of this package take them from the trainer.
    """

    def __init__(self, optimizer: Optimizer, end_factor: float = 0.02, total_steps: int | None = None) -> None:
        self.end_factor = end_factor
        self.total_steps = total_steps
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        """Rates of the next step, by group."""
        if self.last_epoch == 0:
            return list(self.base_lrs)
        if self.total_steps is None:
            raise RuntimeError("LinearDecay: set total_steps, which a module of this package takes from its trainer.")
        factor = 1 + (self.end_factor - 1) * min(self.last_epoch / self.total_steps, 1.0)
        return [rate * factor for rate in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """Where the schedule stands; no hyper-parameters, so that an edited configuration holds on resume."""
        return {k: v for k, v in super().state_dict().items() if k not in ("end_factor", "total_steps")}
