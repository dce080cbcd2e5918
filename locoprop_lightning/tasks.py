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


class Classification(Task):
    """Cross-entropy, averaged over the batch; accuracy.

    Args:
        num_classes: Number of classes, at least 2.
    """

    link = "softmax"

    def __init__(self, num_classes: int = 10) -> None:
        check_counts("Classification", 2, num_classes=num_classes)
        self.num_classes = num_classes

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Mean cross-entropy of logits [n, num_classes] and labels [n], nats."""
        if output.shape[1] != self.num_classes:
            way_out = f"the network has {output.shape[1]} outputs; make them agree"
            raise UserError(f"Classification(num_classes={self.num_classes}): {way_out}.")
        return nn.functional.cross_entropy(output, target)

    def sample_labels(self, output: Tensor, generator: torch.Generator) -> Tensor:
        """Labels [n] drawn from softmax of logits [n, num_classes]."""
        probabilities = output.float().softmax(-1).nan_to_num(1.0)  # a diverged network must not end the run here
        return torch.multinomial(probabilities, 1, generator=generator).squeeze(-1)

    def metrics(self) -> MetricCollection:  # noqa: D102
        return MetricCollection({"accuracy": MulticlassAccuracy(self.num_classes, average="micro")})

    def predict(self, output: Tensor) -> Tensor:
        """Labels [n] of logits [n, num_classes]."""
        return output.argmax(-1)


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


class LanguageModelling(Task):
    """Cross-entropy of each next token, averaged over all tokens of the batch; perplexity."""

    link = "softmax"

    def terms(self, target: Tensor) -> int:
        """Number of tokens; none is left out of the loss."""
        return target.numel()

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Mean cross-entropy of logits [n, length, vocabulary] and tokens [n, length], nats a token."""
        return nn.functional.cross_entropy(output.flatten(0, -2), target.flatten())

    def sample_labels(self, output: Tensor, generator: torch.Generator) -> Tensor:
        """Tokens [n, length] drawn from softmax of logits [n, length, vocabulary]."""
        probabilities = output.float().softmax(-1).nan_to_num(1.0).flatten(0, -2)
        return torch.multinomial(probabilities, 1, generator=generator).reshape(output.shape[:-1])

    def metrics(self) -> MetricCollection:  # noqa: D102
        return MetricCollection({"perplexity": Perplexity()})

    def score(self, output: Tensor) -> Tensor:
        """The logits [n, length, vocabulary]."""
        return output

    def predict(self, output: Tensor) -> Tensor:
        """Most likely next tokens [n, length]."""
        return output.argmax(-1)
