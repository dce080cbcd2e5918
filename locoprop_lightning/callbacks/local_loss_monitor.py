"""Local losses in the logs."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard import SummaryWriter

from locoprop_lightning.errors import check_counts
from locoprop_lightning.module import LocoPropModule


class LocalLossMonitor(Callback):
    """Logs what the solver did to each layer, as ``local_loss/<layer>/...``.

    ``first`` and ``last`` are the local loss a sample before and after the solve, ``reduction`` is the part of it that
    is gone. ``displacement`` is the norm of the applied displacement relative to the weights'; ``out_of_range`` is the
    fraction of targets outside the range of f. ``status/<name>`` counts solves that failed, and those that failed at
    first (``retried``).

    With TensorBoard, custom scalars lay these out by layer. Of logged steps, the first and those at 1, 2, 4, 8, ...
    times the interval are shown whole: the local loss over the inner iterations as the run ``inner/step_<n>`` with a
    curve ``inner/<layer>`` a layer, and as one image, layers by iterations (``local_loss/heat_map``).

    All this is computed on the logged steps alone: a value of the local loss costs about half an inner iteration, and a
    whole curve about as much as the solve. Nothing waits for the device on the others.

    Args:
        every_n_steps: Steps between two logged ones; the trainer's ``log_every_n_steps`` if not given, 0 for never.
        curves: Whether to show inner curves and the image.
        histograms: Whether to log, where those are, how far targets lie from the outputs of f, T - f(A), as the
            histogram ``local_loss/<layer>/target_shift``; for LocoProp-S this is target minus pre-activation.
    """

    def __init__(self, every_n_steps: int | None = None, curves: bool = True, histograms: bool = False) -> None:
        if every_n_steps is not None:
            check_counts("LocalLossMonitor", 0, every_n_steps=every_n_steps)
        self.every_n_steps = every_n_steps
        self.curves = curves
        self.histograms = histograms
        self._laid_out = self._whole = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        self._laid_out = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Asks the module to record on a step that is due."""
        if not isinstance(pl_module, LocoPropModule):
            return
        every: int = trainer.log_every_n_steps if self.every_n_steps is None else self.every_n_steps  # type: ignore[attr-defined]
        step = trainer.global_step
        pl_module.record_losses = bool(trainer.loggers) and every > 0 and step % every == 0
        count = step // every if pl_module.record_losses else -1
        self._whole = count == 0 or (count > 0 and count.bit_count() == 1)  # 0 or a power of 2
        pl_module.solver.whole_curves = self._whole and self.curves

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Writes the histograms, while the problems are there."""
        if not (isinstance(pl_module, LocoPropModule) and pl_module.record_losses and self._whole and self.histograms):
            return
        for writer in _writers(trainer):
            for name, problem in pl_module.problems.items():
                shift = -problem.lambda_a * problem.direction
                shift = shift[shift.isfinite()]
                if shift.numel() == 0:  # nothing that a histogram could show
                    continue
                writer.add_histogram(f"local_loss/{name}/target_shift", shift, trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Writes what was recorded."""
        if not isinstance(pl_module, LocoPropModule) or not pl_module.record_losses:
            return
        values: dict[str, float] = {}
        solver, step = pl_module.solver, trainer.global_step - 1
        curves = {}
        parts = [
            part for r in solver.reports.values() for part in (r.losses, r.displacement[None], r.out_of_range[None])
        ]
        table = iter(torch.cat(parts).tolist() if parts else [])  # one wait for all layers
        for name, report in solver.reports.items():
            curves[name] = losses = [next(table) for _ in report.losses]
            first, last = losses[0], losses[-1]
            values[f"local_loss/{name}/first"] = first
            values[f"local_loss/{name}/last"] = last
            values[f"local_loss/{name}/reduction"] = 1 - last / first if first else 0.0
            values[f"local_loss/{name}/displacement"] = next(table)
            values[f"local_loss/{name}/out_of_range"] = next(table)
        for name, counts in solver.counts.items():
            values |= {f"local_loss/{name}/status/{status}": count for status, count in counts.items()}
        for logger in trainer.loggers:
            logger.log_metrics(values, step=step)
        for writer in _writers(trainer) if curves else ():
            if not self._laid_out:
                writer.add_custom_scalars(layout(curves))
            if self.curves and self._whole:
                _write_curves(writer, curves, step)
        self._laid_out = self._laid_out or bool(curves)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leaves nothing switched on."""
        if isinstance(pl_module, LocoPropModule):
            pl_module.record_losses, pl_module.solver.whole_curves = False, True

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:  # noqa: D102
        self.on_fit_end(trainer, pl_module)


def layout(layers: Iterable[str]) -> dict[str, dict[str, list[Any]]]:
    """The layout of TensorBoard's Custom Scalars tab: a chart a layer, one of all layers, and the time of a step.

    Args:
        layers: Names of the layers.
    """
    by_layer = {}
    for name in layers:
        tag = re.escape(f"local_loss/{name}/")
        by_layer[name] = ["Multiline", [f"^{tag}first$", f"^{tag}last$"]]
    return {
        "Local loss": by_layer,
        "All layers": {"last": ["Multiline", ["^local_loss/.*/last$"]]},
        "Time": {"milliseconds a step": ["Multiline", ["^time/step_ms$"]]},
    }


def _writers(trainer: Trainer) -> list[SummaryWriter]:
    """The writers of TensorBoard on the first process."""
    loggers = trainer.loggers if trainer.is_global_zero else []
    return [logger.experiment for logger in loggers if isinstance(logger, TensorBoardLogger)]


def _write_curves(writer: SummaryWriter, curves: Mapping[str, list[float]], step: int) -> None:
    """The inner curves of a step as a run of its own, and as an image."""
    with SummaryWriter(Path(writer.log_dir) / "inner" / f"step_{step}") as inner:
        for name, losses in curves.items():
            for iteration, loss in enumerate(losses):
                inner.add_scalar(f"inner/{name}", loss, iteration)
    writer.add_image("local_loss/heat_map", heat_map(curves), step, dataformats="HWC")


def heat_map(curves: Mapping[str, list[float]]) -> np.ndarray:
    """An image of the local losses relative to their first, layers by iterations [height, width, 3], 8 bits.

    Red is above the first, black is not finite.

    Args:
        curves: Local losses of each layer before the first and after each iteration [T + 1].
    """
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    longest = max(map(len, curves.values()))
    shares = np.full((len(curves), longest), np.nan)
    for row, losses in zip(shares, curves.values(), strict=True):
        row[: len(losses)] = np.array(losses) / losses[0] if losses[0] else 1.0
    # Placed by hand, in inches: matplotlib's layout engine takes longer than everything else here.
    left, bottom, cell_width, cell_height = 0.3 + 0.08 * max(map(len, curves)), 0.5, 0.35, 0.25
    width, height = cell_width * longest, cell_height * len(curves)
    whole = left + width + 1.2, bottom + height + 0.2
    figure = Figure(figsize=whole, dpi=80)
    axes, scale = (
        figure.add_axes((x / whole[0], bottom / whole[1], w / whole[0], height / whole[1]))
        for x, w in ((left, width), (left + width + 0.2, 0.15))
    )
    low = min(np.nanmin(shares[np.isfinite(shares)], initial=1.0), 0.999)
    colours = colormaps["viridis"].with_extremes(over="red", bad="black")
    image = axes.imshow(shares, aspect="auto", cmap=colours, vmin=low, vmax=1)
    axes.set_yticks(range(len(curves)), list(curves), fontsize="small")
    axes.set_xticks(range(0, longest, max(1, longest // 10)))
    axes.set_xlabel("inner iteration")
    figure.colorbar(image, cax=scale, label="local loss / first", extend="max")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]
