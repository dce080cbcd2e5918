"""What a network is trained for: loss, link function of the output, metrics."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torchmetrics import MeanSquaredError, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.text import Perplexity

from locoprop_lightning.errors import UserError, check_counts


class Task:
    """Loss, link and metrics of a network's output; a task of one's own needs ``loss`` alone.

    Attributes:
        link: Name of the transfer that turns the output into a prediction: the gradient of the loss w.r.t. the output
            is link(output) less the target, up to the batch mean.
    """

    link = "identity"

    def target(self, x: Any, y: Any) -> Any:
        """What the output is compared with, from the two parts of a batch."""
        return y

    def terms(self, target: Any) -> int:
        """Number of terms that the loss is a mean of."""
        return len(target)

    def complete(self, target: Any) -> bool:
        """Whether everything in a target counts. Where it does not, rows that no gradient reaches are left out."""
        return True

    def hide(self, labels: Tensor, target: Any) -> Tensor:
        """Drawn labels, without those in whose place the target has nothing that counts."""
        return labels

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Loss, scalar, a mean over ``terms(target)`` terms."""
        raise NotImplementedError(f"{type(self).__name__} must override loss(output, target).")

    def sample_labels(self, output: Tensor, generator: torch.Generator) -> Tensor:
        """Targets drawn from the model's own prediction, for the Fisher; shaped as the true ones.

        Args:
            output: Output of the network.
            generator: Source of the draw, on the device of ``output``.
        """
        raise UserError(f"{type(self).__name__} has no sample_labels, which the oracle needs: set its samples=0.")

    def metrics(self) -> MetricCollection:
        """New metrics, which are updated with ``score(output)`` and the target; none if not overridden."""
        return MetricCollection({})

    def score(self, output: Tensor) -> Tensor:
        """What the metrics take of the output: the prediction, unless a task has something else."""
        return self.predict(output)

    def predict(self, output: Tensor) -> Tensor:
        """Prediction from the output; the output itself if not overridden."""
        return output


def detached(output: Any) -> Any:
    """An output without its graph, whatever it is made of."""
    return tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, output)


class MeanLoss(Metric):
    """The mean of batches' losses, weighted by their terms, over all processes; NaN stays NaN.

    torchmetrics' ``MeanMetric`` leaves NaN out, or, where it does not look for it, the weights.
    """

    total: Tensor
    terms: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("terms", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, loss: Tensor, terms: int) -> None:
        """Takes in the loss of a batch, a mean over so many terms."""
        self.total = self.total + loss * terms  # not in place, which a tensor of an inference pass refuses
        self.terms = self.terms + terms

    def compute(self) -> Tensor:
        """The mean, scalar."""
        return self.total / self.terms


class LabelTask(Task):
    """Cross-entropy of labels, averaged over those that count.

    Args:
        ignore_index: Label that does not count, such as that of padding or of pixels without a label.
        dim: Dimension of the classes in the output.
    """

    link = "softmax"

    def __init__(self, ignore_index: int, dim: int) -> None:
        self.ignore_index = ignore_index
        self.dim = dim

    def terms(self, target: Tensor) -> int:
        """Number of labels that count."""
        return int((target != self.ignore_index).sum())

    def complete(self, target: Tensor) -> bool:
        """Whether all labels count."""
        return self.terms(target) == target.numel()

    def hide(self, labels: Tensor, target: Tensor) -> Tensor:
        """Drawn labels where those of the target count."""
        return torch.where(target == self.ignore_index, self.ignore_index, labels)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Mean cross-entropy of logits and labels, nats a label that counts; 0 where none does."""
        flat = output.movedim(self.dim, -1).flatten(0, -2)
        total = nn.functional.cross_entropy(flat, target.flatten(), ignore_index=self.ignore_index, reduction="sum")
        return total / (target != self.ignore_index).sum().clamp_min(1)

    def sample_labels(self, output: Tensor, generator: torch.Generator) -> Tensor:
        """Labels drawn from softmax of logits."""
        logits = output.movedim(self.dim, -1)
        probabilities = logits.float().softmax(-1).nan_to_num(1.0)  # a diverged network must not end the run here
        return torch.multinomial(probabilities.flatten(0, -2), 1, generator=generator).reshape(logits.shape[:-1])

    def predict(self, output: Tensor) -> Tensor:
        """The most likely labels."""
        return output.argmax(self.dim)


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

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Mean cross-entropy of logits [n, num_classes, ...] and labels [n, ...], nats."""
        if output.shape[1] != self.num_classes:
            way_out = f"the network has {output.shape[1]} outputs; make them agree"
            raise UserError(f"Classification(num_classes={self.num_classes}): {way_out}.")
        return super().loss(output, target)

    def metrics(self) -> MetricCollection:  # noqa: D102
        accuracy = MulticlassAccuracy(self.num_classes, average="micro", ignore_index=self.ignore_index)
        return MetricCollection({"accuracy": accuracy})


class Reconstruction(Task):
    """The input as its own target: binary cross-entropy summed over pixels, averaged over the batch; squared error.

    The network's output are logits [n, ...] with as many values a sample as the input, whose pixels lie in [0, 1].
    """

    link = "sigmoid"

    def target(self, x: Tensor, y: Any) -> Tensor:
        """The input, flattened [n, pixels]; labels are left alone."""
        return x.flatten(1)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Binary cross-entropy of logits [n, ...] and pixels [n, pixels], nats a sample."""
        logits = output.flatten(1)
        return nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="sum") / len(target)

    def sample_labels(self, output: Tensor, generator: torch.Generator) -> Tensor:
        """Pixels, 0 or 1, drawn from the predicted probabilities [n, pixels]."""
        return torch.bernoulli(self.predict(output).nan_to_num(0.5), generator=generator)

    def metrics(self) -> MetricCollection:  # noqa: D102
        return MetricCollection({"mse": MeanSquaredError()})

    def predict(self, output: Tensor) -> Tensor:
        """Probabilities [n, pixels] of logits [n, ...]."""
        return output.flatten(1).float().sigmoid()


class LanguageModelling(LabelTask):
    """Cross-entropy of each next token [n, length], averaged over the tokens that count; perplexity.

    Args:
        ignore_index: Token that does not count, such as that of padding.
    """

    def __init__(self, ignore_index: int = -100) -> None:
        super().__init__(ignore_index, -1)

    def metrics(self) -> MetricCollection:  # noqa: D102
        return MetricCollection({"perplexity": Perplexity(ignore_index=self.ignore_index)})

    def score(self, output: Tensor) -> Tensor:
        """The logits [n, length, vocabulary]."""
        return output
