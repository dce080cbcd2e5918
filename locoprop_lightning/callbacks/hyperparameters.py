"""Hyper-parameters in the logs."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard.summary import hparams

from locoprop_lightning.supervised import SupervisedModule


class HyperparameterLogger(Callback):
    """Logs the settings of a run; TensorBoard's HParams tab shows them beside the run's last metrics.

    They are there from the first step on, so that a run that was stopped has them too.

    Args:
        settings: Settings by name; those that are no text, number or truth value are left out.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = {name: value for name, value in settings.items() if isinstance(value, str | bool | int | float)}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the settings and the names of the metrics on the first process."""
        if not trainer.is_global_zero:
            return
        metrics = ["train/loss", "val/loss"]
        if isinstance(pl_module, SupervisedModule):
            metrics += [str(name) for name in pl_module.val_metrics]
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                # Lightning's own way writes a scalar under each metric's name, a point that no step has made.
                for summary in hparams(self.settings, dict.fromkeys(metrics, 0.0)):
                    logger.experiment.file_writer.add_summary(summary)
            else:
                logger.log_hyperparams(self.settings)
