"""Predictions as a file."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from locoprop_lightning.errors import UserError, check_path
from locoprop_lightning.files import passing_name, settle, why_unwritten


class PredictionWriter(Callback):
    """Writes the predictions of ``locoprop predict`` as one tensor, in the order of the data.

    Where batches differ in more than the number of their samples, as padded sequences do, it is a list of tensors.

    Args:
        path: File to write; ``predictions.pt`` in the folder of the logs if not given.
    """

    def __init__(self, path: str | None = None) -> None:
        if path is not None:
            check_path("predictions", path=path)
        self.path = path
        self._parts: list[Tensor] = []

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes the folder, and refuses several processes, whose parts would have to be put in order.

        Raises:
            UserError: Names the number of processes, or a path that is a folder.
        """
        if trainer.world_size > 1:
            raise UserError(f"trainer.devices: predict writes from one process, not {trainer.world_size}; set it to 1.")
        self._parts.clear()
        path = self._file(trainer)
        if path.is_dir():
            raise UserError(f"predictions.path={path}: is a folder; name a file in it.")
        path.parent.mkdir(parents=True, exist_ok=True)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Tensor,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps the predictions of a batch."""
        self._parts.append(outputs.cpu())

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Joins the batches and writes them."""
        alike = len({part.shape[1:] for part in self._parts}) == 1
        predictions, number = torch.cat(self._parts) if alike else list(self._parts), sum(map(len, self._parts))
        self._parts.clear()
        path = self._file(trainer)
        passing = passing_name(path)
        try:
            torch.save(predictions, passing)
            settle(passing, path)
        except (OSError, RuntimeError) as error:
            passing.unlink(missing_ok=True)
            reason = why_unwritten(error)
            raise UserError(f"predictions.path={path}: cannot be written ({reason}); name another file.") from error
        print(f"{number} predictions written to {path}; read them with torch.load.")

    def _file(self, trainer: Trainer) -> Path:
        return Path(self.path or Path(trainer.log_dir or trainer.default_root_dir) / "predictions.pt")
