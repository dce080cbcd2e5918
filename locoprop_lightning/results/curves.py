"""The curve of a method: median and range of its runs."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from locoprop_lightning.results.runs import Run
from locoprop_lightning.results.table import Curves

AXES: dict[str, tuple[str, Callable[[Run, str], np.ndarray]]] = {
    "step": ("training step", Run.steps),
    "time": ("seconds of training", Run.seconds),
    "epoch": ("epochs", Run.epochs),
}


class Curve(NamedTuple):
    """The curve of a method.

    Attributes:
        x: Horizontal positions [points].
        middle: Median over the runs [points].
        low: Lowest of the runs [points].
        high: Highest of the runs [points].
        runs: How many there are.
    """

    x: np.ndarray
    middle: np.ndarray
    low: np.ndarray
    high: np.ndarray
    runs: int

    def until(self, end: float) -> "Curve":
        """The curve as far as a horizontal position.

        Args:
            end: The position.
        """
        kept = self.x <= end
        return Curve(self.x[kept], self.middle[kept], self.low[kept], self.high[kept], self.runs)


def fold(x: np.ndarray, values: np.ndarray) -> Curve:
    """Median and range of some runs of a method.

    Args:
        x: Horizontal positions [points].
        values: Values of each run, NaN where it has none [runs, points].
    """
    return Curve(x, np.nanmedian(values, axis=0), np.nanmin(values, axis=0), np.nanmax(values, axis=0), len(values))


def fold_runs(runs: Sequence[Run], metric: str, decay: float, axis: str) -> Curve:
    """Median and range of some runs of a method, at the steps that at least half of them have logged.

    Args:
        runs: The runs.
        metric: Tag of the metric.
        decay: Share of the old value in the smoothing.
        axis: "step", "time" or "epoch".
    """
    logged = Counter(step for run in runs for step in run.scalars[metric])
    grid = np.array(sorted(step for step, count in logged.items() if 2 * count >= len(runs)))
    values, places = np.full((2, len(runs), len(grid)), np.nan)
    for run, row, place in zip(runs, values, places, strict=True):
        series = run.series(metric).smoothed(decay).bounded(np.inf)
        own, common = np.isin(series.steps, grid), np.isin(grid, series.steps)
        row[common] = series.values[own]
        place[common] = AXES[axis][1](run, metric)[own]
    return fold(np.nanmedian(places, axis=0), values)


def fold_whole(members: Sequence[Curves], axis: str) -> Curve | None:
    """Median and range of the smoothed losses of a method's runs, step by step, as far as all whole runs come.

    Args:
        members: The runs; those that stopped early are whole where no other is there.
        axis: "step", or "time" for seconds, the median over the runs; None where they are not known.
    """
    whole = [len(c.raw.steps) for c in members if not c.run.stopped]
    length = min(whole, default=max(len(c.raw.steps) for c in members))
    x = np.arange(length, dtype=float)
    if axis == "time":
        clocks = [c.raw.seconds[:length] for c in members if len(c.raw.steps) >= length]
        if not np.isfinite(clocks).all():
            return None
        x = np.median(clocks, axis=0)
    return fold(x, np.array([[c.smoothed.at(step) for step in range(length)] for c in members], dtype=float))
