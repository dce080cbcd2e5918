"""Hyper-parameters in the logs."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
from torch.utils.tensorboard.summary import hparams

from locoprop_lightning.errors import check_object
from locoprop_lightning.results.settings import NEUTRAL
from locoprop_lightning.supervised import SupervisedModule

# What TensorBoard shows first, of every run: it ticks five settings, those that differ before others, then by name; and
# it takes the list from any one of the runs, which may be of another method.
_FIRST = {
    "model.lambda_a": api_pb2.DATA_TYPE_FLOAT64,
    "model.lambda_r": api_pb2.DATA_TYPE_FLOAT64,
    "model.optimizer.lr": api_pb2.DATA_TYPE_FLOAT64,
    "model.oracle": api_pb2.DATA_TYPE_STRING,
    "model.solver": api_pb2.DATA_TYPE_STRING,
}


class HyperparameterLogger(Callback):
    """Logs the settings of a run; TensorBoard's HParams tab shows them beside the run's last metrics.

    They are there from the first step on, so that a run that was stopped has them too.

    Args:
        settings: Settings by name; those that are no text, number or truth value are left out.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        check_object("HyperparameterLogger", Mapping, "settings by name, such as {'lr': 0.1}", settings=settings)
        self.settings = {name: value for name, value in settings.items() if isinstance(value, str | bool | int | float)}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the settings and the names of the metrics on the first process."""
        if not trainer.is_global_zero:
            return
        metrics = [str(name) for name in pl_module.val_metrics] if isinstance(pl_module, SupervisedModule) else []
        metrics += ["val/loss", "train/loss"]  # TensorBoard ticks the first ones
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                # Lightning's own way writes a scalar under each metric's name, a point that no step has made.
                experiment, *session = hparams(self.settings, dict.fromkeys(metrics, 0.0))
                for summary in (_with_first(experiment), *session):
                    logger.experiment.file_writer.add_summary(summary)
            else:
                logger.log_hyperparams(self.settings)


def _with_first(summary: Any) -> Any:
    """The list of settings for the HParams tab, with those marked, and named, that it shall show first."""
    content = metadata.parse_experiment_plugin_data(summary.value[0].metadata.plugin_data.content)
    own = {info.name: info for info in content.hparam_infos}
    for name, kind in _FIRST.items():
        info = own[name] if name in own else content.hparam_infos.add(name=name, type=kind)
        info.differs = True
    data = plugin_data_pb2.HParamsPluginData(experiment=content, version=metadata.PLUGIN_DATA_VERSION)
    summary.value[0].metadata.plugin_data.content = data.SerializeToString()
    return summary


def settings_logger(settings: Mapping[str, Any]) -> HyperparameterLogger:
    """The callback that logs the settings that make a run's method.

    Args:
        settings: What ``LocoPropCLI.settings`` returns.
    """
    kept = {
        name: value.rpartition(".")[2] if _is_path(value) else value
        for name, value in settings.items()
        if name == "seed_everything" or not NEUTRAL.match(name)
    }
    return HyperparameterLogger(kept)


def _is_path(value: Any) -> bool:
    """Whether a setting is the path of a class."""
    parts = value.split(".") if isinstance(value, str) else []
    return len(parts) > 1 and all(part.isidentifier() for part in parts) and parts[-1][0].isupper()
