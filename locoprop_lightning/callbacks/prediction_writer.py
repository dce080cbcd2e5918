"""Predictions as a file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor


class PredictionWriter(BasePredictionWriter):
    """Writes the predictions of ``locoprop predict`` as one tensor, in the order of the data.

    Args:
        path: File to write; ``predictions.pt`` in the folder of the logs if not given.
    """

    def __init__(self, path: str | None = None) -> None:
        interval: Literal["epoch"] = "epoch"
        super().__init__(interval)
        self.path = path

    def write_on_epoch_end(
        self, trainer: Trainer, pl_module: LightningModule, predictions: Sequence[Any], batch_indices: Sequence[Any]
    ) -> None:
        """Joins the batches and writes them."""
        parts: list[Tensor] = [p.cpu() for p in predictions]
        path = Path(self.path) if self.path else Path(trainer.log_dir or trainer.default_root_dir) / "predictions.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(torch.cat(parts), path)
        print(f"{sum(map(len, parts))} predictions written to {path}; read them with torch.load.")
