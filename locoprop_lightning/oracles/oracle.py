"""What an oracle is."""

from collections.abc import Mapping

from torch import Tensor

from locoprop_lightning.local.factor import State


class Oracle:
    """Estimates the direction D of the target T = f(A) - lambda_a D from the gradient G of the loss.

    D = G R, with R acting on the units of a row, so that D^T Y = R^T (G^T Y) comes from the back-propagated weight
    gradient without a product over the rows. G is the gradient of a batch mean; n G that of single samples.

    What evolves lives in one state dictionary a layer (tensors and numbers), which the module keeps and saves with the
    checkpoint. Hyper-parameters are attributes.
    """

    def draws(self, states: Mapping[str, State]) -> int:
        """How many times this step should sample labels from the model's own prediction for ``observe``.

        Args:
            states: State of each layer.
        """
        return 0

    def observe(self, gradient: Tensor, sampled: list[Tensor], state: State) -> None:
        """Takes a batch in, once a step and before the directions; never a non-finite value.

        Args:
            gradient: G [n, d_out].
            sampled: The gradient for each draw of sampled labels, each as G.
            state: What evolves for this layer.
        """

    def direction(self, gradient: Tensor, state: State) -> Tensor:
        """D [n, d_out] of G [n, d_out]."""
        raise NotImplementedError

    def weight_direction(self, weight_gradient: Tensor, n: int, state: State) -> Tensor:
        """D^T Y [d_out, width] of G^T Y [d_out, width] over n rows."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"
