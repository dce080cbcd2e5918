"""Cross-entropy of labels, of samples, tokens or pixels, some of which may not count."""

from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.text import Perplexity

from locoprop_lightning.errors import UserError, check_counts
from locoprop_lightning.tasks.task import Task


class LabelTask(Task):
    """Cross-entropy of labels, averaged over those that count.

    Args:
        ignore_index: Label that does not count, such as that of padding or of pixels without a label.
        dim: Dimension of the classes in the logits.
    """

    link = "softmax"

    def __init__(self, ignore_index: int, dim: int) -> None:
        self.ignore_index = ignore_index
        self.dim = dim

    def terms(self, target: Any) -> int:
        """Number of labels that count."""
        return int((target != self.ignore_index).sum())

    def complete(self, target: Any) -> bool:
        """Whether all labels count."""
        return self.terms(target) == target.numel()

    def hide(self, labels: Tensor, target: Tensor) -> Tensor:
        """Drawn labels where those of the target count."""
        return torch.where(target == self.ignore_index, self.ignore_index, labels)

    def loss(self, output: Any, target: Any) -> Tensor:
        """Mean cross-entropy of logits and labels, nats a label that counts; 0 where none does."""
        flat = self.tensor_of_logits(output).movedim(self.dim, -1).flatten(0, -2)
        total = nn.functional.cross_entropy(flat, target.flatten(), ignore_index=self.ignore_index, reduction="sum")
        return total / (target != self.ignore_index).sum().clamp_min(1)

    def tensor_of_logits(self, output: Any) -> Tensor:
        """The logits of an output.

        Raises:
            UserError: Names what they are, where they are no tensor.
        """
        logits = self.logits(output)
        if not isinstance(logits, Tensor):
            name, kind = type(self).__name__, type(logits).__name__
            raise UserError(f"{name}: the network's output is a {kind}, not a tensor of logits; override logits().")
        return logits

    def sample_labels(self, output: Tensor, generator: torch.Generator) -> Tensor:
        """Labels drawn from softmax of logits."""
        logits = output.movedim(self.dim, -1)
        probabilities = logits.float().softmax(-1).nan_to_num(1.0)  # a diverged network must not end the run here
        return torch.multinomial(probabilities.flatten(0, -2), 1, generator=generator).reshape(logits.shape[:-1])

    def predict(self, output: Any) -> Any:
        """The most likely labels."""
        return self.tensor_of_logits(output).argmax(self.dim)


class Classification(LabelTask):
    """Cross-entropy, averaged over the labels that count; accuracy.

    Args:
        num_classes: Number of classes, at least 2.
        ignore_index: Label that does not count.
    """

    def __init__(self, num_classes: int = 10, ignore_index: int = -100) -> None:
        check_counts("Classification", 2, num_classes=num_classes)
        super().__init__(ignore_index, 1)
        self.num_classes = num_classes

    def loss(self, output: Any, target: Tensor) -> Tensor:
        """Mean cross-entropy of logits [n, num_classes, ...] and labels [n, ...], nats."""
        outputs = self.tensor_of_logits(output).shape[1]
        if outputs != self.num_classes:
            way_out = f"the network has {outputs} outputs; make them agree"
            raise UserError(f"Classification(num_classes={self.num_classes}): {way_out}.")
        return super().loss(output, target)

    def metrics(self) -> MetricCollection:  # noqa: D102
        accuracy = MulticlassAccuracy(self.num_classes, average="micro", ignore_index=self.ignore_index)
        return MetricCollection({"accuracy": accuracy})


class LanguageModelling(LabelTask):
    """Cross-entropy of each next token [n, length], averaged over the tokens that count; perplexity.

    Args:
        ignore_index: Token that does not count, such as that of padding.
    """

    def __init__(self, ignore_index: int = -100) -> None:
        super().__init__(ignore_index, -1)

    def metrics(self) -> MetricCollection:  # noqa: D102
        return MetricCollection({"perplexity": Perplexity(ignore_index=self.ignore_index)})

    def score(self, output: Any) -> Tensor:
        """The logits [n, length, vocabulary]."""
        return self.tensor_of_logits(output)
