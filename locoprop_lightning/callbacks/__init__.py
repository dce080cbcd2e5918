"""What is watched and printed during a fit."""

from locoprop_lightning.callbacks.fit_progress import FitProgress
from locoprop_lightning.callbacks.fit_summary import FitSummary
from locoprop_lightning.callbacks.hyperparameters import HyperparameterLogger
from locoprop_lightning.callbacks.local_loss_monitor import LocalLossMonitor
from locoprop_lightning.callbacks.prediction_writer import PredictionWriter
from locoprop_lightning.callbacks.run_checkpoints import RunCheckpoints
from locoprop_lightning.callbacks.stopwatch import StepTimer

__all__ = [
    "FitProgress",
    "FitSummary",
    "HyperparameterLogger",
    "LocalLossMonitor",
    "PredictionWriter",
    "RunCheckpoints",
    "StepTimer",
]
