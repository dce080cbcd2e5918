"""Models of Hugging Face's transformers, and others that are called and answer as those do."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.text import Perplexity

from locoprop_lightning.errors import UserError, check_choice
from locoprop_lightning.tasks.labels import LabelTask
from locoprop_lightning.tasks.task import Task

_MASKS = ("attention_mask", "pixel_mask")  # what names of them end with
_ROUNDING = 1e-4  # of a loss that is made in float32


class HuggingFaceTask(LabelTask):
    """What a model of transformers is trained for; batches are mappings, outputs are objects, mappings or tuples.

    A mapping, such as ``{"input_ids", "attention_mask", "labels"}``, becomes the network's keyword arguments, and the
    loss is the one that the model returns with its output, whatever that is made of. Of a pair (inputs, labels) the
    network is given the inputs alone, and the loss is the cross-entropy of its logits.

    Args:
        labels: What the labels are. "classes": of samples, tokens or pixels, each beside its logits. "next_token":
            those of a causal language model, mostly ``input_ids`` themselves, where logits of a position predict the
            next one; neither a label nor a prediction counts where ``attention_mask`` is 0. "other": whatever the model
            knows how to make a loss of, such as numbers or spans; there are no metrics then and no labels to draw.
        ignore_index: Label that does not count.
        dim: Dimension of the classes in the logits.
    """

    def __init__(
        self,
        labels: Literal["classes", "next_token", "other"] = "classes",
        ignore_index: int = -100,
        dim: int = -1,
    ) -> None:
        check_choice("HuggingFaceTask", ("classes", "next_token", "other"), labels=labels)
        super().__init__(ignore_index, dim)
        self.labels = labels
        self._checked = False

    def inputs(self, batch: Any) -> Any:
        """The keyword arguments, with labels that count where the task's do; of a pair the first part."""
        inputs = super().inputs(batch)
        if not isinstance(inputs, Mapping):
            return inputs
        arguments = dict(inputs)
        if self.labels != "other" and arguments.get("labels") is not None:
            labels = self._labels(arguments["labels"], arguments)
            # A mean over no labels is NaN, and so are its gradients; ``loss`` multiplies this one by 0.
            arguments["labels"] = torch.where((labels == self.ignore_index).all(), 0, labels)
        return arguments

    def target(self, batch: Any) -> Any:
        """Labels, each beside the logits that predict it; all of the inputs where the model alone knows them.

        Raises:
            UserError: Where there are no labels.
        """
        inputs = super().inputs(batch)
        if self.labels == "other":
            return inputs
        known = inputs if isinstance(inputs, Mapping) else {}
        labels = known.get("labels") if inputs is batch else super().target(batch)
        if not isinstance(labels, Tensor) or labels.is_floating_point():
            raise UserError(
                f"HuggingFaceTask(labels={self.labels!r}): the batch has no whole numbers as 'labels'; take "
                "labels='other' for a model that makes a loss of something else."
            )
        labels = self._labels(labels, known)
        return nn.functional.pad(labels[..., 1:], (0, 1), value=self.ignore_index) if self._shifts else labels

    def terms(self, target: Any) -> int:
        """Number of labels that count; of samples where the model alone knows the labels."""
        return Task.terms(self, target) if self.labels == "other" else super().terms(target)

    def complete(self, target: Any) -> bool:
        """Whether all labels count; those of a causal model never do, whose last position predicts nothing."""
        return self.labels == "other" or (not self._shifts and super().complete(target))

    def padded(self, inputs: Any) -> bool:
        """Whether there is a mask among the inputs; one that leaves nothing out means the same as one that does."""
        named = inputs if isinstance(inputs, Mapping) else {}
        return any(name.endswith(_MASKS) and value is not None for name, value in named.items())

    def loss(self, output: Any, target: Any) -> Tensor:
        """The model's own loss; of a model that returns none, the mean cross-entropy of logits and labels.

        Raises:
            UserError: Where there is none and only the model could make it, and where its labels are not what
                ``labels`` says.
        """
        own = _field(output, "loss")
        if own is None and isinstance(output, tuple) and isinstance(output[0], Tensor) and output[0].dim() == 0:
            own = output[0]
        if self.labels == "other":
            if own is None:
                raise UserError("HuggingFaceTask(labels='other'): the model returned no loss; give it its labels.")
            return own
        if own is None:
            return super().loss(output, target)
        if not self._checked:
            self._checked = self._check(own.detach(), self.logits(output).detach(), target)
        return own * (target != self.ignore_index).any()

    def sampled_loss(self, output: Any, labels: Tensor) -> Tensor:
        """Mean cross-entropy of logits and drawn labels."""
        return super().loss(output, labels)

    def logits(self, output: Any) -> Any:
        """What is called so in the output, or its first tensor that has a dimension.

        Raises:
            UserError: Where there is no such tensor, and labels are classes or tokens.
        """
        if isinstance(output, Tensor):
            return output
        named = _field(output, "logits")
        parts = [named] if named is not None else list(output) if isinstance(output, tuple | list) else []
        for part in parts:
            if isinstance(part, Tensor) and part.dim() > 0:
                return part
        if self.labels == "other":
            return output
        kind = type(output).__name__
        raise UserError(f"HuggingFaceTask: the network's output, a {kind}, has no logits; override logits(output).")

    def sample_labels(self, output: Tensor, generator: torch.Generator) -> Tensor:
        """Labels drawn from softmax of logits."""
        if self.labels == "other":
            return Task.sample_labels(self, output, generator)
        return super().sample_labels(output, generator)

    def metrics(self) -> MetricCollection:
        """Perplexity of next tokens, accuracy of classes, nothing of what the model alone knows."""
        if self.labels == "other":
            return MetricCollection({})
        if self._shifts:
            return MetricCollection({"perplexity": Perplexity(ignore_index=self.ignore_index)})
        return MetricCollection({"accuracy": MulticlassAccuracy(None, average="micro", ignore_index=self.ignore_index)})

    def score(self, output: Any) -> Any:
        """The logits of next tokens, else the prediction."""
        return self.logits(output) if self._shifts else self.predict(output)

    def predict(self, output: Any) -> Any:
        """The most likely labels; the logits where the model alone knows what they mean."""
        return self.logits(output) if self.labels == "other" else super().predict(output)

    @property
    def _shifts(self) -> bool:
        return self.labels == "next_token"

    def _labels(self, labels: Tensor, arguments: Mapping[str, Any]) -> Tensor:
        """The labels, without those that are padding's, or are predicted where there is padding, in a causal model."""
        if not self._shifts:
            return labels
        mask = arguments.get("attention_mask")
        if not isinstance(mask, Tensor) or mask.shape != labels.shape:
            return labels
        predicted = mask.bool() & nn.functional.pad(mask.bool()[..., :-1], (1, 0))  # nothing predicts the first
        return labels.masked_fill(~predicted, self.ignore_index)

    def _check(self, own: Tensor, logits: Tensor, target: Tensor) -> bool:
        """Refuses labels that the model shifts where the task does not, or the other way round; says if that was told.

        By the first batch in which the two losses differ by more than rounding.
        """
        if target.dim() < 2 or logits.shape[:-1] != target.shape:
            return True
        shifted = target.roll(1 if self._shifts else -1, -1)
        shifted[..., 0 if self._shifts else -1] = self.ignore_index
        logits = logits if logits.dtype == torch.float64 else logits.float()
        ours, theirs = super().loss(logits, target), super().loss(logits, shifted)
        close = _ROUNDING * own.abs()
        if (own - ours).abs() > close and (own - theirs).abs() < close:
            other = "classes" if self._shifts else "next_token"
            raise UserError(
                f"HuggingFaceTask(labels={self.labels!r}): the model's own loss takes them as {other!r}; set that."
            )
        return bool((ours - theirs).abs() > 2 * close)


def _field(output: Any, name: str) -> Any:
    """A field of an object or a mapping, None without."""
    return output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
