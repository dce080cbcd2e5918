"""The review's oracle."""

from torch import Tensor

from locoprop_lightning.local import State
from locoprop_lightning.oracles.oracle import Oracle


class GradientOracle(Oracle):
    """D = G: the target moves along the gradient of the task's loss (review, section 3.1).

    G is the gradient of a batch mean, so lambda_a is n times a learning rate: with 1,024 rows, 300 to 1,000 is usual.
    """

    def direction(self, gradient: Tensor, terms: int, state: State) -> Tensor:  # noqa: D102
        return gradient

    def weight_direction(self, weight_gradient: Tensor, terms: int, state: State) -> Tensor:  # noqa: D102
        return weight_gradient
