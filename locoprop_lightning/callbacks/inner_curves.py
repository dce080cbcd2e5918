"""Inner curves in logs other than TensorBoard's."""

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

FILE = "inner_curves.csv"  # beside the metrics of a CSVLogger
_COLUMNS = ["step", "layer", "iteration", "loss"]


def write_inner_curves(
    loggers: Iterable[Logger], curves: Mapping[str, list[float]], image: np.ndarray, step: int
) -> None:
    """Writes the inner curves of a step to all loggers but TensorBoard's, each in its own way.

    A CSVLogger gets the file ``inner_curves.csv`` beside its metrics, a row an iteration; Weights & Biases the same as
    the table ``inner_curves``, and the image ``local_loss/heat_map``; any other logger a metric an iteration,
    ``inner/<layer>/<iteration>``.

    Args:
        loggers: The loggers of the first process.
        curves: Local losses of each layer before the first and after each iteration.
        image: The same as an image.
        step: The step.
    """
    rows = [(step, name, i, loss) for name, losses in curves.items() for i, loss in enumerate(losses)]
    for logger in loggers:
        if isinstance(logger, CSVLogger):
            path = Path(logger.log_dir) / FILE
            path.parent.mkdir(parents=True, exist_ok=True)
            new = not path.exists()
            with path.open("a", newline="") as stream:
                writer = csv.writer(stream, lineterminator="\n")
                writer.writerows([_COLUMNS, *rows] if new else rows)
        elif isinstance(logger, WandbLogger):
            logger.log_table("inner_curves", columns=_COLUMNS, data=[list(row) for row in rows], step=step)
            logger.log_image("local_loss/heat_map", [image], step=step)
        elif not isinstance(logger, TensorBoardLogger):
            logger.log_metrics({f"inner/{name}/{i}": loss for _, name, i, loss in rows}, step=step)
