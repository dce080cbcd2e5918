"""The table of layers that a fit prints before its first step, and that ``module.layers`` shows."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from io import StringIO

from lightning.pytorch import Trainer
from rich.console import Console
from rich.table import Table

from locoprop_lightning.errors import UserError
from locoprop_lightning.layers import LayerInfo

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

    def table(self) -> Table:
        """The table as rich prints it."""
        table = Table(title="Layers", title_justify="left")
        for column in COLUMNS:
            table.add_column(column, overflow="fold")
        for row in self.rows():
            table.add_row(*row)
        return table

    def __len__(self) -> int:
        return len(self._layers)

    def __iter__(self) -> Iterator[LayerInfo]:
        return iter(self._layers)

    def __getitem__(self, key: int | str) -> LayerInfo:
        if isinstance(key, int):
            return self._layers[key]
        names = [layer.name for layer in self._layers]
        if key not in names:
            raise UserError(f"layers[{key!r}]: there is no such layer; there are {', '.join(names)}.")
        return self._layers[names.index(key)]

    def __repr__(self) -> str:
        stream = StringIO()
        Console(file=stream, width=Console().width).print(self.table())
        return stream.getvalue().rstrip()

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
    if trainer.is_global_zero:
        Console().print(LayerTable(layers, trained_by, plain).table())
