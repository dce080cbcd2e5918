"""What a sweep found: tables, the best configuration, importances and plots."""

import argparse
import csv
import math
import shlex
from pathlib import Path
from typing import Any

import optuna
import yaml
from ray.tune import Result, ResultGrid

from locoprop_lightning.errors import UserError
from locoprop_lightning.results.names import tails, trial_number
from locoprop_lightning.results.table import rank
from locoprop_lightning.tune.space import Space, shown
from locoprop_lightning.tune.sweep import TIME, folder_of
from locoprop_lightning.tune.trial import reached

_STATUSES = ("done", "stopped early", "failed")  # the best first


class Outcome:
    """A trial as it ended.

    Args:
        result: What Tune keeps of it.
        metric: Name of the sweep's metric.
        folder: Folder of the sweep.
        epochs: Epochs of a trial that was not stopped early.
    """

    def __init__(self, result: Result, metric: str, folder: Path, epochs: int) -> None:
        self.name = Path(result.path).name
        metrics = dict(result.metrics or {})
        own = reached(folder / self.name)
        if own.get(TIME, 0) > metrics.get(TIME, 0):  # Tune may lose the last report of a trial of several workers
            metrics |= own
        self.values: dict[str, Any] = dict(result.config or {})
        self.epoch = int(metrics.get(TIME, 0))
        self.value: float | None = metrics.get(metric)
        self.metrics = {name: value for name, value in metrics.items() if name.split("/")[0] in ("train", "val")}
        self.seconds = float(metrics.get("time_total_s", 0.0))
        message = "" if result.error is None else str(result.error).strip().splitlines()[-1]
        self.error = message.removeprefix(f"{UserError.__module__}.{UserError.__name__}: ")
        self.status = "failed" if self.error else "done" if self.epoch >= epochs else "stopped early"
        self.config = min((folder / self.name).glob("seed_*/config.yaml"), default=None, key=_seed)

    @property
    def replay(self) -> str:
        """The command that trains it again, with its first seed."""
        return "" if self.config is None else f"locoprop fit --config {shlex.quote(str(self.config))}"


def _seed(path: Path) -> int:
    return int(path.parent.name.removeprefix("seed_"))


def outcomes(grid: ResultGrid, options: argparse.Namespace, epochs: int) -> list[Outcome]:
    """All trials of a sweep, the best first; those that were stopped early come after those that were not."""
    folder = folder_of(options)
    found = [
        Outcome(result, options.metric, folder, epochs * options.seeds)
        for result in (grid[index] for index in range(len(grid)))
    ]
    rising = options.mode == "max"
    return sorted(found, key=lambda o: (_STATUSES.index(o.status), rank(o.value, rising)))


def write(found: list[Outcome], space: Space, options: argparse.Namespace) -> list[str]:
    """Writes results.csv, best.yaml and the plots into the folder of the sweep; gives what to say of them."""
    folder = folder_of(options)
    metrics = sorted({name for outcome in found for name in outcome.metrics})
    with (folder / "results.csv").open("w", newline="") as stream:
        rows = csv.writer(stream, lineterminator="\n")
        rows.writerow(["trial", "status", TIME, *metrics, *space.dimensions, "seconds", "error", "replay"])
        for o in found:
            values = [
                *(o.metrics.get(name, "") for name in metrics),
                *(o.values.get(key, "") for key in space.dimensions),
            ]
            rows.writerow([o.name, o.status, o.epoch, *values, f"{o.seconds:.1f}", o.error, o.replay])
    best = found[0] if found else None
    if best is None or best.value is None or best.config is None:
        return [f"no trial has a result; all trials: {folder / 'results.csv'}"]
    settings = yaml.safe_load(best.config.read_text())
    told = f"{options.metric} = {best.value!r} (trial {trial_number(best.name)}, {best.status})"
    (folder / "best.yaml").write_text(
        f"# Best of {len(found)} trials: {told}.\n" + yaml.safe_dump(settings, sort_keys=False)
    )
    lines = [f"best: {options.metric} {best.value:.6g} with {_told(best.values)} ({best.status})"]
    lines += plot(found, space, options, folder)
    if any(best.config.parent.glob("checkpoints/*.ckpt")):
        lines.append(f"weights of the best: locoprop_lightning.load_run({str(best.config.parent)!r})")
    return [
        *lines,
        f"all trials: {folder / 'results.csv'}",
        f"train the best: locoprop fit --config {folder / 'best.yaml'}",
    ]


def _told(values: dict[str, Any]) -> str:
    return ", ".join(f"{key}={shown(value)}" for key, value in values.items())


def table(found: list[Outcome], space: Space, metric: str) -> list[list[str]]:
    """The rows of the table of trials, the head first.

    Args:
        found: The trials, in the order of the rows.
        space: The space.
        metric: Name of the metric.
    """
    rows = [["trial", "status", TIME, metric, *tails(space.dimensions).values()]]
    for o in found:
        values = [shown(o.values.get(key, "-")) for key in space.dimensions]
        rows.append(
            [trial_number(o.name), o.status, str(o.epoch), "-" if o.value is None else f"{o.value:.6g}", *values]
        )
    return rows


def study(found: list[Outcome], space: Space, options: argparse.Namespace) -> optuna.Study:
    """The finite results as an Optuna study, whose importances and plots are then ready-made."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    made = optuna.create_study(direction="minimize" if options.mode == "min" else "maximize")
    for o in found:
        if o.value is not None and math.isfinite(o.value):
            made.add_trial(
                optuna.trial.create_trial(params=o.values, distributions=space.distributions(o.values), value=o.value)
            )
    return made


def recolour(figure: Any) -> None:
    """Gives the lines of a parallel-coordinate plot colours that are all seen on white: Optuna's worst is nearly white.

    Args:
        figure: Matplotlib's figure.
    """
    from matplotlib import colormaps
    from matplotlib.collections import LineCollection
    from matplotlib.colors import ListedColormap

    for axes in figure.axes:
        for lines in axes.collections:
            if isinstance(lines, LineCollection) and lines.get_array() is not None:
                shades = colormaps["viridis"]([0.7 * part / 255 for part in range(256)])
                better_low = lines.get_cmap().name.endswith("_r")
                lines.set_cmap(ListedColormap(shades if better_low else shades[::-1]))
                lines.set_linewidth(1.5)


def plot(found: list[Outcome], space: Space, options: argparse.Namespace, folder: Path) -> list[str]:
    """Importances as text, and parallel-coordinate and slice plots as files; needs some finite results."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from optuna.visualization import matplotlib as drawings

    made = study(found, space, options)
    lines = []
    if len(made.trials) >= 4:
        try:
            importances = optuna.importance.get_param_importances(made)
        except (ValueError, RuntimeError) as error:  # such as a setting that never changed
            lines.append(f"importance: none, {error}")
        else:
            told = ", ".join(f"{key} {importance:.2f}" for key, importance in importances.items())
            lines.append(f"importance: {told}")
    if len(made.trials) >= 2:
        for name, draw in (("parallel", drawings.plot_parallel_coordinate), ("slices", drawings.plot_slice)):
            draw(made, target_name=options.metric)
            figure = plt.gcf()
            if name == "parallel":
                recolour(figure)
            figure.set_size_inches(max(8, 3 * len(space.dimensions)), 5)
            figure.savefig(folder / f"{name}.png", dpi=120, bbox_inches="tight")
            plt.close(figure)
        lines.append(f"plots: {folder / 'parallel.png'}, {folder / 'slices.png'}")
    return lines
