"""The damped inverse of a moving second moment, kept from step to step: (scale n M + ridge I)^-1."""

from typing import Any

import torch
from torch import Tensor

from locoprop_lightning.errors import check_counts, check_fraction
from locoprop_lightning.local.linear_map import times

State = dict[str, Any]


class Factor:
    """A schedule of when a second moment is gathered and inverted, and how it is averaged.

    The moment is a mean over rows, so that batches of different size agree; it is gathered and inverted at refreshes
    only. What evolves lives in a state dictionary of tensors and numbers, which the caller keeps and saves. Damping
    that fails, as it can where the ridge is below the rounding of the moment, is done again in float64 with the
    negative eigenvalues that rounding left set to zero.

    Args:
        average: Decay of the moving average of the moment, bias-corrected, in [0, 1); 0 takes the current batch alone.
        refresh_every: Steps between refreshes, at least 1.
        warmup: Steps at the start of training in which every step refreshes, at least 0: moments change fast there.
        owner: Name of the class whose settings these are, for messages.
        root: Whether to keep the inverse square root instead of the inverse.
    """

    def __init__(self, average: float, refresh_every: int, warmup: int, owner: str, root: bool = False) -> None:
        check_fraction(owner, average=average)
        check_counts(owner, 1, refresh_every=refresh_every)
        check_counts(owner, 0, warmup=warmup)
        self.average = average
        self.refresh_every = refresh_every
        self.warmup = warmup
        self.root = root

    @property
    def current(self) -> bool:
        """Whether every step uses the moment of its own batch and nothing else."""
        return self.average == 0 and self.refresh_every == 1

    def due(self, state: State) -> bool:
        """Whether this step refreshes."""
        steps = state.get("steps", 0)
        return (
            "inverse" not in state or steps < self.warmup or state.get("age", self.refresh_every) >= self.refresh_every
        )

    def tick(self, state: State) -> None:
        """Counts a step; to be called once a step, after ``due``."""
        state["steps"] = state.get("steps", 0) + 1
        state["age"] = state.get("age", 0) + 1

    def refresh(
        self,
        state: State,
        moment: Tensor,
        n: int,
        ridge: "float | Tensor",
        restart: bool = False,
        relative: bool = False,
    ) -> None:
        """Takes in a moment and inverts the average.

        Args:
            state: What evolves.
            moment: M of this batch, a mean over rows [d, d], or one for each group of units [groups, d, d]. Not taken
                in where it is not finite.
            n: What the average is multiplied with; number of rows where the inverse is of a sum over rows.
            ridge: Damping.
            restart: Whether to forget the average.
            relative: Whether the ridge is relative to the mean eigenvalue of what is inverted.
        """
        if restart:
            state.pop("mean", None)
        update_average(state, "mean", moment, self.average)
        scaled = average_of(state, "mean") * n
        size = scaled.diagonal(dim1=-2, dim2=-1).mean()
        if relative:
            ridge = torch.where(size > 0, ridge * size, 1.0)
        inverse = inverse_root(scaled, ridge) if self.root else invert(scaled, ridge)
        if relative:  # a moment of zeros has no inverse, and says nothing: its inverse shall be zero
            inverse = inverse * (size > 0)
        state |= {"inverse": inverse, "n": n, "age": 0}

    def solve(self, state: State, x: Tensor, n: int, left: bool = False) -> Tensor:
        """X (n M + ridge I)^-1 with the kept inverse, or the inverse times X.

        Args:
            state: What evolves.
            x: X [k, d], or [d, k] where ``left``.
            n: As in ``refresh``. Where it differs from the refresh's n', the ridge stands for ridge n/n'.
            left: Whether the inverse stands on the left.
        """
        inverse = state["inverse"] = state["inverse"].to(x.device)  # a checkpoint's lies on the host
        wide = x.to(inverse.dtype)
        out = (inverse @ wide if left else times(wide, inverse)).to(x.dtype)
        return out if n == state["n"] else out.mul_(state["n"] / n)


def update_average(state: State, key: str, value: Tensor, decay: float) -> None:
    """Takes a value into the moving average ``state[key]``, and into ``state["weight"]`` for the bias correction.

    Without ``state[key]`` the average starts anew. A value that is not finite is not taken in.

    Args:
        state: What evolves.
        key: Name of the average.
        value: The value.
        decay: In [0, 1); 0 keeps the latest value alone.
    """
    mean, weight = torch.zeros_like(value), value.new_zeros(())
    if key in state:
        mean, weight = state[key].to(value), state["weight"].to(value)  # a checkpoint's lies on the host
    finite = value.sum().isfinite()
    state[key] = torch.where(finite, decay * mean + (1 - decay) * value, mean)
    state["weight"] = torch.where(finite, decay * weight + (1 - decay), weight)


def average_of(state: State, key: str) -> Tensor:
    """The moving average ``state[key]``, bias-corrected; zeros before the first finite value."""
    average: Tensor = state[key] / torch.where(state["weight"] > 0, state["weight"], 1.0)
    return average


def inverse_root(c: Tensor, ridge: "float | Tensor") -> Tensor:
    """(c + ridge I)^-1/2 [d, d], symmetric; NaN where ``c`` is not finite."""
    finite = c.sum().isfinite()
    values, vectors = torch.linalg.eigh(torch.where(finite, c, torch.zeros_like(c)))
    root = (vectors * (values.clamp_min(0) + ridge).rsqrt()) @ vectors.mT
    return torch.where(finite, root, torch.nan)


def factorize(c: Tensor, ridge: "float | Tensor") -> Tensor:
    """Lower Cholesky factor of ``c + ridge I`` [..., d, d]; NaN where ``c`` is not finite. One wait for the device."""
    damped = c.clone()
    damped.diagonal(dim1=-2, dim2=-1).add_(ridge)
    factor, info = torch.linalg.cholesky_ex(damped)
    failed = bool(info.any())
    if failed and c.isfinite().all():
        values, vectors = torch.linalg.eigh(c.double())
        damped = (vectors * values.clamp_min(0)[..., None, :]) @ vectors.mT
        damped.diagonal(dim1=-2, dim2=-1).add_(ridge)
        factor, info = torch.linalg.cholesky_ex(damped)
        failed = bool(info.any())
    return factor.fill_(torch.nan) if failed else factor


def invert(c: Tensor, ridge: "float | Tensor") -> Tensor:
    """(c + ridge I)^-1 [..., d, d], in float64 where the dtype of ``c`` did not do."""
    return torch.cholesky_inverse(factorize(c, ridge))
