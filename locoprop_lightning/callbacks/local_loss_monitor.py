"""Local losses in the logs."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from locoprop_lightning.errors import check_counts
from locoprop_lightning.module import LocoPropModule


class LocalLossMonitor(Callback):
    """Logs what the solver did to each layer, as ``local_loss/<layer>/...``.

    ``first`` and ``last`` are the local loss a sample before and after the solve, ``reduction`` is the part of it that
    is gone. ``displacement`` is the norm of the applied displacement relative to the weights'; ``out_of_range`` is the
    fraction of targets outside the range of f. ``status/<name>`` counts solves that failed, and those that failed at
    first (``retried``).

    All this is computed on the logged steps alone, where they cost about as much as the solve itself.

    Args:
        every_n_steps: Steps between two logged ones; the trainer's ``log_every_n_steps`` if not given, 0 for never.
    """

    def __init__(self, every_n_steps: int | None = None) -> None:
        if every_n_steps is not None:
            check_counts("LocalLossMonitor", 0, every_n_steps=every_n_steps)
        self.every_n_steps = every_n_steps

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Asks the module to record on a step that is due."""
        every = trainer.log_every_n_steps if self.every_n_steps is None else self.every_n_steps  # type: ignore[attr-defined]
        if isinstance(pl_module, LocoPropModule):
            pl_module.record_losses = bool(trainer.loggers) and every > 0 and trainer.global_step % every == 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Writes what was recorded."""
        if not isinstance(pl_module, LocoPropModule) or not pl_module.record_losses:
            return
        values: dict[str, float] = {}
        solver = pl_module.solver
        rows = [[r.losses[0], r.losses[-1], r.displacement, r.out_of_range] for r in solver.reports.values()]
        table = torch.stack([torch.stack(row) for row in rows]).tolist() if rows else []  # one wait for all layers
        for name, (first, last, displacement, out_of_range) in zip(solver.reports, table, strict=True):
            values[f"local_loss/{name}/first"] = first
            values[f"local_loss/{name}/last"] = last
            values[f"local_loss/{name}/reduction"] = 1 - last / first if first else 0.0
            values[f"local_loss/{name}/displacement"] = displacement
            values[f"local_loss/{name}/out_of_range"] = out_of_range
        for name, counts in solver.counts.items():
            values |= {f"local_loss/{name}/status/{status}": count for status, count in counts.items()}
        step = trainer.global_step - 1
        for logger in trainer.loggers:
            logger.log_metrics(values, step=step)
