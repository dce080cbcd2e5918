"""What a local solve gives: its outcome on the device, how it ended, and the new weights."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum, IntEnum
from typing import Any, NamedTuple

import torch
from torch import Tensor

from locoprop_lightning.errors import UserError
from locoprop_lightning.local import LocalProblem


class Recording(IntEnum):
    """Which values of the local loss, its proximal term included, are computed; each costs half an inner iteration."""

    NOTHING = 0  #: none
    ENDS = 1  #: before the first and after the last iteration
    CURVE = 2  #: before the first and after each


class Status(Enum):
    """How a local solve ended."""

    SOLVED = "solved"  #: as it should
    NONFINITE = "nonfinite"  #: with a value that is not finite
    DIVERGED = "diverged"  #: worse than it began
    RETRIED = "retried"  #: the first attempt failed, the second did not


class Outcome(NamedTuple):
    """What a solver makes of a problem, on the device; nothing has been waited for.

    Attributes:
        displacement: V = W+ - W0 [d_out, width].
        growth: Scalar, above 0 where the solve diverged: the last residual less the first, or the change of J.
        losses: Local losses a sample, if they were recorded [T + 1], or the first and the last [2].
        learnt: What the solver keeps of the solve once it is known to be finite.
    """

    displacement: Tensor
    growth: Tensor
    losses: Tensor | None
    learnt: Any = None

    def to(self, dtype: torch.dtype) -> "Outcome":
        """The same, its tensors in a type."""
        losses = None if self.losses is None else self.losses.to(dtype)
        return self._replace(displacement=self.displacement.to(dtype), growth=self.growth.to(dtype), losses=losses)


@dataclass(frozen=True, repr=False)
class Solution:
    """A solved problem.

    Attributes:
        problem: The problem.
        displacement: V = W+ - W0 [d_out, width].
        status: How the solve ended.
        losses: Local losses a sample before the first and after each iteration [T + 1], or the first and the last [2],
            as was asked for; None if not.
    """

    problem: LocalProblem
    displacement: Tensor
    status: Status
    losses: Tensor | None

    @property
    def weight(self) -> Tensor:
        """W+ [d_out, d_in], whatever the status."""
        return self.problem.weight.detach() + self.problem.split(self.displacement)[0]

    @property
    def bias(self) -> Tensor | None:
        """b+ [d_out], or None."""
        change = self.problem.split(self.displacement)[1]
        return None if self.problem.bias is None or change is None else self.problem.bias.detach() + change

    def __repr__(self) -> str:
        moved = f"moved {self.problem.relative(self.displacement).item():.3g} of the weights' norm"
        told = (
            "" if self.losses is None else f", local loss {self.losses[0].item():.4g} -> {self.losses[-1].item():.4g}"
        )
        return f"Solution({self.problem.name!r}, {self.status.value}, {moved}{told})"

    def plot(self, axes: Any = None) -> Any:
        """Draws the local loss over the inner iterations.

        Args:
            axes: Axes of matplotlib; the current ones if not given.

        Returns:
            The axes.

        Raises:
            UserError: Where no losses were recorded.
        """
        from matplotlib import pyplot

        if self.losses is None:
            raise UserError("plot: no losses were recorded; solve with recording=Recording.CURVE.")
        axes = pyplot.gca() if axes is None else axes
        axes.plot(self.losses.cpu(), marker=".", label=self.problem.name)
        axes.set(xlabel="inner iteration", ylabel="local loss a sample")
        return axes


def check_outcome(method: str, outcome: Any, problem: LocalProblem) -> None:
    """Refuses what a solver's method returns instead of an outcome of the problem.

    Raises:
        UserError: Names the method, and the part.
    """
    if not isinstance(outcome, Outcome):
        raise UserError(f"{method}: must return an Outcome, not {type(outcome).__name__}.")
    for name, part, shape in (("displacement", outcome.displacement, problem.shape), ("growth", outcome.growth, ())):
        found = list(part.shape) if isinstance(part, Tensor) else f"a {type(part).__name__}"
        if found != list(shape):
            raise UserError(f"{method}: the Outcome's {name} is {found}, and must be a tensor {list(shape)}.")


def judge(outcomes: Mapping[str, Outcome], agree: Callable[[Tensor], Tensor]) -> dict[str, Status]:
    """Status of each outcome, with a single wait for the device.

    Args:
        outcomes: Outcomes by name of the layer.
        agree: Makes the flags, a tensor, the same wherever the problems are solved together.
    """
    if not outcomes:
        return {}
    pairs = [torch.stack((torch.linalg.vector_norm(o.displacement), o.growth)) for o in outcomes.values()]
    flags = agree(torch.stack(pairs)).tolist()
    return {
        name: Status.NONFINITE if not math.isfinite(norm + growth) else Status.DIVERGED if growth > 0 else Status.SOLVED
        for name, (norm, growth) in zip(outcomes, flags, strict=True)
    }


def within_displacement(solution: Solution, bound: float) -> Solution:
    """A solution whose displacement is no longer than a part of the weights, or of PyTorch's first ones if larger.

    Args:
        solution: The solution.
        bound: The part.
    """
    problem, v = solution.problem, solution.displacement
    first = (problem.shape[0] / 3) ** 0.5  # expected norm of a matrix whose entries are uniform within 1/sqrt(d_in)
    size = torch.linalg.vector_norm(problem.start_matrix()).clamp_min(first)
    part = bound * size / torch.linalg.vector_norm(v).clamp_min(torch.finfo(v.dtype).tiny)
    return replace(solution, displacement=v * part.clamp_max(1.0))
