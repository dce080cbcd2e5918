"""Preconditioners that are kept from step to step: the damped inverse, or its root, of a moving second moment."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypedDict

import torch
from torch import Tensor

from locoprop_lightning.errors import check_counts, check_flags, check_fraction
from locoprop_lightning.local.factorization import inverse_root, invert
from locoprop_lightning.local.operator import times

State = dict[str, Any]  # what evolves of a layer: tensors, numbers, strings, and dictionaries of these


_LIMIT = 30.0  # of a moment's trace relative to the average's; ordinary batches stay below 8


class AverageState(TypedDict, total=False):
    """A moving average that started at zero; empty before the first value.

    Attributes:
        value: The average.
        weight: Sum of the weights of all values in it, scalar: value / weight is without bias.
        held: Whether the latest moment was scaled back, for each group of units.
    """

    value: Tensor
    weight: Tensor
    held: Tensor


class PreconditionerState(TypedDict, total=False):
    """What a preconditioner keeps; empty before the first step.

    Attributes:
        average: Of the second moment M, a mean over rows [..., d, d].
        inverse: (n M + damping I)^-1 of the latest refresh, or its root.
        n: What M was multiplied with there.
        age: Steps since the latest refresh.
        steps: All steps.
        outlier: The latest of them whose moment was far larger than the average, of those that were asked about.
        settings: Numbers that the inverse was made with; where they change, it is made anew.
        shape: Sizes of what it is for; where they change, all is forgotten.
    """

    average: AverageState
    inverse: Tensor
    n: int
    age: int
    steps: int
    outlier: int
    settings: list[float]
    shape: list[int]


class Preconditioner:
    """(n M + damping I)^-1, or its root, of a moving second moment M: when it is gathered, averaged and inverted.

    The moment is a mean over rows, so that batches of different size agree; it is gathered and inverted at refreshes,
    and may be gathered in between. One that is far larger than the average so far is scaled back: a single batch would
    else be most of the average for as long as it takes to decay. A second one in a row is taken as it is, and a first
    one that is far larger still than the second is left out from then on. What evolves lives in a state that the caller
    keeps and saves (``docs/mathematics.md``, section 10).

    Args:
        average: Decay of the moving average of the moment, in [0, 1); 0 takes the current batch alone.
        refresh_every: Steps between refreshes, at least 1.
        warmup: Steps at the start of training in which every step refreshes, at least 0: moments change fast there.
        owner: Name of the class whose settings these are, for messages.
        root: Whether to keep the inverse square root instead of the inverse.
        bias_correction: Whether the average is bias-corrected; else its first value has the weight 1.
    """

    def __init__(
        self,
        average: float,
        refresh_every: int,
        warmup: int,
        owner: str,
        root: bool = False,
        bias_correction: bool = True,
    ) -> None:
        check_fraction(owner, average=average)
        check_counts(owner, 1, refresh_every=refresh_every)
        check_counts(owner, 0, warmup=warmup)
        check_flags(owner, bias_correction=bias_correction)
        self.average = average
        self.refresh_every = refresh_every
        self.warmup = warmup
        self.root = root
        self.bias_correction = bias_correction

    @property
    def current(self) -> bool:
        """Whether every step uses the moment of its own batch and nothing else."""
        return self.average == 0 and self.refresh_every == 1

    def due(self, state: PreconditionerState) -> bool:
        """Whether this step refreshes."""
        steps = state.get("steps", 0)
        return (
            "inverse" not in state or steps < self.warmup or state.get("age", self.refresh_every) >= self.refresh_every
        )

    def tick(self, state: PreconditionerState) -> None:
        """Counts a step; to be called once a step, after ``due``."""
        state["steps"] = state.get("steps", 0) + 1
        state["age"] = state.get("age", 0) + 1

    def forget(self, state: PreconditionerState) -> None:
        """Drops the moment and its inverse, so that the latest step, which is then not counted yet, is done anew."""
        state.pop("average", None)
        state.pop("inverse", None)
        state["steps"] -= 1

    def gather(self, state: PreconditionerState, moment: Tensor) -> AverageState:
        """Takes in a moment, and gives the average.

        Args:
            state: What evolves.
            moment: M of this batch, a mean over rows [d, d], or one for each group of units [groups, d, d]. Not taken
                in where it is not finite.
        """
        average = state.setdefault("average", {})
        if "value" in average and self.average > 0:
            if self.bias_correction:
                _drop_first(average, moment, self.average)
            moment = _held_back(average, moment)
        update_average(average, moment, self.average if self.bias_correction or "value" in average else 0.0)
        return average

    def is_outlier(self, state: PreconditionerState, moment: Tensor) -> bool:
        """Whether a moment is far larger than the average, of some group of units, and that of the step before was not.

        To be asked after ``tick``; never true where nothing is averaged. Waits for the device.

        Args:
            state: What evolves; is told.
            moment: As in ``gather``.
        """
        average, steps = state.get("average", {}), state["steps"]
        if "value" not in average or self.average == 0 or state.get("outlier") == steps - 1:
            return False
        outlier = bool(_excess(average, moment).gt(1).any())
        if outlier:
            state["outlier"] = steps
        return outlier

    def refresh(
        self,
        state: PreconditionerState,
        moment: Tensor,
        n: int,
        damping: "float | Tensor",
        relative: bool = False,
        wide: Callable[[], Tensor] | None = None,
    ) -> None:
        """Takes in a moment and inverts the average.

        Args:
            state: What evolves.
            moment: As in ``gather``.
            n: What the average is multiplied with; number of rows where the inverse is of a sum over rows.
            damping: Added to the diagonal.
            relative: Whether the damping is relative to the mean eigenvalue of what is inverted.
            wide: Makes the moment in float64, as the inverse then is too, where that of its own type would be off.
        """
        before: Any = dict(state.get("average", {}))
        scaled = average_of(self.gather(state, moment)) * n

        def anew(wide: Callable[[], Tensor]) -> Tensor:
            state["average"] = before
            return average_of(self.gather(state, wide())) * n

        size = scaled.diagonal(dim1=-2, dim2=-1).mean()
        if relative:
            damping = torch.where(size > 0, damping * size, 1.0)
        inverse = inverse_root(scaled, damping) if self.root else invert(scaled, damping, wide and partial(anew, wide))
        if relative:  # a moment of zeros has no inverse, and says nothing: its inverse shall be zero
            inverse = inverse * (size > 0)
        state["inverse"], state["n"], state["age"] = inverse, n, 0

    def solve(self, state: PreconditionerState, x: Tensor, n: int, left: bool = False) -> Tensor:
        """X (n M + damping I)^-1 with the kept inverse, or the inverse times X.

        Args:
            state: What evolves.
            x: X [k, d], or [d, k] where ``left``; with an inverse for each group of units, d are the units of all.
            n: As in ``refresh``. Where it differs from the refresh's n', the damping stands for damping n/n'.
            left: Whether the inverse stands on the left.
        """
        inverse = state["inverse"] = state["inverse"].to(x.device)  # a checkpoint's lies on the host
        wide = x.to(inverse.dtype)
        out = (_from_left(inverse, wide) if left else times(wide, inverse)).to(x.dtype)
        return out if n == state["n"] else out.mul_(state["n"] / n)


def _held_back(average: AverageState, moment: Tensor) -> Tensor:
    """A moment scaled back to ``_LIMIT`` times the average, unless the one before was, too.

    Args:
        average: The average; is told.
        moment: The moment [..., d, d].
    """
    excess = _excess(average, moment)
    held = excess > 1
    if "held" in average:
        held = held & ~average["held"].to(held.device)
    average["held"] = held
    return moment / torch.where(held, excess, 1.0)[..., None, None]


def _drop_first(average: AverageState, moment: Tensor, decay: float) -> None:
    """Empties an average of a single moment that is larger than the second by the square of ``_LIMIT``."""
    value, weight = average["value"].to(moment), average["weight"].to(moment)
    usual, size = (_traces(x).sum() for x in (average_of(average).to(moment), moment))
    out = (weight < (1 - decay) * 1.001) & (size > 0) & (usual > _LIMIT**2 * size)
    kept = torch.where(out, 0.0, 1.0)
    average["value"], average["weight"] = value * kept, weight * kept


def _excess(average: AverageState, moment: Tensor) -> Tensor:
    """The trace of a moment relative to ``_LIMIT`` times that of the average [...]; 0 where that is 0."""
    usual, size = (_traces(x) for x in (average_of(average).to(moment), moment))
    return torch.where(usual > 0, size / (_LIMIT * usual), 0.0)


def _traces(x: Tensor) -> Tensor:
    return x.diagonal(dim1=-2, dim2=-1).sum(-1)


def _from_left(c: Tensor, x: Tensor) -> Tensor:
    return c @ x if c.dim() == 2 else torch.bmm(c, x.unflatten(0, (len(c), -1))).flatten(0, 1)


def update_average(state: AverageState, value: Tensor, decay: float) -> None:
    """Takes a value into a moving average; one that is not finite is left out.

    Args:
        state: The average.
        value: The value.
        decay: In [0, 1); 0 keeps the latest value alone.
    """
    mean, weight = torch.zeros_like(value), value.new_zeros(())
    if "value" in state:
        mean, weight = state["value"].to(value), state["weight"].to(value)  # a checkpoint's lies on the host
    finite = value.sum().isfinite()
    state["value"] = torch.where(finite, decay * mean + (1 - decay) * value, mean)
    state["weight"] = torch.where(finite, decay * weight + (1 - decay), weight)


def average_of(state: AverageState) -> Tensor:
    """The moving average, bias-corrected; zeros before the first finite value."""
    return state["value"] / torch.where(state["weight"] > 0, state["weight"], 1.0)
