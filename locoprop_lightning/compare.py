"""The command `locoprop-compare`: logged runs as a table, a figure, and curves in the terminal."""

import argparse
import math
import os
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from locoprop_lightning.errors import check_fraction, one_sentence
from locoprop_lightning.figure import Curve, draw, draw_text
from locoprop_lightning.runs import Run, by_method, read_runs, smooth

AXES: dict[str, tuple[str, Callable[[Run, str], np.ndarray]]] = {
    "step": ("training step", Run.steps),
    "time": ("seconds of training", Run.seconds),
    "epoch": ("epochs", Run.epochs),
}


def cell(values: Iterable[float | None], form: str) -> str:
    """Median, and the range of several values; '-' without any.

    Args:
        values: A value a run, None where it has none.
        form: Format of one, such as ".3f".
    """
    known = sorted(value for value in values if value is not None)
    if not known:
        return "-"
    middle, low, high = (
        format(value, form if abs(value) < 1e5 or form == ".0f" else ".3g") if math.isfinite(value) else "non-finite"
        for value in (statistics.median(known), known[0], known[-1])
    )
    return middle if len(known) == 1 or low == high else f"{middle} ({low}..{high})"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table: the first row is the head, and all columns but the first are set flush right."""
    head, *body = ("| " + " | ".join(row) + " |" for row in rows)
    return "\n".join([head, "|---|" + "---:|" * (len(rows[0]) - 1), *body])


def table(methods: dict[str, list[Run]], metric: str, share: float, rising: bool) -> str:
    """The table of some methods, the best at the end first.

    Args:
        methods: Runs by name of the method.
        metric: Tag of the metric.
        share: Share of the old value in the smoothing, 0 for none.
        rising: Whether more is better.
    """
    best = max if rising else min
    worst = -math.inf if rising else math.inf
    curves = {id(run): _shown(run, metric, share, worst) for runs in methods.values() for run in runs}
    seconds = {id(run): run.seconds(metric) for runs in methods.values() for run in runs}
    ends = [statistics.median(seconds[id(run)][-1] for run in runs) for runs in methods.values()]
    common = min((end for end in ends if end > 0), default=0.0)

    def timely(run: Run) -> float | None:
        past = np.searchsorted(seconds[id(run)], common * (1 + 1e-9), side="right")
        over = seconds[id(run)][-1] < common * (1 - 1e-9)
        return None if past == 0 or over else float(curves[id(run)][past - 1])

    said = f"smoothed by {share:g}" if share else "last"
    columns: dict[str, tuple[str, Callable[[Run], float | None]]] = {
        "last step": (".0f", lambda run: float(run.steps(metric)[-1])),
        "last": (".4g", lambda run: float(run.values(metric)[-1])),
        said: (".4g", lambda run: float(curves[id(run)][-1])),
        "best": (".4g", lambda run: float(best(curves[id(run)]))),
        f"at {common:.1f} s": (".4g", timely),
        "ms a step": (".1f", lambda run: _pace(run, metric)),
    }
    order = sorted(
        methods.items(),
        key=lambda item: statistics.median(curves[id(run)][-1] for run in item[1]) * (-1 if rising else 1),
    )
    rows = [["method", "runs", *columns]]
    for name, runs in order:
        rows.append([name, str(len(runs)), *(cell(map(value, runs), form) for form, value in columns.values())])
    return markdown(rows)


def _shown(run: Run, metric: str, share: float, worst: float) -> np.ndarray:
    """The smoothed curve of a run, with the worst value where it is not finite."""
    values = smooth(run.values(metric), share)
    return np.where(np.isfinite(values), values, worst)


def _pace(run: Run, metric: str) -> float | None:
    """Milliseconds a step; of a run that has not logged them, those between its first and its last point."""
    seconds, steps = run.seconds(metric), run.steps(metric)
    taken = steps[-1] + 1 if run.timed else steps[-1] - steps[0]
    return float(1000 * seconds[-1] / taken) if taken else None


def curve(runs: Sequence[Run], metric: str, share: float, axis: str) -> Curve:
    """Median and range of some runs of a method, at the steps that at least half of them have logged.

    Args:
        runs: The runs.
        metric: Tag of the metric.
        share: Share of the old value in the smoothing.
        axis: "step", "time" or "epoch".
    """
    logged = Counter(step for run in runs for step in run.scalars[metric])
    grid = np.array(sorted(step for step, count in logged.items() if 2 * count >= len(runs)))
    values, places = np.full((2, len(runs), len(grid)), np.nan)
    for run, row, place in zip(runs, values, places, strict=True):
        steps = run.steps(metric)
        own, common = np.isin(steps, grid), np.isin(grid, steps)
        row[common] = _shown(run, metric, share, np.inf)[own]
        place[common] = AXES[axis][1](run, metric)[own]
    middle, x = np.nanmedian(values, axis=0), np.nanmedian(places, axis=0)
    return Curve(x, middle, np.nanmin(values, axis=0), np.nanmax(values, axis=0), len(runs))


def _warn(methods: dict[str, list[Run]], metric: str, share: float) -> None:
    """Says what makes a comparison unfair."""
    runs = [run for members in methods.values() for run in members]
    gaps = {run.shown: int(np.median(np.diff(run.steps(metric)))) for run in runs if len(run.scalars[metric]) > 1}
    if share and len(set(gaps.values())) > 1:
        told = ", ".join(
            f"{gap} in {next(n for n, g in gaps.items() if g == gap)}" for gap in sorted(set(gaps.values()))
        )
        print(f"{metric} was logged at different steps ({told} apart), so that smoothing differs", file=sys.stderr)
    untimed = [run.shown for run in runs if not run.timed]
    if untimed:
        told = f"{untimed[0]}{' ...' if len(untimed) > 1 else ''}"
        print(
            f"no time/step_ms in {len(untimed)} of {len(runs)} runs ({told}), whose seconds contain validation",
            file=sys.stderr,
        )


def compare(options: argparse.Namespace) -> None:
    """Reads the runs, prints the table, and writes what was asked for."""
    metric = options.metric
    share = (0.7 if metric.startswith("train/") else 0.0) if options.smooth is None else options.smooth
    check_fraction("", smooth=share)
    methods = by_method(read_runs(options.runs, metric), metric)
    _warn(methods, metric, share)
    rising = "accuracy" in metric if options.mode is None else options.mode == "max"
    made = table(methods, metric, share, rising)
    print(made)
    if options.table:
        options.table.parent.mkdir(parents=True, exist_ok=True)
        options.table.write_text(made + "\n")
    if not (options.out or options.text):
        return
    curves = {name: curve(runs, metric, share, options.x) for name, runs in methods.items()}
    worst = -math.inf if rising else math.inf
    last = {name: c.middle[-1] if math.isfinite(c.middle[-1]) else worst for name, c in curves.items()}
    curves = {name: curves[name] for name in sorted(curves, key=lambda name: last[name], reverse=rising)}
    log = not rising and all((c.middle > 0).all() for c in curves.values())
    label = f"{metric}, smoothed by {share:g}" if share else metric
    for path in options.out:
        draw(curves, path, AXES[options.x][0], label, log)
        print(f"figure: {path}", file=sys.stderr)
    if options.text:
        colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        print(draw_text(curves, AXES[options.x][0], label, log, colour))


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = argparse.ArgumentParser(
        prog="locoprop-compare",
        description="Compares logged runs: a table on the terminal, and figures. Runs that differ in their seed alone "
        "are folded into median and range; a resumed run goes on where the one before was left.",
        epilog="locoprop-compare runs/digits --out figure.svg figure.png --table table.md",
    )
    text = "folder with TensorBoard logs at any depth; LABEL=FOLDER gives the runs below it a name of your own"
    parser.add_argument("runs", nargs="+", metavar="RUN", help=text)
    parser.add_argument("--metric", default="train/loss", metavar="TAG", help="what to compare (default: %(default)s)")
    text = "share of the old value in the smoothing s = S s + (1 - S) x (default: 0.7 for train/..., else 0)"
    parser.add_argument("--smooth", type=float, metavar="S", help=text)
    parser.add_argument("--x", choices=tuple(AXES), default="step", help="horizontal axis (default: step)")
    text = "figures to write; the ending says how: .svg, .png, .pdf"
    parser.add_argument("--out", type=Path, nargs="+", default=[], metavar="FILE", help=text)
    parser.add_argument("--table", type=Path, metavar="FILE.md", help="file to write the table to as well")
    parser.add_argument("--text", action="store_true", help="draw the curves in the terminal")
    text = "whether less or more is better (default: more for an accuracy, else less)"
    parser.add_argument("--mode", choices=("min", "max"), help=text)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; a mistake that the user can mend ends it with one sentence and status 2.

    Args:
        arguments: Arguments of the command; those of the process if not given.
    """
    with one_sentence("locoprop-compare"):
        compare(make_parser().parse_args(arguments))


if __name__ == "__main__":
    main()
