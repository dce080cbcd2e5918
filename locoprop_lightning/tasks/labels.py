"""Cross-entropy of labels, of samples, tokens or pixels, some of which may not count."""

from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.text import Perplexity

from locoprop_lightning.errors import UserError, check_counts, check_object
from locoprop_lightning.tasks.task import Task


class LabelTask(Task):
    """Cross-entropy of labels, averaged over those that count.

    Args:
        ignore_index: Label that does not count, such as that of padding or of pixels without a label.
        dim: Dimension of the classes in the logits.
    """

    link = "softmax"
    _looked = False  # whether a first batch has had its labels looked at, where looking waits for the device

    def __init__(self, ignore_index: int, dim: int) -> None:
        check_object(type(self).__name__, int, "a whole number, such as -100", ignore_index=ignore_index)
        check_object(type(self).__name__, int, "a whole number, such as 1", dim=dim)
        self.ignore_index = ignore_index
        self.dim = dim

    def terms(self, target: Any) -> int:
        """Number of labels that count.

        Raises:
            UserError: Where there are no labels.
        """
        self._check_labels(target)
        return int((target != self.ignore_index).sum())

    def complete(self, target: Any) -> bool:
        """Whether all labels count."""
        return self.terms(target) == target.numel()

    def hide(self, labels: Tensor, target: Tensor) -> Tensor:
        """Drawn labels where those of the target count."""
        return torch.where(target == self.ignore_index, self.ignore_index, labels)

    def loss(self, output: Any, target: Any) -> Tensor:
        """Mean cross-entropy of logits and labels, nats a label that counts; 0 where none does.

        Raises:
            UserError: For what are no labels, or not those of as many classes and samples.
        """
        self._check_labels(target)
        logits = self.tensor_of_logits(output)
        logits_last = logits.movedim(self.dim, -1)
        flat, labels = logits_last.flatten(0, -2), target.flatten().long()
        name, classes, fitting = type(self).__name__, flat.shape[1], logits_last.shape[:-1]
        if target.shape != fitting:
            raise UserError(
                f"{name}: labels {list(target.shape)} do not fit outputs {list(logits.shape)}; give one label, a whole "
                f"number, for every {classes} outputs: labels {list(fitting)}."
            )
        if not self._looked and labels.is_cuda:  # which says it late, and of no name
            self._check_range(labels, classes)
            self._looked = True
        try:
            total = nn.functional.cross_entropy(flat, labels, ignore_index=self.ignore_index, reduction="sum")
        except IndexError:
            self._check_range(labels, classes)
            raise
        return total / (target != self.ignore_index).sum().clamp_min(1)

    def _check_range(self, labels: Tensor, classes: int) -> None:
        """Refuses a label that stands for no output."""
        outside = labels[(labels != self.ignore_index) & ((labels < 0) | (labels >= classes))]
        if len(outside):
            raise UserError(
                f"{type(self).__name__}: label {int(outside[0])} is neither from 0 to {classes - 1}, as {classes} "
                f"outputs have it, nor ignore_index={self.ignore_index}; make labels and outputs agree."
            )

    def _check_labels(self, target: Any) -> None:
        """Refuses what are no labels: whole numbers in a tensor."""
        tensor = isinstance(target, Tensor)
        if not tensor or target.is_floating_point() or target.is_complex():
            kind = str(target.dtype).removeprefix("torch.") if tensor else type(target).__name__
            raise UserError(
                f"{type(self).__name__}: the batch's labels are {kind}, not whole numbers in a tensor; give pairs "
                "(inputs, labels), or a task whose target(batch) says where they are."
            )

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
        logits = self.tensor_of_logits(output)
        if logits.dim() < 2:
            raise UserError(f"Classification: the network's output {list(logits.shape)} must be [n, num_classes, ...].")
        outputs = logits.shape[1]
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

    def loss(self, output: Any, target: Tensor) -> Tensor:
        """Mean cross-entropy of logits [n, length, vocabulary] and next tokens [n, length], nats."""
        logits = self.tensor_of_logits(output)
        if logits.dim() != 3:
            raise UserError(
                f"LanguageModelling: the network's output {list(logits.shape)} must be [n, length, vocabulary]; take "
                "Classification for a label a sample."
            )
        return super().loss(output, target)

    def score(self, output: Any) -> Tensor:
        """The logits [n, length, vocabulary]."""
        return self.tensor_of_logits(output)
