"""What a network is trained for: loss, link function of the output, metrics."""

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from locoprop_lightning.errors import UserError


class Task:
    """Loss, link and metrics of a network's output.

    Attributes:
        link: Name of the transfer that turns the output into a prediction: the gradient of the loss w.r.t. the output
            is link(output) less the target, up to the batch mean.
    """

    link = "identity"

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Loss, scalar, as the task reduces it."""
        raise NotImplementedError

    def sample_labels(self, output: Tensor, generator: torch.Generator) -> Tensor:
        """Targets drawn from the model's own prediction, for the Fisher; shaped as the true ones.

        Args:
            output: Output of the network.
            generator: Source of the draw, on the device of ``output``.
        """
        raise UserError(f"{type(self).__name__} has no sample_labels, which the oracle needs: set its samples=0.")

    def metrics(self) -> MetricCollection:
        """New metrics, which are updated with ``predict(output)`` and the target."""
        raise NotImplementedError

    def predict(self, output: Tensor) -> Tensor:
        """Prediction from the output."""
        raise NotImplementedError


class Classification(Task):
    """Cross-entropy, averaged over the batch; accuracy.

    Args:
        num_classes: Number of classes, at least 2.
    """

    link = "softmax"

    def __init__(self, num_classes: int = 10) -> None:
        if num_classes < 2:
            raise UserError(f"Classification(num_classes={num_classes}): must be at least 2.")
        self.num_classes = num_classes

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Mean cross-entropy of logits [n, num_classes] and labels [n], nats."""
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
