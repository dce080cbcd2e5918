"""A comparison in a terminal: its table, and curves of characters."""

import sys
from collections.abc import Collection, Sequence
from textwrap import wrap
from typing import TYPE_CHECKING, Literal

import numpy as np

from locoprop_lightning.results.curves import Curve
from locoprop_lightning.results.table import markdown

if TYPE_CHECKING:
    from rich.table import Table

_GAP = 2  # columns between two of a table
_MARKS = 6  # characters that tell curves apart without colours


def as_shown(rows: Sequence[Sequence[str]], words: Collection[str] = ()) -> str:
    """A table for the output: in aligned columns where that is a terminal, else as Markdown.

    Args:
        rows: Cells of the head and of each row.
        words: Titles of columns beside the first that are set flush left.
    """
    return for_terminal(rows, words=words) if sys.stdout.isatty() else markdown(rows, words)


def for_terminal(rows: Sequence[Sequence[str]], width: int | None = None, words: Collection[str] = ()) -> str:
    """A table in aligned columns; where it is too wide, its ranges go on in further lines.

    Names, the first column, are broken between words alone: columns that find no room beside them go on below.

    Args:
        rows: Cells of the head and of each row.
        width: Columns of the terminal; asked of it if not given.
        words: Titles of columns beside the first that are set flush left.
    """
    from rich.console import Console

    console = Console(width=width, highlight=False)
    left = [index for index, title in enumerate(rows[0]) if index == 0 or title in words]
    if sum(_widths(rows)) - _GAP > console.width:
        rows = [[rows[0][0], *map(_broken, rows[0][1:])], *rows[1:]]
    for before, after in ((" (", "\n("), ("..", "..\n")):  # a range below its median, then its ends below each other
        if sum(_widths(rows)) - _GAP > console.width:
            body = ([first, *(cell.replace(before, after) for cell in rest)] for first, *rest in rows[1:])
            rows = [rows[0], *body]
    longest = max(len(word) for first, *_ in rows for word in first.split()) + _GAP
    parts: list[list[int]] = [[]]
    room = console.width + _GAP - longest
    for index, needed in enumerate(_widths(rows)[1:], 1):
        if parts[-1] and needed > room:
            parts.append([])
            room = console.width + _GAP - longest
        parts[-1].append(index)
        room -= needed
    with console.capture() as captured:
        for part in parts:
            console.print(_columns(rows, [0, *part], left))
            console.print()
    return "\n".join(line.rstrip() for line in captured.get().rstrip("\n").splitlines())


def _broken(title: str) -> str:
    """A title in lines, as many words as they hold in the last ones."""
    words = title.split()[::-1]
    lines = wrap(" ".join(words), max(max(map(len, words)) + 2, len(title) // 2))
    return "\n".join(" ".join(line.split()[::-1]) for line in lines[::-1])


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    """How wide each column is, with the gap after it."""
    return [max(len(part) for cell in c for part in cell.splitlines()) + _GAP for c in zip(*rows, strict=True)]


def _columns(rows: Sequence[Sequence[str]], shown: Sequence[int], left: Sequence[int]) -> "Table":
    """Some columns of a table."""
    from rich import box
    from rich.table import Table

    # The box has a column of its own between two.
    table = Table(box=box.SIMPLE_HEAD, padding=(0, _GAP - 1, 0, 0), pad_edge=False, show_edge=False)
    for index in shown:
        justify: Literal["left", "right"] = "left" if index in left else "right"
        table.add_column(rows[0][index], justify=justify, overflow="fold", no_wrap=index > 0)
    for row in rows[1:]:
        table.add_row(*(row[index] for index in shown))
    return table


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
