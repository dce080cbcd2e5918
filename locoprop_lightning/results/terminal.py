"""A comparison in a terminal: its table, and curves of characters."""

from collections.abc import Sequence

import numpy as np

from locoprop_lightning.results.curves import Curve

_MARKS = 6  # characters that tell curves apart without colours


def for_terminal(rows: Sequence[Sequence[str]], width: int | None = None) -> str:
    """A table in aligned columns; where it is too wide, its ranges go on in further lines.

    Args:
        rows: Cells of the head and of each row.
        width: Columns of the terminal; asked of it if not given.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(width=width, highlight=False)
    for broken in (" (", ".."):  # a range below its median, then its two ends below each other
        columns = zip(*rows, strict=True)
        if sum(max(len(part) for cell in c for part in cell.splitlines()) + 2 for c in columns) - 2 <= console.width:
            break
        before, after = ("\n", "(") if broken == " (" else ("..\n", "")
        rows = [[first, *(cell.replace(broken, before + after) for cell in rest)] for first, *rest in rows]
        rows[0] = [title.replace(" ", "\n", 1) for title in rows[0]]
    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0), pad_edge=False, show_edge=False)
    for index, title in enumerate(rows[0]):
        shown.add_column(title, justify="right" if index else "left", overflow="fold", no_wrap=index > 0)
    for row in rows[1:]:
        shown.add_row(*row)
    with console.capture() as captured:
        console.print(shown)
    return "\n".join(line.rstrip() for line in captured.get().rstrip("\n").splitlines())


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
