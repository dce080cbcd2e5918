"""Learning curves of methods, drawn for print and in a terminal."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from locoprop_lightning.errors import UserError
from locoprop_lightning.results.runs import Run
from locoprop_lightning.results.table import Curves

# Okabe and Ito's colours without yellow, which is faint on white; 7 colours and 5 dashes make 35 pairs.
COLOURS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("-", (0, (6, 2)), (0, (1, 1.2)), (0, (6, 2, 1, 2)), (0, (6, 1.5, 1, 1.5, 1, 1.5)))

AXES: dict[str, tuple[str, Callable[[Run, str], np.ndarray]]] = {
    "step": ("training step", Run.steps),
    "time": ("seconds of training", Run.seconds),
    "epoch": ("epochs", Run.epochs),
}


_PARTS = 150  # of a long curve in a figure, which would have megabytes else
_MARKS = 6  # characters that tell curves apart in a terminal without colours


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


def style(index: int) -> dict[str, Any]:
    """Colour and dashes of a line.

    Args:
        index: Its place in the legend.
    """
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": DASHES[index % len(DASHES)], "linewidth": 1.4}


def logarithmic(axis: Any) -> None:
    """Plain numbers at 1, 2, 3 and 5 of each decade of an axis whose scale is logarithmic.

    Args:
        axis: Matplotlib's axis.
    """
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def save(figure: Any, path: Path) -> None:
    """Writes a figure, whose SVG is the same whenever it is drawn.

    Args:
        figure: Matplotlib's figure.
        path: File to write; its ending names the format.
    """
    import matplotlib

    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "learning_curves"}):
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=150)


def thinned(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
    """Which points a figure needs of a long curve: those of its line, and where each part of its band begins.

    Of each part the lowest and the highest point are kept, so that no spike is lost, and the ends.

    Args:
        curve: The curve.
    """
    length = len(curve.x)
    starts = np.unique(np.linspace(0, length, min(length, _PARTS), endpoint=False).astype(int))
    if length <= 2 * _PARTS:
        return np.arange(length), np.arange(length)
    kept = {0, length - 1}
    for start, end in zip(starts, [*starts[1:], length], strict=True):
        part = curve.middle[start:end]
        kept |= {start + int(np.argmin(part)), start + int(np.argmax(part))}
    return np.array(sorted(kept)), starts


def check_format(path: Path) -> None:
    """Refuses a file whose ending names no format of a figure.

    Args:
        path: The file.

    Raises:
        UserError: Names it, and endings that do.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    if path.suffix[1:] not in FigureCanvasAgg.get_supported_filetypes():
        raise UserError(f"{path}: no format of a figure; take .svg, .png or .pdf.")


def draw(curves: dict[str, Curve], path: Path, xlabel: str, ylabel: str, log: bool = True) -> None:
    """Writes a figure: a line a method, and a band for the range of several runs.

    Lines differ in colour and in dashes, so that they can be told apart in grey and by the colour-blind; a curve that
    climbs far above where all begin leaves the frame.

    Args:
        curves: Curves by name, in the order of the legend.
        path: File to write; its ending names the format.
        xlabel: What the horizontal axis shows.
        ylabel: What the vertical axis shows.
        log: Whether the vertical axis is logarithmic.

    Raises:
        UserError: For an ending that names no format.
    """
    from matplotlib.figure import Figure

    if not curves:
        raise UserError(f"{path}: there is no curve to draw.")
    check_format(path)
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot()
    for index, (name, curve) in enumerate(curves.items()):
        look = style(index)
        label = name if np.isfinite(curve.middle[-1]) else f"{name} (non-finite)"
        line, starts = thinned(curve)
        axes.plot(curve.x[line], curve.middle[line], label=label, **look)
        if curve.runs > 1:
            low, high = np.minimum.reduceat(curve.low, starts), np.maximum.reduceat(curve.high, starts)
            axes.fill_between(curve.x[starts], low, high, color=look["color"], alpha=0.15, linewidth=0)
    if log:
        ends = [curve.middle[-1] for curve in curves.values()]
        most = max(*(curve.high[0] for curve in curves.values()), float(np.median(ends)))
        axes.set_yscale("log")
        if np.isfinite(most):
            axes.set_ylim(top=min(axes.get_ylim()[1], 1.5 * most))
        logarithmic(axes.yaxis)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", handlelength=4, fontsize="small")
    save(figure, path)


def draw_text(curves: dict[str, Curve], xlabel: str, ylabel: str, log: bool = True, colour: bool = False) -> str:
    """The median curves as text for a terminal of 80 columns or more.

    Args:
        curves: Curves by name.
        xlabel: What the horizontal axis shows.
        ylabel: What the vertical axis shows.
        log: Whether the vertical axis is logarithmic.
        colour: Whether lines differ in colour; else they differ in their characters.
    """
    from uniplot import plot_to_string

    curves = {name: curve for name, curve in curves.items() if np.isfinite(curve.middle).any()}
    if not curves:
        return "no value is finite"
    left_out = [] if colour else list(curves)[_MARKS:]
    curves = {name: curve for name, curve in curves.items() if name not in left_out}
    shown = {name: np.isfinite(curve.middle) for name, curve in curves.items()}
    text: str = plot_to_string(
        xs=[curve.x[shown[name]] for name, curve in curves.items()],
        ys=[curve.middle[shown[name]] for name, curve in curves.items()],
        legend_labels=list(curves),
        title=f"{ylabel} against {xlabel}",
        lines=True,
        y_as_log=log,
        color=colour,
        character_set="block" if colour else "ascii",
        width=70,
        height=22,
    )
    return text + (f"\n(without colours there is no mark left for {', '.join(left_out)})" if left_out else "")
