"""Lambdas and iterations that change during a fit."""

import math
from bisect import bisect_right
from collections.abc import Mapping
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer

from locoprop_lightning.errors import UserError, check_choice, check_counts, check_object, check_strength
from locoprop_lightning.module import LocoPropModule
from locoprop_lightning.reprs import Shown
from locoprop_lightning.settings import Scheduled


class LocalSchedule(Shown, Callback):
    """Changes lambda_a, lambda_r and the solver's iterations by the step of the fit.

    Each is given as values by step, from 0: ``lambda_a={0: 1, 500: 0.1}``. For the lambdas they are factors, of the
    module's settings and of its ``overrides`` alike; for the iterations numbers. What holds at a step depends on its
    number alone, so that a resumed fit goes on with it, and one that is resumed with other values takes those.

    Where a solver keeps its inverse for several steps, each new lambda_r makes it anew: take "constant" there.

    Args:
        lambda_a: Factors by step; nothing is changed if not given.
        lambda_r: Factors by step.
        iterations: Iterations by step, at least 1.
        between: What holds between two of these steps: "constant", the value of the first; "linear", or "exponential"
            for a constant ratio from step to step. Iterations are rounded.

    Example:
        >>> LocalSchedule(lambda_a={0: 1, 10: 0.5}, between="linear").at(5)
        Scheduled(lambda_a=0.75, lambda_r=1.0, iterations=None)
    """

    def __init__(
        self,
        lambda_a: dict[int, float] | None = None,
        lambda_r: dict[int, float] | None = None,
        iterations: dict[int, int] | None = None,
        between: Literal["constant", "linear", "exponential"] = "constant",
    ) -> None:
        check_choice("LocalSchedule", ("constant", "linear", "exponential"), between=between)
        given = {"lambda_a": lambda_a, "lambda_r": lambda_r, "iterations": iterations}
        if not any(points is not None for points in given.values()):
            raise UserError(
                f"LocalSchedule: changes nothing; give one of {', '.join(given)}, such as {{0: 1, 500: 0.1}}."
            )
        for name, points in given.items():
            if points is None:
                continue
            check_object("LocalSchedule", Mapping, "values by step, such as {0: 1, 500: 0.1}", **{name: points})
            if not points:
                raise UserError(f"LocalSchedule({name}={points}): give values by step, such as {{0: 1, 500: 0.1}}.")
            check_counts("LocalSchedule", 0, **{f"step of {name}": step for step in points})
            if 0 not in points:
                raise UserError(f"LocalSchedule({name}={points}): has no value for step 0; add one, such as 0: 1.")
            for step, value in points.items():
                setting: dict[str, Any] = {f"{name}[{step}]": value}
                if name == "iterations":
                    check_counts("LocalSchedule", 1, **setting)
                else:
                    check_strength("LocalSchedule", **setting)
        self.lambda_a, self.lambda_r, self.iterations = lambda_a, lambda_r, iterations
        self.between = between

    def at(self, step: int) -> Scheduled:
        """What holds at a step of the fit, from 0."""
        iterations = self._value(self.iterations, step)
        return Scheduled(
            lambda_a=self._value(self.lambda_a, step) or 1.0,
            lambda_r=self._value(self.lambda_r, step) or 1.0,
            iterations=None if iterations is None else round(iterations),
        )

    def _value(self, points: Mapping[int, Any] | None, step: int) -> float | None:
        """The value at a step, None where there are no points."""
        if points is None:
            return None
        steps = sorted(points)
        index = bisect_right(steps, step)
        low, high = steps[index - 1], steps[min(index, len(steps) - 1)]
        a, b = float(points[low]), float(points[high])
        if self.between == "constant" or high == low:
            return a
        part = (step - low) / (high - low)
        return a + part * (b - a) if self.between == "linear" else math.exp(math.log(a) + part * math.log(b / a))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses a module without local layers, and a solver without iterations.

        Raises:
            UserError: Names it.
        """
        if not isinstance(pl_module, LocoPropModule):
            raise UserError(f"LocalSchedule: {type(pl_module).__name__} has no lambdas; take it with LocoPropModule.")
        pl_module.engine.schedule(self.at(trainer.global_step))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Says what holds in this step."""
        assert isinstance(pl_module, LocoPropModule)
        pl_module.engine.schedule(self.at(trainer.global_step))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leaves the module as it was."""
        if isinstance(pl_module, LocoPropModule):
            pl_module.engine.schedule(Scheduled())
