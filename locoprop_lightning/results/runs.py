"""A run, wherever it was recorded, and the series of one of its metrics."""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

LOSS, PACE, EPOCH = "train/loss", "time/step_ms", "epoch"
_ROUNDING = 1e-9  # relative; sums of the same durations in another order differ by less

Points = dict[int, tuple[float, float]]  # value and second of each step


@dataclass(frozen=True)
class Series:
    """A metric of a run over training.

    Attributes:
        steps: Steps at which it was taken, ascending, counted from 0 [points].
        values: The metric [points].
        seconds: Seconds until each of those steps was over, NaN where they are not known [points].
        beyond: What is read off after the end: None, or inf where training ended as its loss was not finite.
    """

    steps: np.ndarray
    values: np.ndarray
    seconds: np.ndarray
    beyond: float | None = None

    @property
    def last(self) -> float:
        """The last value."""
        return float(self.values[-1])

    def at(self, step: int) -> float | None:
        """The value at a step: the last one that was taken by then; None before the first.

        Args:
            step: The step, counted from 0.
        """
        return self._read(self.steps, step, step)

    def after(self, seconds: float) -> float | None:
        """The value of the last step that was over by then, None before the first and where seconds are not known.

        Args:
            seconds: Seconds of training.
        """
        return self._read(self.seconds, seconds * (1 + _ROUNDING), seconds * (1 - _ROUNDING))

    def _read(self, places: np.ndarray, latest: float, earliest: float) -> float | None:
        """The last value up to ``latest``; ``beyond`` where the series had ended before ``earliest``."""
        past = int(np.searchsorted(places, latest, side="right"))
        if past == 0:
            return None
        return self.beyond if places[-1] < earliest else float(self.values[past - 1])

    def smoothed(self, decay: float = 0.7) -> "Series":
        """The series of smoothed values.

        Args:
            decay: Share of the old value, in [0, 1).
        """
        return replace(self, values=smooth(self.values, decay))

    def bounded(self, worst: float) -> "Series":
        """The series with another value where one is not finite.

        Args:
            worst: That value.
        """
        return replace(self, values=np.where(np.isfinite(self.values), self.values, worst))


@dataclass
class Run:
    """One run, logged with TensorBoard or CSVLogger or stored by a benchmark.

    Attributes:
        scalars: Points by tag.
        folder: Folder of its files.
        settings: Settings by dotted name; empty where they are not known.
        label: Name of its method that the user gave, or "".
        shown: The run as the user knows it.
        timed: Whether seconds are those of training; else they are the clock's on the wall, from the first point on.
        stopped: Whether training ended as its loss was not finite.
        epoch_metrics: Metrics that were taken after each epoch, None where they were not finite, by name.
        ms_per_step: Milliseconds a step as recorded or measured apart, None where they are not known.
    """

    scalars: dict[str, Points]
    folder: Path
    settings: dict[str, Any] = field(default_factory=dict)
    label: str = ""
    shown: str = ""
    timed: bool = True
    stopped: bool = False
    epoch_metrics: dict[str, list[float | None]] = field(default_factory=dict)
    ms_per_step: float | None = None

    @property
    def seed(self) -> Any:
        """The seed, None if it is not known."""
        return self.settings.get("seed_everything")

    def series(self, tag: str) -> Series:
        """The series of a metric.

        Args:
            tag: Its tag.
        """
        points = sorted(self.scalars[tag].items())
        steps = np.array([step for step, _ in points])
        values, seconds = (np.array([point[part] for _, point in points], dtype=float) for part in (0, 1))
        return Series(steps, values, seconds, math.inf if self.stopped else None)

    def steps(self, tag: str) -> np.ndarray:
        """Steps at which a tag was logged, ascending, counted from 0 [points]."""
        return self.series(tag).steps

    def values(self, tag: str) -> np.ndarray:
        """Values of a tag, by step [points]."""
        return self.series(tag).values

    def seconds(self, tag: str) -> np.ndarray:
        """Seconds until each point of a tag [points]."""
        return self.series(tag).seconds

    def epochs(self, tag: str) -> np.ndarray:
        """Epochs passed at each point of a tag, estimated from the logged ``epoch``; one while there is but one."""
        epoch = self.scalars.get(EPOCH, {})
        firsts: dict[int, int] = {}
        for step in sorted(epoch):
            firsts.setdefault(int(epoch[step][0]), step)
        length = min((step / e for e, step in firsts.items() if e > 0), default=max(self.steps(tag)) + 1)
        return (self.steps(tag) + 1) / length

    def pace(self, tag: str) -> float | None:
        """Milliseconds a step by the seconds of its points, None where they are not known.

        Those on the wall count between the first point and the last.

        Args:
            tag: The tag whose points are counted.
        """
        series = self.series(tag)
        taken = series.steps[-1] + 1 if self.timed else series.steps[-1] - series.steps[0]
        return float(1000 * series.seconds[-1] / taken) if taken and math.isfinite(series.seconds[-1]) else None

    def epoch_metric(self, name: str, index: int) -> float | None:
        """A metric after an epoch; None where it was not taken, or not finite.

        Args:
            name: Its name.
            index: The epoch, counted from 0; -1 is the last one.
        """
        values = self.epoch_metrics.get(name) or []
        return values[index] if index < len(values) and values else None


def smooth(values: ArrayLike, decay: float = 0.7) -> np.ndarray:
    """s_0 = x_0, s = decay s + (1 - decay) x, over the points of a curve, without bias correction.

    A value that is not finite stands for itself, and is passed over by the values after it.

    Args:
        values: The curve, in order [points].
        decay: In [0, 1); 0.7 is the review's.
    """
    smoothed, last = [], None
    for value in np.asarray(values, dtype=float).tolist():
        if math.isfinite(value):
            last = value if last is None else decay * last + (1 - decay) * value
        smoothed.append(last if math.isfinite(value) else value)
    return np.array(smoothed, dtype=float)


def with_training_seconds(run: Run) -> Run:
    """A run whose points hold seconds on the wall, with seconds since training began instead.

    They are those of ``time/step_ms``, without validation; where a run has not logged it, those on the wall from the
    first point of a tag on.

    Args:
        run: The run.
    """
    timed = PACE in run.scalars
    scalars = {}
    for tag in run.scalars:
        series = run.series(tag)
        seconds = _training_seconds(series.steps, run.series(PACE)) if timed else series.seconds - series.seconds[0]
        points = zip(series.values.tolist(), seconds.tolist(), strict=True)
        scalars[tag] = dict(zip(series.steps.tolist(), points, strict=True))
    return replace(run, scalars=scalars, timed=timed)


def _training_seconds(steps: np.ndarray, logged: Series) -> np.ndarray:
    """Seconds until each step was over, by the logged paces in milliseconds a step [steps]."""
    ends, paces = logged.steps + 1, logged.values  # steps taken by then
    if steps[-1] >= ends[-1]:  # after the last one the pace is taken to last
        ends, paces = np.append(ends, steps[-1] + 1), np.append(paces, paces[-1])
    total = np.cumsum(np.diff(ends, prepend=0) * paces) / 1000
    return np.interp(steps + 1, np.concatenate([[0], ends]), np.concatenate([[0.0], total]))
