"""What is watched and printed during a fit."""

from locoprop_lightning.callbacks.best_checkpoint import BestCheckpoint
from locoprop_lightning.callbacks.fit_progress import FitProgress
from locoprop_lightning.callbacks.fit_summary import FitSummary
from locoprop_lightning.callbacks.hyperparameters import HyperparameterLogger
from locoprop_lightning.callbacks.local_loss_history import LocalLossHistory
from locoprop_lightning.callbacks.local_loss_monitor import LocalLossMonitor
from locoprop_lightning.callbacks.local_schedule import LocalSchedule
from locoprop_lightning.callbacks.prediction_writer import PredictionWriter
from locoprop_lightning.callbacks.run_checkpoints import RunCheckpoints
from locoprop_lightning.callbacks.settings_file import SettingsFile
from locoprop_lightning.callbacks.stopwatch import StepTimer

__all__ = [
    "BestCheckpoint",
    "FitProgress",
    "FitSummary",
    "HyperparameterLogger",
    "LocalLossHistory",
    "LocalLossMonitor",
    "LocalSchedule",
    "PredictionWriter",
    "RunCheckpoints",
    "SettingsFile",
    "StepTimer",
]
