"""The contract of tasks, and the mean of a loss over batches and processes."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torchmetrics import Metric, MetricCollection

from locoprop_lightning.errors import UserError
from locoprop_lightning.reprs import Shown


class Task(Shown):
    """How a batch is read; loss, link and metrics of a network's output. A task of one's own needs ``loss`` alone.

    A batch may be anything: ``inputs`` and ``target`` say what the network takes of it, and what its output, which may
    be anything too, is compared with.

    Attributes:
        link: Name of the transfer that turns the output into a prediction: the gradient of the loss w.r.t. the output
            is link(output) less the target, up to the batch mean.
        reduction: Whether ``loss`` is the "mean" over its terms, or their "sum". A sum is divided by what a mean is,
            of all processes, so that rates and lambdas mean the same for both.
    """

    link = "identity"
    reduction = "mean"

    def inputs(self, batch: Any) -> Any:
        """What the network is called with: the first part of a tuple, or all of a batch that is none.

        A tuple or list becomes the network's arguments, a mapping its keyword arguments.
        """
        return batch[0] if isinstance(batch, tuple | list) else batch

    def target(self, batch: Any) -> Any:
        """What the output is compared with: the second part of a tuple; where there is none, the inputs."""
        second = batch[1] if isinstance(batch, tuple | list) and len(batch) > 1 else None
        return self.inputs(batch) if second is None else second

    def terms(self, target: Any) -> int:
        """Number of terms that the loss is made of and that count: samples, if not overridden.

        Raises:
            UserError: Where the target holds no tensor.
        """
        for leaf in tree_leaves(target):
            if isinstance(leaf, Tensor) and leaf.dim() > 0:
                return len(leaf)
        raise UserError(f"{type(self).__name__}: the target holds no tensor of samples; override terms(target).")

    def weight(self, target: Any, terms: int) -> float:
        """What a mean of these terms has been divided by: their number, if their weights are not others.

        Args:
            target: The target.
            terms: What ``terms`` returned.
        """
        return terms

    def complete(self, target: Any) -> bool:
        """Whether everything in a target counts. Where it does not, rows that no gradient reaches are left out."""
        return True

    def padded(self, inputs: Any) -> bool:
        """Whether some positions of the inputs may be padding, whose rows do not count. They are left out then too."""
        return False

    def hide(self, labels: Any, target: Any) -> Any:
        """Drawn labels, without those in whose place the target has nothing that counts."""
        return labels

    def loss(self, output: Any, target: Any) -> Tensor:
        """Loss, scalar: a mean over terms, which may have weights, or their sum (``reduction``)."""
        raise UserError(f"{type(self).__name__} must override loss(output, target).")

    def mean_loss(self, output: Any, target: Any) -> Tensor:
        """The loss as a mean over its terms, scalar.

        Raises:
            UserError: Where ``loss`` gives something else, or what no gradient can be taken of.
        """
        loss, name = self.loss(output, target), type(self).__name__
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            given = f"a tensor {list(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
            raise UserError(f"{name}.loss: must return a tensor of one number, a mean over terms, not {given}.")
        if torch.is_grad_enabled() and not loss.requires_grad:
            if any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in tree_leaves(output)):
                raise UserError(
                    f"{name}.loss: has no gradient; make it of the output by functions of torch, undetached."
                )
        return loss / (self.weight(target, self.terms(target)) or 1) if self.reduction == "sum" else loss

    def sampled_loss(self, output: Any, labels: Any) -> Tensor:
        """Mean loss of drawn labels; to override where ``loss`` is not made of its target."""
        return self.mean_loss(output, labels)

    def logits(self, output: Any) -> Any:
        """The part of an output that labels are drawn from; all of it if not overridden."""
        return output

    def sample_labels(self, output: Any, generator: torch.Generator) -> Any:
        """Targets drawn from the model's own prediction, for the Fisher; shaped as the true ones.

        Args:
            output: What ``logits`` returned.
            generator: Source of the draw, on the device of ``output``.
        """
        raise UserError(f"{type(self).__name__} has no sample_labels, which the oracle needs: set its samples=0.")

    def metrics(self) -> MetricCollection:
        """New metrics, which are updated with ``score(output)`` and the target; none if not overridden."""
        return MetricCollection({})

    def score(self, output: Any) -> Any:
        """What the metrics take of the output: the prediction, unless a task has something else."""
        return self.predict(output)

    def predict(self, output: Any) -> Any:
        """Prediction from the output; the output itself if not overridden."""
        return output


def detached(output: Any) -> Any:
    """An output without its graph, whatever it is made of."""
    return tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, output)


class MeanLoss(Metric):
    """The mean of batches' losses, weighted as their terms are, over all processes; NaN stays NaN.

    torchmetrics' ``MeanMetric`` leaves NaN out, or, where it does not look for it, the weights.
    """

    total: Tensor
    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("weight", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, loss: Tensor, weight: float) -> None:
        """Takes in the loss of a batch, and what it has been divided by."""
        self.total = self.total + loss * weight  # not in place, which a tensor of an inference pass refuses
        self.weight = self.weight + weight

    def compute(self) -> Tensor:
        """The mean, scalar."""
        return self.total / self.weight
