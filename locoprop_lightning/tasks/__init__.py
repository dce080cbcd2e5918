"""What a network is trained for: how a batch is read, loss, link function of the output, metrics."""

from locoprop_lightning.tasks.hugging_face import HuggingFaceTask
from locoprop_lightning.tasks.labels import Classification, LabelTask, LanguageModelling
from locoprop_lightning.tasks.reconstruction import Reconstruction
from locoprop_lightning.tasks.task import MeanLoss, Task, detached

__all__ = [
    "Classification",
    "HuggingFaceTask",
    "LabelTask",
    "LanguageModelling",
    "MeanLoss",
    "Reconstruction",
    "Task",
    "detached",
]
