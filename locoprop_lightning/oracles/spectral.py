"""Gradients whitened by the preconditioned weight gradient: steepest descent under a bound on the change of outputs."""

from collections.abc import Callable
from typing import TypedDict, cast

import torch
from torch import Tensor

from locoprop_lightning.errors import check_fraction, check_positive
from locoprop_lightning.local import Preconditioner, State
from locoprop_lightning.local.preconditioner import AverageState, PreconditionerState, average_of, update_average
from locoprop_lightning.oracles.oracle import Oracle


class SpectralState(TypedDict, total=False):
    """What the oracle keeps of a layer; empty before the first step.

    Attributes:
        preconditioner: S/tr(S), and its damped inverse root.
        trace: An average of tr(S).
        momentum: An average of B.
    """

    preconditioner: PreconditionerState
    trace: AverageState
    momentum: AverageState


class SpectralOracle(Oracle):
    """D = sqrt(N) G (S + damping tr(S)/d_out I)^-1/2, with S of B (C + lambda_r I)^-1 B^T.

    B = G^T Y is the weight gradient [d_out, width], and (C + lambda_r I)^-1 what the solver has, which must be
    ``ClosedForm`` or ``Majorization``. With R = (C + lambda_r I)^-1/2 and S of the batch alone (``beta=0``,
    ``refresh_every=1``, no damping), the exact S solution is

        V = -lambda_a sqrt(N) polar(B R) R,    polar(X) = (X X^T)^-1/2 X,

    which among all V whose change of outputs, V R^-1, has no singular value above lambda_a sqrt(N) is the one that
    minimises <B, V>: steepest descent under the spectral norm of the change of the layer's outputs on the data. Muon's
    is under that of the weights (Jordan et al., 2024; ``docs/mathematics.md``, sections 9 and 14). Unlike
    ``WhitenedOracle`` it costs products of the layer's size, not of the batch's.

    By default S is kept: its shape is an average in which each batch counts the same, whatever the size of its
    gradients, and tr(S) an average of its own. Take ``step_length="activations"``: then lambda_a is the root mean
    square by which outputs move, whatever is kept. A grouped convolution has an S for each group.

    Args:
        momentum: Decay of a moving average of B, bias-corrected, in [0, 1), which stands for B in the first inner
            gradient; 0.6 is best or near it on every network tried. S is of B alone. Layers that are solved through
            Y Y^T do without, since what is averaged does not lie in the span of their rows.
        beta: Decay of the moving averages of S and tr(S), bias-corrected, in [0, 1).
        damping: Relative to the mean eigenvalue of S, above 0.
        refresh_every: Steps between refreshes of S, at least 1.
        warmup: Steps at the start of training in which every step refreshes, at least 0.
    """

    asks_inverse = True

    def __init__(
        self,
        momentum: float = 0.0,
        beta: float = 0.9,
        damping: float = 1e-3,
        refresh_every: int = 10,
        warmup: int = 40,
    ) -> None:
        check_positive("SpectralOracle", damping=damping)
        check_fraction("SpectralOracle", momentum=momentum, beta=beta)
        self.momentum = momentum
        self.damping = damping
        self.preconditioner = Preconditioner(beta, refresh_every, warmup, type(self).__name__, root=True)

    def prepare(  # noqa: D102
        self, weight_gradient: Tensor, inverse: Callable[[Tensor], Tensor], groups: int, state: State
    ) -> None:
        own = _typed(state)
        kept = own.setdefault("preconditioner", {})
        if self.preconditioner.due(kept) or kept.get("settings") != [self.damping]:
            tiny = torch.finfo(weight_gradient.dtype).tiny
            size = weight_gradient.abs().max().clamp_min(tiny)
            b = weight_gradient / size  # squares of gradients may be too small for their type
            moment = torch.bmm(inverse(b).unflatten(0, (groups, -1)), b.unflatten(0, (groups, -1)).mT)
            moment = (moment + moment.mT) / 2
            trace = moment.diagonal(dim1=1, dim2=2).sum() / groups
            trace = torch.where(
                trace > 0, trace, torch.nan
            )  # zeros say nothing, and are left out as what is not finite
            update_average(own.setdefault("trace", {}), trace * size**2, self.preconditioner.average)
            moment = moment / trace
            self.preconditioner.refresh(kept, moment[0] if groups == 1 else moment, 1, self.damping, relative=True)
            kept["settings"] = [self.damping]
        self.preconditioner.tick(kept)
        if self.momentum > 0:
            update_average(own.setdefault("momentum", {}), weight_gradient, self.momentum)

    def direction(self, gradient: Tensor, terms: int, state: State) -> Tensor:  # noqa: D102
        return self._whitened(gradient.T, terms, state).T.contiguous()

    def weight_direction(self, weight_gradient: Tensor, terms: int, state: State) -> Tensor:  # noqa: D102
        if self.momentum > 0:
            finite = weight_gradient.sum().isfinite()  # else the step is refused, as without
            weight_gradient = torch.where(finite, average_of(_typed(state)["momentum"]), torch.nan)
        return self._whitened(weight_gradient, terms, state)

    def _whitened(self, weight_gradient: Tensor, terms: int, state: State) -> Tensor:
        own = _typed(state)
        trace = average_of(own["trace"]).to(weight_gradient)
        scale = torch.where(trace > 0, terms / trace, 0.0).sqrt()
        return self.preconditioner.solve(own["preconditioner"], weight_gradient, 1, left=True).mul_(scale)


def _typed(state: State) -> SpectralState:
    return cast(SpectralState, state)
