"""The table of layers that a fit prints before its first step, and that ``module.layers`` shows."""

import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from textwrap import fill

from lightning.pytorch import Trainer
from rich.console import Console
from rich.table import Table

from locoprop_lightning.errors import UserError, listed
from locoprop_lightning.layers import LayerInfo

_NOTE, _NAME = 20, 10  # columns that a note, and the name of a layer, have at least
COLUMNS = ("Layer", "Kind", "Shape", "Transfer", "Trained by", "Note")


class LayerTable:
    """Name, kind, shape, transfer and trainer of each layer, as a table at a prompt, in a notebook and in a log.

    A layer is had by its name or its number.

    Args:
        layers: What ``discover`` found.
        trained_by: Who trains a layer, by name; a layer that is missing is frozen.
        plain: Whether the layers are trained by back-propagation, where reasons for not being local say nothing.
    """

    def __init__(self, layers: Sequence[LayerInfo], trained_by: Mapping[str, str], plain: bool = False) -> None:
        self._layers = list(layers)
        self._trained_by = trained_by
        self._plain = plain

    def rows(self) -> list[tuple[str, ...]]:
        """The cells of each layer, in the order of ``COLUMNS``."""
        return [
            (
                layer.name or "(network)",
                type(layer.module).__name__,
                " + ".join("x".join(map(str, p.shape)) for p in layer.module.parameters(recurse=False)),
                layer.transfer.name if layer.transfer is not None else "-",
                self._trained_by.get(layer.name, "nobody (frozen)"),
                "" if self._plain else layer.reason,
            )
            for layer in self._layers
        ]

    def __len__(self) -> int:
        return len(self._layers)

    def __iter__(self) -> Iterator[LayerInfo]:
        return iter(self._layers)

    def __getitem__(self, key: int | str) -> LayerInfo:
        if isinstance(key, int) and -len(self) <= key < len(self):
            return self._layers[key]
        names = [layer.name for layer in self._layers]
        if key not in names:
            way = f"; names are texts, such as {names[0]!r}" if isinstance(key, int) and names else ""
            raise UserError(f"layers[{key!r}]: there is no such layer; there are {listed(names)}{way}.")
        return self._layers[names.index(str(key))]

    def __repr__(self) -> str:
        return table_text(self.rows(), Console().width)

    def _repr_html_(self) -> str:
        """The table as a notebook shows it."""
        rows = [COLUMNS, *self.rows()]
        cells = [(f"t{'d' if i else 'h'}", row) for i, row in enumerate(rows)]
        lines = ["".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in row) for tag, row in cells]
        return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def print_layers(
    trainer: Trainer, layers: Sequence[LayerInfo], trained_by: Mapping[str, str], plain: bool = False
) -> None:
    """Prints the table of layers, on the first process only.

    Args:
        trainer: The trainer.
        layers: As ``LayerTable`` takes them.
        trained_by: As ``LayerTable`` takes it.
        plain: As ``LayerTable`` takes it.
    """
    if trainer.is_global_zero:  # as text: where a row of progress is being shown, it is put above it
        print(LayerTable(layers, trained_by, plain))


def table_text(rows: Sequence[tuple[str, ...]], width: int) -> str:
    """The table as text; names of classes are never cut.

    Notes are a column where there is room for one, and stand below the table otherwise. A table that is still too wide
    has who trains a layer on several lines, then the names of layers, at their dots, and is in the end wider than the
    terminal.

    Args:
        rows: Layer, kind, shape, transfer, who trains it, note.
        width: Columns of the terminal.
    """
    needed = [max(len(head), *(len(row[i]) for row in rows), 0) for i, head in enumerate(COLUMNS)]
    borders = 3 * 5 + 1  # with two spaces a column
    if sum(needed[:5]) + borders > width:
        words = [len(word) for row in rows for word in row[4].split()]
        others = sum(needed[:4]) + borders
        needed[4] = max(len(COLUMNS[4]), *words, min(needed[4], width - others))
    room = width - sum(needed[:5]) - borders
    notes = any(row[5] for row in rows)
    beside = notes and room >= min(needed[5], _NOTE) + 3
    names = [_folded(row[0], max(needed[0] + min(room, 0), _NAME)) for row in rows]
    needed[0] = max(len(COLUMNS[0]), *(len(line) for name in names for line in name.splitlines()), 0)
    table = Table(title="Layers", title_justify="left")
    for index, head in enumerate(COLUMNS[: 6 if beside else 5]):
        least = None if index == 5 else needed[index]
        table.add_column(head, overflow="fold", no_wrap=index < 4, min_width=least)
    for name, row in zip(names, rows, strict=True):
        table.add_row(name, *row[1 : 6 if beside else 5])
    console = Console(width=max(width, sum(needed[:5]) + borders))
    with console.capture() as captured:
        console.print(table)
    below: dict[str, list[str]] = {}
    for row in rows if notes and not beside else ():
        if row[5]:
            below.setdefault(row[5], []).append(row[0])
    told = [fill(f"{note}: {', '.join(names)}", width, subsequent_indent="  ") for note, names in below.items()]
    return "\n".join([captured.get().rstrip("\n"), *told])


def _folded(name: str, width: int) -> str:
    """The name of a layer on lines that end before its dots, as far as a width allows."""
    lines = [""]
    for part in re.split(r"(?=\.)", name):
        if lines[-1] and len(lines[-1] + part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)
