"""What an oracle is."""

from torch import Tensor


class Oracle:
    """Estimates the direction D of the target T = f(A) - lambda_a D from the gradient G of the loss.

    Where D = G R with R acting on the units, ``weight_direction`` turns the back-propagated weight gradient G^T Y into
    D^T Y = R^T (G^T Y), which spares a product over the rows.
    """

    def direction(self, gradient: Tensor) -> Tensor:
        """D [n, d_out] of G [n, d_out]."""
        raise NotImplementedError

    def weight_direction(self, weight_gradient: Tensor) -> Tensor:
        """D^T Y [d_out, width] of G^T Y [d_out, width]."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"
