"""One trial of a sweep: a configuration with some values of its own, trained with one or several seeds."""

import contextlib
import io
import json
import math
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from ray import tune

from locoprop_lightning.callbacks import FitSummary
from locoprop_lightning.cli import LocoPropCLI, watchers

STATE, WEIGHTS = "trial.json", "epoch.ckpt"


def arguments(config: str, seed: int, threads: int, values: Mapping[str, Any]) -> list[str]:
    """The command line of a run: a configuration and what is changed in it."""
    changed = [f"--{key}={value}" for key, value in values.items()]
    return [f"--config={config}", f"--seed_everything={seed}", f"--threads={threads}", *changed]


def build(config: str, seed: int, threads: int, values: Mapping[str, Any]) -> LocoPropCLI:
    """What `locoprop fit` would train, without checkpoints, progress bar and summary of its own."""
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    cli = LocoPropCLI([*arguments(config, seed, threads, values), *quiet], run=False)
    unwanted = SaveConfigCallback | Checkpoint | FitSummary
    cli.trainer.callbacks = [c for c in cli.trainer.callbacks if not isinstance(c, unwanted)]  # type: ignore[attr-defined]
    return cli


class Reporter(Checkpoint):
    """Reports to Tune after each epoch, with a checkpoint.

    Metrics are those of the seed in training while it is the first one, and from then on the median over the seeds
    that are done; ``epoch`` counts over all seeds.

    Args:
        metric: Name of the metric that the sweep looks at.
        worst: Reported for it, and for others, where a value is not finite.
        done: Metrics at the end of each seed that is done; the seed in training is added at its end.
        seeds: How many seeds there are.
    """

    def __init__(self, metric: str, worst: float, done: list[dict[str, float]], seeds: int) -> None:
        self.metric = metric
        self.worst = worst
        self.done = done
        self.seeds = seeds

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Reports; ends the fit where a loss is not finite."""
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        if self.metric not in values:
            raise KeyError(f"--metric {self.metric}: is not logged; take one of {', '.join(sorted(values))}.")
        finite = all(math.isfinite(value) for value in values.values())
        if not finite:  # every metric of such weights is worthless
            values = dict.fromkeys(values, math.inf) | {self.metric: self.worst}
            trainer.should_stop = True
        assert trainer.max_epochs is not None
        last = not finite or trainer.current_epoch + 1 >= trainer.max_epochs
        epoch = len(self.done) * trainer.max_epochs + trainer.current_epoch + 1
        if last:
            self.done.append(values)
            epoch = len(self.done) * trainer.max_epochs
        known = self.done or [values]
        said = {name: statistics.median(one.get(name, math.inf) for one in known) for name in known[0]}
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / STATE).write_text(json.dumps({"done": self.done, "within": not last}))
            if not last:
                trainer.save_checkpoint(Path(folder) / WEIGHTS)
            checkpoint = tune.Checkpoint.from_directory(folder)
            tune.report(said | {"epoch": epoch, "seeds_done": len(self.done)}, checkpoint=checkpoint)


def run_trial(
    values: dict[str, Any], config: str, seeds: Sequence[int], threads: int, folder: str, metric: str, worst: float
) -> None:
    """Trains a configuration, one seed after the other; goes on from a checkpoint if Tune has one.

    Args:
        values: Values of the searched settings by name.
        config: Path of the YAML.
        seeds: Seeds.
        threads: CPU threads.
        folder: Folder of the sweep; logs go to its subfolder named by the trial.
        metric: Name of the metric.
        worst: Its value where something is not finite.
    """
    done: list[dict[str, float]] = []
    with contextlib.ExitStack() as stack:
        checkpoint, weights = tune.get_checkpoint(), None
        if checkpoint is not None:
            saved = Path(stack.enter_context(checkpoint.as_directory()))
            state = json.loads((saved / STATE).read_text())
            done = state["done"]
            weights = saved / WEIGHTS if state["within"] else None
        for seed in seeds[len(done) :]:
            run_seed(values, config, seed, threads, Path(folder), Reporter(metric, worst, done, len(seeds)), weights)
            weights = None


def run_seed(
    values: dict[str, Any],
    config: str,
    seed: int,
    threads: int,
    folder: Path,
    reporter: Reporter,
    weights: Path | None,
) -> None:
    """Trains with one seed, and logs to TensorBoard in the trial's folder."""
    run = folder / tune.get_context().get_trial_id() / f"seed_{seed}"
    run.mkdir(parents=True, exist_ok=True)
    cli = build(config, seed, threads, values)
    save(cli, run / "config.yaml")
    trainer = cli.trainer
    trainer.logger = TensorBoardLogger(run.parent, name=None, version=run.name, default_hp_metric=False)
    trainer.callbacks += [*watchers(cli.settings()), reporter]  # type: ignore[attr-defined]
    with contextlib.redirect_stdout(io.StringIO()):  # the table of layers, once a trial
        trainer.fit(cli.model, cli.datamodule, ckpt_path=weights, weights_only=True)


def save(cli: LocoPropCLI, path: Path) -> None:
    """Writes the configuration of a run as `locoprop fit --config` takes it."""
    config = cli.config.clone()
    for name in ("enable_progress_bar", "enable_model_summary"):  # turned off for the trial alone
        config.trainer.pop(name)
    cli.parser.save(config, path, skip_validation=True, overwrite=True, skip_none=True)


def threads_here(cpus: float) -> int:
    """CPU threads of a trial with a share of the processors; those of the process where it has no limit."""
    return max(1, int(cpus)) if cpus else torch.get_num_threads()
