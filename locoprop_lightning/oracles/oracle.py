"""What an oracle is."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

from torch import Tensor

from locoprop_lightning.local import Rows, State
from locoprop_lightning.reprs import Shown

ALL_HERE = Rows()


class Oracle(Shown, ABC):
    """Estimates the direction D of the target T = f(A) - lambda_a D from the gradient G of the loss.

    In the review (section 3.1) D = G; ``docs/mathematics.md``, section 9, derives the others.

    An oracle of one's own gives ``direction``. Where D = G R, with R acting on the units of a row, it also gives
    ``weight_direction``: then D^T Y = R^T (G^T Y) comes from the back-propagated weight gradient without a product over
    the rows.

    The loss is a mean over N terms (samples, or tokens): G is the gradient of that mean, N G that of single terms. A
    layer has n rows, more than N where it sees a term several times, as a convolution sees an image at each position.
    G may hold some of the rows of the batch alone; N, and the mean that it is the gradient of, are of all.

    What evolves lives in a state, a dictionary a layer of tensors, numbers and dictionaries of these, which is kept and
    saved with the checkpoint. Hyper-parameters are attributes.
    """

    asks_inverse = False  # whether it is to be given the solver's (C + lambda_r I)^-1

    def draws(self, states: Mapping[str, State]) -> int:
        """How many times this step should sample labels from the model's own prediction for ``observe``.

        Args:
            states: State of each layer.
        """
        return 0

    def observe(  # noqa: B027, an oracle may keep nothing
        self, gradient: Tensor, sampled: list[Tensor], terms: int, state: State, rows: Rows = ALL_HERE
    ) -> None:
        """Takes a batch in, once a step and before the directions; never a non-finite value.

        Args:
            gradient: G [n, d_out].
            sampled: The gradient for each draw of sampled labels, each as G.
            terms: Number N of the terms that the loss is a mean of.
            state: What evolves for this layer.
            rows: What the rows of G stand for: ``rows.count(n)`` is the number of all rows of the batch, and
                ``rows.sum`` sums over them. Given where not all are at hand.
        """

    def prepare(  # noqa: B027, an oracle may need no more than gradients
        self, weight_gradient: Tensor, inverse: Callable[[Tensor], Tensor], groups: int, state: State
    ) -> None:
        """Takes in what the solver preconditions with, once a step and before the directions, where ``asks_inverse``.

        Args:
            weight_gradient: G^T Y of all rows [d_out, width]; not to be changed.
            inverse: X -> X (C + lambda_r I)^-1 [k, width].
            groups: Groups of units, each of which has inputs of its own.
            state: What evolves for this layer.
        """

    @abstractmethod
    def direction(self, gradient: Tensor, terms: int, state: State) -> Tensor:
        """D [n, d_out] of G [n, d_out], the gradient of a mean of N terms; a new tensor, or the one that was given."""

    def weight_direction(self, weight_gradient: Tensor, terms: int, state: State) -> Tensor | None:
        """D^T Y [d_out, width] of G^T Y [d_out, width], or None where only the rows give it.

        Args:
            weight_gradient: G^T Y; may be changed and returned.
            terms: Number N of the terms that the loss is a mean of.
            state: What evolves for this layer.
        """
        return None
