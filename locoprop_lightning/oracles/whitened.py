"""Gradients whitened by their own second moment: K-FAC's oracle, and the full-matrix form of RMSOracle."""

from collections.abc import Mapping
from numbers import Real
from typing import Any, TypedDict, cast

import torch
from torch import Tensor

from locoprop_lightning.errors import UserError, check_counts, check_fraction, check_positive, shown
from locoprop_lightning.local import Preconditioner, Rows, State
from locoprop_lightning.local.operator import gram
from locoprop_lightning.local.preconditioner import PreconditionerState
from locoprop_lightning.oracles.oracle import ALL_HERE, Oracle

_GROWTH = 4.0  # of whitened gradients since S was made, at which D is scaled back


class WhitenedState(TypedDict, total=False):
    """What the oracle keeps of a layer; empty before the first step.

    Attributes:
        preconditioner: S, a mean over rows, and its damped inverse or root.
        usual: Size of whitened gradients at the refresh, scalar.
        shrink: What D is multiplied with in this step, scalar.
    """

    preconditioner: PreconditionerState
    usual: Tensor
    shrink: Tensor


class WhitenedOracle(Oracle):
    """D = NG (S + damping tr(S)/d_out I)^-power.

    S is the moving second moment of NG, the gradients of single terms of the loss: a mean over rows [d_out, d_out]. G
    is always the gradient of the true labels. S is of labels sampled from the model's own prediction, which makes it
    the Fisher's (Martens and Grosse, 2015), or of the true ones, the empirical Fisher's.

    With power 1 and ``ClosedForm`` this is K-FAC, for convolutions as Grosse and Martens (2016) have it: the exact S
    solution is -lambda_a S^-1 (weight gradient) (C/N + lambda_r/N I)^-1, so lambda_a is K-FAC's learning rate and
    lambda_r/N its damping of the inputs' factor. The unit of D is that of 1/G: with a damping of
    1 and S of the true labels (``samples=0``) 0.03 to 0.1 usually works.

    With power 0.5 the columns of D are uncorrelated and each has size 1: what ``RMSOracle`` does to each unit alone.
    D has no unit, lambda_a is the length of the step in pre-activations (LocoProp-S) or activations (M), and 0.05 to
    0.1 usually works, with ``samples=0`` and a rate that decays to zero.

    A kept S is checked at each step: where whitened gradients (on at most 32 rows) have grown to more than 4 times
    their size at the refresh, D is scaled back to that.

    Args:
        power: 1 or 0.5.
        beta: Decay of the moving average of S, bias-corrected, in [0, 1).
        damping: Relative to the mean eigenvalue of S, above 0.
        samples: Draws of labels from the model at each refresh of S; 0 for the true labels.
        refresh_every: Steps between refreshes of S, at least 1. Only then are there second backward passes.
        warmup: Steps at the start of training in which every step refreshes, at least 0.
    """

    def __init__(
        self,
        power: float = 1.0,
        beta: float = 0.95,
        damping: float = 1e-3,
        samples: int = 1,
        refresh_every: int = 10,
        warmup: int = 10,
    ) -> None:
        given: Any = power
        if not isinstance(given, Real) or power not in (0.5, 1.0):
            raise UserError(f"WhitenedOracle(power={shown(power)}): take 1 or 0.5.")
        check_fraction("WhitenedOracle", beta=beta)
        check_positive("WhitenedOracle", damping=damping)
        check_counts("WhitenedOracle", 0, samples=samples)
        self.power = power
        self.damping = damping
        self.samples = samples
        self.preconditioner = Preconditioner(beta, refresh_every, warmup, type(self).__name__, root=power == 0.5)

    def draws(self, states: Mapping[str, State]) -> int:  # noqa: D102
        return self.samples if any(self._due(state) for state in states.values()) else 0

    def _due(self, state: State) -> bool:
        kept = _typed(state).get("preconditioner", {})
        return self.preconditioner.due(kept) or kept.get("settings") != [self.power, self.damping]

    def observe(  # noqa: D102
        self, gradient: Tensor, sampled: list[Tensor], terms: int, state: State, rows: Rows = ALL_HERE
    ) -> None:
        due, own = self._due(state), _typed(state)
        kept = own.setdefault("preconditioner", {})
        refreshes = due and (bool(sampled) or self.samples == 0 or "inverse" not in kept)
        if refreshes:
            draws = sampled or [gradient]
            moment = gram(draws[0])
            for other in draws[1:]:
                moment += gram(other)
            moment = rows.sum(moment)
            moment *= terms**2 / (len(draws) * rows.count(len(gradient)))  # mean over rows of (NG')^T (NG')
            self.preconditioner.refresh(kept, moment, 1, self.damping, relative=True)
            kept["settings"] = [self.power, self.damping]
        self.preconditioner.tick(kept)
        size = self._size(gradient, terms, kept, rows)
        if refreshes:
            usual = torch.where(size.isfinite(), size.clamp_min(1), 1.0)
            held = kept.get("average", {}).get("held")  # S knows less of this batch than of those before
            own["usual"] = usual if held is None else torch.where(held, own.get("usual", usual).to(usual), usual)
        limit = _GROWTH**2 * own["usual"].to(size)
        own["shrink"] = torch.where(size > limit, (limit / size).sqrt(), 1.0)

    def _size(self, gradient: Tensor, terms: int, kept: PreconditionerState, rows: Rows) -> Tensor:
        """tr(S^-1 (NG)^T NG / n) / d_out on at most 32 rows, scalar: about 1 where S is not stale."""
        index, count = rows.sample(len(gradient), 32, gradient.device)
        some = gradient[index]
        whitened = self.preconditioner.solve(kept, some, 1)
        squares = (whitened * (some if self.power == 1 else whitened)).sum()
        return rows.sum(squares) * (terms**2 / (count * gradient.shape[1]))

    def direction(self, gradient: Tensor, terms: int, state: State) -> Tensor:  # noqa: D102
        own = _typed(state)
        whitened = self.preconditioner.solve(own["preconditioner"], gradient, 1)
        return whitened.mul_(terms * own["shrink"].to(gradient))

    def weight_direction(self, weight_gradient: Tensor, terms: int, state: State) -> Tensor:  # noqa: D102
        own = _typed(state)
        whitened = self.preconditioner.solve(own["preconditioner"], weight_gradient, 1, left=True)
        return whitened.mul_(terms * own["shrink"].to(weight_gradient))


def _typed(state: State) -> WhitenedState:
    return cast(WhitenedState, state)
