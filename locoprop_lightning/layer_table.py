"""The table of layers that a fit prints before its first step."""

from collections.abc import Mapping, Sequence

from lightning.pytorch import Trainer
from rich.console import Console
from rich.table import Table

from locoprop_lightning.layers import LayerInfo


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
    table = Table(title="Layers", title_justify="left")
    for column in ("Layer", "Kind", "Shape", "Transfer", "Trained by", "Note"):
        table.add_column(column, overflow="fold")
    for layer in layers:
        shapes = [tuple(p.shape) for p in layer.module.parameters(recurse=False)]
        table.add_row(
            layer.name or "(network)",
            type(layer.module).__name__,
            " + ".join("x".join(map(str, shape)) for shape in shapes),
            layer.transfer.name if layer.transfer is not None else "-",
            trained_by.get(layer.name, "nobody (frozen)"),
            "" if plain else layer.reason,
        )
    Console().print(table)
