"""Two optimizers as one: hidden matrices to the one, everything else to the other."""

from collections.abc import Sequence

from lightning.pytorch.cli import OptimizerCallable
from torch.optim.optimizer import ParamsT

from locoprop_lightning.errors import check_flags, check_several
from locoprop_lightning.optimizers.joined import (
    JoinedOptimizer,
    OwnedParameter,
    Share,
    check_matches,
    is_convolution,
    matches,
)


class SplitOptimizer(JoinedOptimizer):
    """Trains parameters with 2 dimensions by one optimizer and all others by another, such as Muon and AdamW.

    ``RuledOptimizer`` says the same, and more, by a list of rules.

    Args:
        params: Parameters, or groups of them. A group is split in two, and its options hold for both halves.
        matrix: Makes the optimizer of the parameters with exactly 2 dimensions.
        other: Makes the optimizer of all others. Neither may need a closure.
        convolutions: Whether the weights of convolutions go with the matrices; the modules of this package tell them
            from other parameters of more dimensions.
        exclude: Patterns of parameters that go to ``other`` whatever their dimensions, such as the embeddings and the
            output layer of ``["*.embedding.weight", "head"]``. A pattern is compared with the parameter's name and with
            its layer's. The parameters must come with their names, as from ``network.named_parameters()``; the modules
            of this package see to it.

    Raises:
        UserError: For a group with an option that one of its two halves has and the other has not, and for a pattern
            that no parameter has.

    Example:
        >>> from torch import nn
        >>> from torch.optim import SGD, AdamW
        >>> layer = nn.Linear(3, 2)
        >>> optimizer = SplitOptimizer(layer.parameters(), matrix=lambda p: SGD(p, lr=1.0), other=lambda p: AdamW(p))
        >>> [(len(group["params"]), group["lr"]) for group in optimizer.param_groups]
        [(1, 1.0), (1, 0.001)]
    """

    _kept = (*JoinedOptimizer._kept, "_convolutions", "_exclude")

    def __init__(
        self,
        params: ParamsT,
        matrix: OptimizerCallable,
        other: OptimizerCallable,
        convolutions: bool = False,
        exclude: Sequence[str] = (),
    ) -> None:
        check_several("SplitOptimizer", "patterns", exclude=exclude)
        check_flags("SplitOptimizer", convolutions=convolutions)
        self._convolutions = convolutions
        self._exclude = list(exclude)
        super().__init__(params, (matrix, other), (Share(0, {}), Share(1, {})))

    @property
    def wants_modules(self) -> bool:  # noqa: D102
        return self._convolutions or super().wants_modules

    def choose(self, entry: OwnedParameter) -> int:  # noqa: D102
        if any(matches(entry.name, pattern) for pattern in self._exclude):
            return 1
        return 0 if entry.parameter.ndim == 2 or (self._convolutions and is_convolution(entry)) else 1

    def check(self, entries: Sequence[OwnedParameter]) -> None:  # noqa: D102
        check_matches(f"SplitOptimizer(exclude={self._exclude})", self._exclude, entries)
