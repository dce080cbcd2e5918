"""Figures of a study: where every run ends, and how fast a search finds it."""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from locoprop_lightning.results.figure import GREY, logarithmic, save, style

OURS, RIVALS = "#D55E00", "#0072B2"


def _save(figure: Any, path: Path) -> None:
    for ending in (".svg", ".png"):
        save(figure, path.with_suffix(ending))


def draw_ends(values: Mapping[str, Sequence[float]], local: set[str], path: Path) -> None:
    """Draws a row a method, the best at the top: a mark for each seed, and a bar at their median.

    Args:
        values: Smoothed loss at the end of each run, by method, in the order of the rows.
        local: The methods that solve local losses; the others are the rivals.
        path: File to write; its PNG is written beside it.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.0 + 0.3 * len(values)), layout="constrained")
    axes = figure.add_subplot()
    for row, (name, losses) in enumerate(values.items()):
        finite = [value for value in losses if math.isfinite(value)]
        colour, mark = (OURS, "o") if name in local else (RIVALS, "s")
        axes.plot(finite, [row] * len(finite), mark, color=colour, markersize=5, alpha=0.8, linestyle="none")
        if finite:
            axes.plot([statistics.median(finite)], [row], "|", color=colour, markersize=14, markeredgewidth=2)
        if len(finite) < len(losses):
            axes.text(0.99, row, "not finite", transform=axes.get_yaxis_transform(), ha="right", va="center")
    axes.plot([], [], "o", color=OURS, label="local losses")
    axes.plot([], [], "s", color=RIVALS, label="gradient steps")
    axes.set_yticks(range(len(values)), list(values))
    axes.set_ylim(len(values) - 0.5, -0.5)
    axes.set_xscale("log")
    logarithmic(axes.xaxis)
    axes.set_xlabel("train loss at the last step (less is better)")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(loc="best", fontsize="small")
    _save(figure, path)


def draw_tuning(values: Mapping[str, Sequence[float]], focus: Sequence[str], path: Path) -> None:
    """Draws the best trial so far against the number of trials, a line a method.

    Args:
        values: The best of the first trials, NaN where there is none, by method [trials].
        focus: The methods that have a colour each; the others are grey.
        path: File to write; its PNG is written beside it.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for name in [*(one for one in values if one not in focus), *focus]:
        best = values[name]
        mark = "o" if len(best) == 1 else None  # a line needs two points
        look = style(focus.index(name)) if name in focus else {"color": GREY, "linewidth": 0.8}
        label = name if name in focus else "_"
        axes.plot(range(1, len(best) + 1), best, label=label, marker=mark, markersize=4, drawstyle="steps-post", **look)
    if len(focus) < len(values):
        axes.plot([], [], color=GREY, label="the others")
    if all(value > 0 for best in values.values() for value in best if math.isfinite(value)):
        axes.set_yscale("log")
        logarithmic(axes.yaxis)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("trials")
    axes.set_ylabel("best so far")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", handlelength=4, fontsize="small")
    _save(figure, path)
