"""Tables of methods: cells, order, and the comparison of logged runs."""

import math
import statistics
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from locoprop_lightning.results.runs import Run, Series

T = TypeVar("T")


class Curves(NamedTuple):
    """A metric of a run, as it is and as it is compared.

    Attributes:
        run: The run.
        raw: The series as recorded.
        smoothed: The series smoothed, with the worst value where it is not finite.
    """

    run: Run
    raw: Series
    smoothed: Series


def cell(values: Iterable[float | None], form: str, none: str = "-") -> str:
    """Median, and the range of several values.

    Args:
        values: A value a run, None where it has none.
        form: Format of one, such as ".3f".
        none: What stands there without any.

    Example:
        >>> cell([0.5, 0.25, 1.0, None], ".2f"), cell([], ".2f")
        ('0.50 (0.25..1.00)', '-')
    """
    known = sorted(value for value in values if value is not None)
    if not known:
        return none
    middle, low, high = (
        format(value, form if abs(value) < 1e5 or form == ".0f" else ".3g") if math.isfinite(value) else "non-finite"
        for value in (statistics.median(known), known[0], known[-1])
    )
    return middle if len(known) == 1 or low == high else f"{middle} ({low}..{high})"


def markdown(rows: Sequence[Sequence[str]], words: Collection[str] = ()) -> str:
    """A Markdown table: the first row is the head, and all columns but the first are set flush right.

    Args:
        rows: Cells of each row.
        words: Titles of further columns that are set flush left.

    Example:
        >>> print(markdown([["method", "rate", "state"], ["adam", "0.1", "done"]], words=["state"]))
        | method | rate | state |
        |---|---:|---|
        | adam | 0.1 | done |
    """
    head, *body = ("| " + " | ".join(row) + " |" for row in rows)
    line = "".join("---|" if title in words else "---:|" for title in rows[0][1:])
    return "\n".join([head, f"|---|{line}", *body])


def rises(metric: str) -> bool:
    """Whether more of a metric is better, by its name.

    Args:
        metric: The name.
    """
    return "accuracy" in metric


def rank(value: float | None, rising: bool) -> float:
    """Sorts values from the best to the worst, with those that are none or NaN last.

    Args:
        value: The value.
        rising: Whether more is better.

    Example:
        >>> sorted([0.2, None, 0.9], key=lambda value: rank(value, rising=True))
        [0.9, 0.2, None]
    """
    if value is None or math.isnan(value):
        return math.inf
    return -value if rising else value


def best_first(
    methods: Mapping[str, Sequence[Run]], metric: str, decay: float, rising: bool = False
) -> dict[str, list[Curves]]:
    """Curves of the runs of some methods, the method with the best median at the end first.

    Args:
        methods: Runs by name of the method.
        metric: Tag of the metric.
        decay: Share of the old value in the smoothing, 0 for none.
        rising: Whether more is better.
    """
    worst = -math.inf if rising else math.inf
    curves: dict[str, list[Curves]] = {}
    for name, runs in methods.items():
        raw = [run.series(metric) for run in runs]
        smoothed = (series.smoothed(decay).bounded(worst) for series in raw)
        curves[name] = [Curves(*one) for one in zip(runs, raw, smoothed, strict=True)]
    ends = {name: statistics.median(c.smoothed.last for c in members) for name, members in curves.items()}
    return {name: curves[name] for name in sorted(curves, key=lambda name: rank(ends[name], rising))}


def method_rows(
    methods: Mapping[str, Sequence[T]],
    columns: Mapping[str, tuple[str, Callable[[T], float | None]]],
    counted: str = "runs",
    empty: bool = True,
    none: Mapping[str, str] | None = None,
) -> list[list[str]]:
    """The head and a row a method: how many runs it has, then cells with their median and range.

    Args:
        methods: Runs by name of the method.
        columns: Format and value of a run, by title.
        counted: Title of the column that counts them.
        empty: Whether columns are kept in which no run has a value.
        none: What stands in a column, by its title, where no run of the method has a value; "-" in others.
    """
    cells = {
        title: [cell(map(value, runs), form, (none or {}).get(title, "-")) for runs in methods.values()]
        for title, (form, value) in columns.items()
    }
    cells = {title: column for title, column in cells.items() if empty or set(column) != {"-"}}
    counts = [str(len(runs)) for runs in methods.values()]
    rows = zip(methods, counts, *cells.values(), strict=True)
    return [["method", counted, *cells], *map(list, rows)]


def comparison(methods: Mapping[str, Sequence[Run]], metric: str, decay: float, rising: bool) -> list[list[str]]:
    """The rows of `locoprop-compare`, the best at the end first; all its values of the metric are smoothed alike.

    "not yet" stands where no value of the metric had been logged by then, and "-" where the seconds are not known.

    Args:
        methods: Runs by name of the method.
        metric: Tag of the metric.
        decay: Share of the old value in the smoothing, 0 for none.
        rising: Whether more is better.
    """
    curves = best_first(methods, metric, decay, rising)
    best = max if rising else min
    ends = [statistics.median(c.raw.seconds[-1] for c in members) for members in curves.values()]
    common = min((end for end in ends if end > 0), default=0.0)
    columns: dict[str, tuple[str, Callable[[Curves], float | None]]] = {
        "last step": (".0f", lambda c: float(c.raw.steps[-1])),
        "last": (".4g", lambda c: c.smoothed.last),
        "best": (".4g", lambda c: float(best(c.smoothed.values))),
    }
    at = f"at {common:.1f} s"
    if common > 0:
        columns[at] = ".4g", lambda c: c.smoothed.after(common)
    columns["ms a step"] = ".1f", lambda c: c.run.pace(metric)
    return method_rows(curves, columns, none={at: "not yet"})
