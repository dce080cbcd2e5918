"""Learning curves of methods, drawn for print."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from locoprop_lightning.errors import UserError, listed, near_names
from locoprop_lightning.results.curves import Curve

# Okabe and Ito's colours without yellow, which is faint on white; 7 colours and 5 dashes make 35 pairs.
COLOURS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("-", (0, (6, 2)), (0, (1, 1.2)), (0, (6, 2, 1, 2)), (0, (6, 1.5, 1, 1.5, 1, 1.5)))

GREY = "#BBBBBB"  # of curves that are not in focus
_PARTS = 150  # of a long curve in a figure, which would have megabytes else


def style(index: int) -> dict[str, Any]:
    """Colour and dashes of a line.

    Args:
        index: Its place in the legend.
    """
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": DASHES[index % len(DASHES)], "linewidth": 1.4}


def logarithmic(axis: Any) -> None:
    """Plain numbers at 1, 2, 3 and 5 of each decade of an axis whose scale is logarithmic, at 1 and 3 of many decades.

    Args:
        axis: Matplotlib's axis, when its limits are known.
    """
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 3, 5) if high < 1e3 * low else (1, 3)))
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


def thinned(curve: Curve, parts: int = _PARTS) -> tuple[np.ndarray, np.ndarray]:
    """Which points a figure needs of a long curve: those of its line, and where each part of its band begins.

    Of each part the lowest and the highest point are kept, so that no spike is lost, and the ends.

    Args:
        curve: The curve.
        parts: How many parts it is cut into.
    """
    length = len(curve.x)
    starts = np.unique(np.linspace(0, length, min(length, parts), endpoint=False).astype(int))
    if length <= 2 * parts:
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


def check_focus(focus: Sequence[str], methods: Collection[str]) -> None:
    """Refuses the name of a method that is not there.

    Args:
        focus: The names.
        methods: The methods that are.

    Raises:
        UserError: Names it, and those that are like it, or all there are.
    """
    for name in focus:
        if name not in methods:
            known = near_names(name, methods) or f"; take one of {listed(methods, 12)}"
            raise UserError(f"focus={name}: there is no such method{known}.")


def draw(
    curves: dict[str, Curve], path: Path, xlabel: str, ylabel: str, log: bool = True, focus: Sequence[str] = ()
) -> None:
    """Writes a figure: a line a method, and a band for the range of several runs.

    Lines differ in colour and in dashes, so that they can be told apart in grey and by the colour-blind; a curve that
    climbs far above where all begin leaves the frame.

    Args:
        curves: Curves by name, in the order of the legend.
        path: File to write; its ending names the format.
        xlabel: What the horizontal axis shows.
        ylabel: What the vertical axis shows.
        log: Whether the vertical axis is logarithmic.
        focus: Methods that have a colour each and their names at the ends of their curves, while the others are grey.
            Without, all have colours, and a legend names them.

    Raises:
        UserError: For an ending that names no format, and where a method in focus has no curve.
    """
    from matplotlib.figure import Figure

    if not curves:
        raise UserError(f"{path}: there is no curve to draw.")
    check_format(path)
    check_focus(focus, curves)
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot()
    _draw_lines(axes, curves, focus or list(curves), log)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    if focus:
        _name_ends(axes, curves, focus)
    else:
        figure.legend(loc="outside right upper", handlelength=4, fontsize="small")
    save(figure, path)


def draw_families(
    curves: dict[str, Curve], families: Mapping[str, Sequence[str]], path: Path, xlabel: str, ylabel: str
) -> None:
    """Writes small multiples on common axes, two in a row: each has the methods of a family in colour, others in grey.

    Args:
        curves: Curves by name.
        families: Names of the methods of each family, by its title.
        path: File to write; its ending names the format.
        xlabel: What the horizontal axes show.
        ylabel: What the vertical axes show, which are logarithmic.

    Raises:
        UserError: For an ending that names no format, and where a method of a family has no curve.
    """
    from matplotlib.figure import Figure

    check_format(path)
    check_focus([name for names in families.values() for name in names], curves)
    rows = (len(families) + 1) // 2
    figure = Figure(figsize=(11, 3.2 * rows), layout="constrained")
    panels = figure.subplots(rows, 2, sharex=True, sharey=True, squeeze=False).ravel()
    for axes, (title, names) in zip(panels, families.items(), strict=False):
        _draw_lines(axes, curves, names, log=True, parts=_PARTS // 2)
        axes.set_title(title, fontsize="medium", loc="left")
    for axes, names in zip(panels, families.values(), strict=False):  # when all of them have made the common scale
        _name_ends(axes, curves, names)
    for axes in panels[len(families) :]:
        axes.set_axis_off()
    figure.supxlabel(xlabel, fontsize="medium")
    figure.supylabel(ylabel, fontsize="medium")
    save(figure, path)


def _draw_lines(axes: Any, curves: dict[str, Curve], focus: Sequence[str], log: bool, parts: int = _PARTS) -> None:
    """The lines, those in focus above the others, and the scale."""
    for name, curve in sorted(curves.items(), key=lambda item: item[0] in focus):
        line, starts = thinned(curve, parts if name in focus else parts // 4)
        if name not in focus:
            axes.plot(curve.x[line], curve.middle[line], color=GREY, linewidth=0.8)
            continue
        look = style(list(focus).index(name))
        axes.plot(curve.x[line], curve.middle[line], label=_label(name, curve), **look)
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
    axes.grid(alpha=0.3)


def _label(name: str, curve: Curve) -> str:
    return name if np.isfinite(curve.middle[-1]) else f"{name} (non-finite)"


def _name_ends(axes: Any, curves: dict[str, Curve], names: Sequence[str]) -> None:
    """Names of curves on the right, at the height of their ends, as far apart as letters need."""
    axes.margins(x=0)
    axes.autoscale_view()
    heights = {}
    for name in names:
        finite = np.flatnonzero(np.isfinite(curves[name].middle))
        end = (curves[name].x[finite[-1]], curves[name].middle[finite[-1]]) if len(finite) else (0, axes.get_ylim()[1])
        heights[name] = axes.transAxes.inverted().transform(axes.transData.transform(end))
    ranked = sorted(names, key=lambda name: heights[name][1])
    inches = 0.8 * axes.get_figure().get_figheight() / axes.get_gridspec().nrows  # height of the axes
    places = spread([heights[name][1] for name in ranked], gap=12 / 72 / inches)
    for name, place in zip(ranked, places, strict=True):
        colour = style(list(names).index(name))["color"]
        leader = {"arrowstyle": "-", "linewidth": 0.8, "linestyle": ":", "color": "#666666"}
        leader |= {"relpos": (0, 0.5), "shrinkA": 2, "shrinkB": 0}
        where = {"xycoords": "axes fraction", "textcoords": "axes fraction", "annotation_clip": False}
        end = (heights[name][0], min(heights[name][1], 1.0))
        text = {"text": _label(name, curves[name]), "color": colour, "va": "center", "fontsize": "small"}
        axes.annotate(xy=end, xytext=(1.03, place), arrowprops=leader, **text, **where)


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Heights in [0, 1] of labels that are to stand at others without covering each other.

    Args:
        heights: Where they would stand, the lowest first.
        gap: The least distance of two.
    """
    places = [min(max(height, 0.0), 1.0) for height in heights]
    for index in range(1, len(places)):
        places[index] = max(places[index], places[index - 1] + gap)
    if places:
        places[-1] = min(places[-1], 1.0)
    for index in range(len(places) - 2, -1, -1):
        places[index] = min(places[index], places[index + 1] - gap)
    return places
