"""Local losses in the logs."""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.tensorboard import SummaryWriter

from locoprop_lightning.callbacks.inner_curves import write_inner_curves
from locoprop_lightning.errors import check_counts, check_flags
from locoprop_lightning.local import LocalProblem
from locoprop_lightning.local_layer import Report, ends
from locoprop_lightning.observer import SolveObserver
from locoprop_lightning.solvers import Recording


class LocalLossMonitor(SolveObserver):
    """Logs what the solver did to each layer, as ``local_loss/<layer>/...``.

    ``first`` and ``last`` are the local loss a sample before and after the solve, ``reduction`` is the part of it that
    is gone. ``displacement`` is the norm of the applied displacement relative to the weights'; ``out_of_range`` is the
    fraction of targets outside the range of f. ``status/<name>`` counts solves that failed, and those that failed at
    first (``retried``).

    With TensorBoard, custom scalars lay these out by layer. Of logged steps, the first and those at 1, 2, 4, 8, ...
    times the interval are shown whole: the local losses over the inner iterations as a picture of curves, relative to
    their first (``local_loss/inner_curves``), as one of layers by iterations (``local_loss/heat_map``), and as the
    tensor ``inner/<layer>``, for those who read event files. With a CSVLogger the curves are in
    ``inner_curves.csv``, with Weights & Biases in the table ``inner_curves``, with any other logger the metrics
    ``inner/<layer>/<iteration>``.

    All this is computed on the logged steps alone: a value of the local loss costs about half an inner iteration, and a
    whole curve about as much as the solve. Nothing waits for the device on the others.

    Args:
        every_n_steps: Steps between two logged ones; the trainer's ``log_every_n_steps`` if not given, 0 for never.
        curves: Whether to show steps whole: pictures and tensors of the inner curves.
        histograms: Whether to log, where those are, how far targets lie from the outputs of f, T - f(A), as the
            histogram ``local_loss/<layer>/target_shift``. For LocoProp-S this is target minus pre-activation.

    Attributes:
        told: Whether it was said that there is no logger to take the local losses.
    """

    def __init__(self, every_n_steps: int | None = None, curves: bool = True, histograms: bool = False) -> None:
        if every_n_steps is not None:
            check_counts("LocalLossMonitor", 0, every_n_steps=every_n_steps)
        check_flags("LocalLossMonitor", curves=curves, histograms=histograms)
        self.every_n_steps = every_n_steps
        self.curves = curves
        self.histograms = histograms
        self.told = False
        self._laid_out = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lays the charts out once a fit; says where nothing takes the local losses."""
        self._laid_out = False
        if not self.told and not trainer.loggers and self._every(trainer) > 0:
            self.told = True
            rank_zero_warn(
                "LocalLossMonitor: the trainer has no logger to take the local losses; give it one, or take "
                "LocalLossHistory."
            )

    def recording(self, trainer: Trainer) -> Recording:
        """First and last losses on a step that is due, the whole curve where it is shown."""
        interval = self._interval(trainer)
        if interval is None:
            return Recording.NOTHING
        return Recording.CURVE if self.curves and _is_whole(interval) else Recording.ENDS

    def _interval(self, trainer: Trainer) -> int | None:
        """Which logged step this is, from 0; None where it is not logged."""
        every = self._every(trainer)
        due = bool(trainer.loggers) and every > 0 and trainer.global_step % every == 0
        return trainer.global_step // every if due else None

    def _every(self, trainer: Trainer) -> int:
        """Steps between two logged ones, 0 for never."""
        return trainer.log_every_n_steps if self.every_n_steps is None else self.every_n_steps  # type: ignore[attr-defined]

    def on_solved(
        self,
        trainer: Trainer,
        problems: Mapping[str, LocalProblem],
        reports: Mapping[str, Report],
        counts: Mapping[str, Mapping[str, int]],
    ) -> None:
        """Writes what was recorded."""
        interval, step = self._interval(trainer), trainer.global_step
        if interval is None:  # another process, or another observer, records
            return
        parts = [part for r in reports.values() for part in (r.losses, r.displacement[None], r.out_of_range[None])]
        table = iter(torch.cat(parts).tolist() if parts else [])  # one wait for all layers
        values: dict[str, float] = {}
        curves = {}
        for name, report in reports.items():
            curves[name] = losses = [next(table) for _ in report.losses]
            values |= {f"local_loss/{name}/{key}": value for key, value in ends(losses).items()}
            values[f"local_loss/{name}/displacement"] = next(table)
            values[f"local_loss/{name}/out_of_range"] = next(table)
        for name, failed in counts.items():
            values |= {f"local_loss/{name}/status/{status}": count for status, count in failed.items()}
        for logger in trainer.loggers:
            logger.log_metrics(values, step=step)
        others = [one for one in trainer.loggers if not isinstance(one, TensorBoardLogger)]
        if others and curves and self.curves and _is_whole(interval) and trainer.is_global_zero:
            write_inner_curves(others, curves, partial(heat_map, curves), step)
        for writer in _writers(trainer) if curves else ():
            if not self._laid_out:
                writer.add_custom_scalars(layout(curves))
            if _is_whole(interval) and self.curves:
                _write_curves(writer, curves, step)
            if _is_whole(interval) and self.histograms:
                _write_histograms(writer, problems, step)
        self._laid_out = self._laid_out or bool(curves)


def _is_whole(interval: int) -> bool:
    """Whether a logged step is shown whole: 0 and the powers of 2 are."""
    return interval == 0 or interval.bit_count() == 1


def layout(layers: Iterable[str]) -> dict[str, dict[str, list[Any]]]:
    """The layout of TensorBoard's Custom Scalars tab: a chart a layer, one of all layers, and the time of a step.

    Lines of a run share its colour, so that a layer's chart is a band: its upper edge is the first value, the line in
    it the last.

    Args:
        layers: Names of the layers.
    """
    by_layer = {}
    for name in reversed([*layers]):  # TensorBoard draws charts from the last to the first
        first, last = f"local_loss/{name}/first", f"local_loss/{name}/last"
        by_layer[f"Layer {name}: before (edge) and after (line)"] = ["Margin", [last, last, first]]
    return {
        "Local loss": by_layer,
        "All layers": {"Local loss after the solve": ["Multiline", ["^local_loss/.*/last$"]]},
        "Time": {"Milliseconds a step": ["Multiline", ["^time/step_ms$"]]},
    }


def _writers(trainer: Trainer) -> list[SummaryWriter]:
    """The writers of TensorBoard on the first process."""
    loggers = trainer.loggers if trainer.is_global_zero else []
    return [logger.experiment for logger in loggers if isinstance(logger, TensorBoardLogger)]


def _write_curves(writer: SummaryWriter, curves: Mapping[str, list[float]], step: int) -> None:
    """The inner curves of a step, none as a run of its own: TensorBoard selects no run at all where there are many."""
    for name, losses in curves.items():
        writer.add_tensor(f"inner/{name}", torch.tensor(losses), step)
    writer.add_image("local_loss/inner_curves", curve_picture(curves, step), step, dataformats="HWC")
    writer.add_image("local_loss/heat_map", heat_map(curves), step, dataformats="HWC")


def _write_histograms(writer: SummaryWriter, problems: Mapping[str, LocalProblem], step: int) -> None:
    """How far the targets of this process lie from the outputs of f."""
    for name, problem in problems.items():
        shift = -problem.lambda_a * problem.direction
        shift = shift[shift.isfinite()]
        if shift.numel():  # else there is nothing that a histogram could show
            writer.add_histogram(f"local_loss/{name}/target_shift", shift, step)


def curve_picture(curves: Mapping[str, list[float]], step: int) -> np.ndarray:
    """Local losses over the inner iterations, relative to their first, a line a layer [height, width, 3], 8 bits.

    The axis is logarithmic where a loss climbs above three times its first. The legend names as many layers as it has
    room for.

    Args:
        curves: Local losses of each layer before the first and after each iteration [T + 1].
        step: The training step, for the title.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 3.6), dpi=80)
    axes = figure.add_axes((0.12, 0.14, 0.7, 0.76))
    ratios = {name: np.array(losses) / losses[0] for name, losses in curves.items() if losses[0]}
    finite = {name: np.where(np.isfinite(ratio), ratio, np.nan) for name, ratio in ratios.items()}
    if any((ratio > 3).any() for ratio in finite.values()):
        axes.set_yscale("symlog", linthresh=1)
    for index, (name, ratio) in enumerate(finite.items()):
        colour = colormaps["viridis"](0.9 * index / max(1, len(finite) - 1))
        axes.plot(ratio, color=colour, marker="." if len(ratio) < 30 else None, label=name)
    axes.set(title=f"Step {step}", xlabel="inner iteration", ylabel="local loss / first")
    axes.grid(alpha=0.3)
    rows = 18  # of names that have room beside the axes
    columns = max(1, -(-len(finite) // rows))
    if finite:
        axes.legend(
            *(part[: 2 * rows] for part in axes.get_legend_handles_labels()),
            loc="upper left",
            bbox_to_anchor=(1.01, 1),
            borderaxespad=0,
            fontsize="x-small",
            frameon=False,
            title="layer",
            ncols=min(2, columns),
        )
    return _pixels(figure)


def heat_map(curves: Mapping[str, list[float]]) -> np.ndarray:
    """An image of the local losses relative to their first, layers by iterations [height, width, 3], 8 bits.

    Red is above the first, black is not finite.

    Args:
        curves: Local losses of each layer before the first and after each iteration [T + 1].
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    longest = max(map(len, curves.values()))
    ratios = np.full((len(curves), longest), np.nan)
    for row, losses in zip(ratios, curves.values(), strict=True):
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
    low = min(np.nanmin(ratios[np.isfinite(ratios)], initial=1.0), 0.999)
    colours = colormaps["viridis"].with_extremes(over="red", bad="black")
    image = axes.imshow(ratios, aspect="auto", cmap=colours, vmin=low, vmax=1)
    axes.set_yticks(range(len(curves)), list(curves), fontsize="small")
    axes.set_xticks(range(0, longest, max(1, longest // 10)))
    axes.set_xlabel("inner iteration")
    figure.colorbar(image, cax=scale, label="local loss / first", extend="max")
    return _pixels(figure)


def _pixels(figure: Any) -> np.ndarray:
    """A figure of matplotlib as an image [height, width, 3], 8 bits."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]
