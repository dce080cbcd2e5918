"""The table of layers that a fit prints before its first step."""

from collections.abc import Mapping, Sequence
from textwrap import fill

from lightning.pytorch import Trainer
from rich.console import Console
from rich.table import Table

from locoprop_lightning.layers import LayerInfo

_NOTE, _NAME = 20, 10  # columns that a note, and the name of a layer, have at least


def print_layers(
    trainer: Trainer, layers: Sequence[LayerInfo], trained_by: Mapping[str, str], plain: bool = False
) -> None:
    """Prints name, kind, shape, transfer and who trains each layer, on the first process only.

    Args:
        trainer: The trainer.
        layers: What ``discover`` found.
        trained_by: Who trains a layer, by name; a layer that is missing is frozen.
        plain: Whether the layers are trained by back-propagation, where reasons for not being local say nothing.
    """
    if not trainer.is_global_zero:
        return
    rows = []
    for layer in layers:
        shapes = [tuple(p.shape) for p in layer.module.parameters(recurse=False)]
        rows.append(
            (
                layer.name or "(network)",
                type(layer.module).__name__,
                " + ".join("x".join(map(str, shape)) for shape in shapes),
                layer.transfer.name if layer.transfer is not None else "-",
                trained_by.get(layer.name, "nobody (frozen)"),
                "" if plain else layer.reason,
            )
        )
    # As text: where a row of progress is being shown, it is put above it.
    print(table_text(rows, Console().width))


def table_text(rows: Sequence[tuple[str, ...]], width: int) -> str:
    """The table as text; names of classes are never cut.

    Notes are a column where there is room for one, and stand below the table otherwise. A table that is still too wide
    folds the names of layers, and is wider than the terminal in the end.

    Args:
        rows: Layer, kind, shape, transfer, who trains it, note.
        width: Columns of the terminal.
    """
    heads = ("Layer", "Kind", "Shape", "Transfer", "Trained by", "Note")
    needed = [max(len(head), *(len(row[i]) for row in rows), 0) for i, head in enumerate(heads)]
    room = width - sum(needed[:5]) - 3 * 5 - 1  # a border and two spaces a column
    notes = any(row[5] for row in rows)
    beside = notes and room >= min(needed[5], _NOTE) + 3
    table = Table(title="Layers", title_justify="left")
    for index, head in enumerate(heads[: 6 if beside else 5]):
        folds = index == 5 or (index == 0 and room < 0)
        table.add_column(head, overflow="fold", no_wrap=not folds, min_width=None if folds else needed[index])
    for row in rows:
        table.add_row(*row[: 6 if beside else 5])
    least = sum(needed[1:5]) + 3 * 5 + 1 + min(needed[0], _NAME)
    console = Console(width=max(width, least))
    with console.capture() as captured:
        console.print(table)
    below: dict[str, list[str]] = {}
    for row in rows if notes and not beside else ():
        if row[5]:
            below.setdefault(row[5], []).append(row[0])
    told = [fill(f"{note}: {', '.join(names)}", width, subsequent_indent="  ") for note, names in below.items()]
    return "\n".join([captured.get().rstrip("\n"), *told])
