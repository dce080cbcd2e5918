"""Inputs as their own targets."""

from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MeanSquaredError, MetricCollection

from locoprop_lightning.errors import UserError
from locoprop_lightning.tasks.task import Task


class Reconstruction(Task):
    """The input as its own target: binary cross-entropy summed over pixels, averaged over the batch; squared error.

    The network's output are logits [n, ...] with as many values a sample as the input, whose pixels lie in [0, 1].
    """

    link = "sigmoid"
    _looked = False  # whether the pixels of a first batch have been looked at, which waits for the device

    def target(self, batch: Any) -> Tensor:
        """The input, flattened [n, pixels]; labels are left alone."""
        x: Tensor = self.inputs(batch)
        return x.flatten(1)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Binary cross-entropy of logits [n, ...] and pixels [n, pixels], nats a sample."""
        if not isinstance(output, Tensor):
            raise UserError(
                f"Reconstruction: the network's output is a {type(output).__name__}, not a tensor of logits."
            )
        logits = output.flatten(1)
        if logits.shape != target.shape:
            raise UserError(
                f"Reconstruction: the network has {list(logits.shape)} outputs for {list(target.shape)} pixels; make "
                "them agree."
            )
        if not self._looked:
            if not ((target >= 0) & (target <= 1)).all():
                raise UserError("Reconstruction: the inputs are not within 0 and 1, as pixels are; scale them.")
            self._looked = True
        return nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="sum") / len(target)

    def sample_labels(self, output: Tensor, generator: torch.Generator) -> Tensor:
        """Pixels, 0 or 1, drawn from the predicted probabilities [n, pixels]."""
        return torch.bernoulli(self.predict(output).nan_to_num(0.5), generator=generator)

    def metrics(self) -> MetricCollection:  # noqa: D102
        return MetricCollection({"mse": MeanSquaredError()})

    def predict(self, output: Tensor) -> Tensor:
        """Probabilities [n, pixels] of logits [n, ...]."""
        return output.flatten(1).float().sigmoid()
