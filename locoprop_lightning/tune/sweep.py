"""A sweep: a search over a space, by trials that Ray runs."""

import argparse
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
import ray
import torch
from ray import tune
from ray.tune.schedulers import ASHAScheduler, MedianStoppingRule, PopulationBasedTraining, TrialScheduler
from ray.tune.search import ConcurrencyLimiter, Searcher
from ray.tune.search.optuna import OptunaSearch

from locoprop_lightning.errors import UserError
from locoprop_lightning.results.table import rank
from locoprop_lightning.tune.live import LiveTable
from locoprop_lightning.tune.space import Space
from locoprop_lightning.tune.trial import Work, build, reached, release, run_trial, save

TIME = "epoch"


def sampler(name: str, seed: int, trials: int) -> optuna.samplers.BaseSampler:
    """The search of a name.

    Args:
        name: random, tpe, gp or cmaes.
        seed: Seed of the search.
        trials: How many there will be.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    startup = min(4, max(1, trials // 2))  # Optuna's default of 10 would make a short search random
    if name == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    if name == "tpe":
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup, constant_liar=True)
    if name == "gp":
        return optuna.samplers.GPSampler(seed=seed, n_startup_trials=startup)
    return optuna.samplers.CmaEsSampler(seed=seed, n_startup_trials=startup)


def scheduler(options: argparse.Namespace, space: Space, epochs: int) -> TrialScheduler | None:
    """What stops bad trials early, None to stop none.

    Args:
        options: Options of the command.
        space: The space, which population-based training changes within.
        epochs: Epochs of a trial, over all its seeds.
    """
    if options.scheduler == "asha":
        return ASHAScheduler(time_attr=TIME, max_t=epochs, grace_period=min(options.grace, epochs), reduction_factor=3)
    if options.scheduler == "median":
        return MedianStoppingRule(time_attr=TIME, grace_period=options.grace)
    if options.scheduler == "pbt":
        return PopulationBasedTraining(
            time_attr=TIME,
            perturbation_interval=options.grace,
            hyperparam_mutations=domains(space),
            synch=True,  # else a trial may be told to go on from a checkpoint that is gone by then
        )
    return None


def domains(space: Space) -> dict[str, Any]:
    """The space as Tune's own domains, for population-based training.

    Raises:
        UserError: For a setting that is searched under a condition.
    """
    found: dict[str, Any] = {}
    for key, (distribution, when) in space.dimensions.items():
        if when:
            raise UserError(
                f"--scheduler pbt: changes all settings at any time, but {key} is searched under a condition."
            )
        if isinstance(distribution, optuna.distributions.CategoricalDistribution):
            found[key] = tune.choice(list(distribution.choices))
        elif isinstance(distribution, optuna.distributions.IntDistribution):
            draw = tune.lograndint if distribution.log else tune.randint
            found[key] = draw(distribution.low, distribution.high + 1)
        else:
            assert isinstance(distribution, optuna.distributions.FloatDistribution)
            low, high, step = distribution.low, distribution.high, distribution.step
            found[key] = (
                tune.loguniform(low, high)
                if distribution.log
                else tune.quniform(low, high, step)
                if step
                else tune.uniform(low, high)
            )
    return found


def tuner(options: argparse.Namespace, space: Space, config: Path, start: dict[str, Any], epochs: int) -> tune.Tuner:
    """The sweep, new or resumed.

    Args:
        options: Options of the command.
        space: The space.
        config: The YAML, in the folder of the sweep.
        start: Values to try first.
        epochs: Epochs of one seed.
    """
    folder = folder_of(options)
    workers = options.workers_per_trial
    cpus, gpus = options.cpus_per_trial / workers, options.gpus_per_trial / workers
    work = Work(
        config=str(config),
        seeds=list(range(options.seed, options.seed + options.seeds)),
        threads=threads_here(cpus),
        folder=str(folder),
        metric=options.metric,
        worst=math.inf if options.mode == "min" else -math.inf,
        hands_on=options.scheduler == "pbt",
        workers=workers,
        cpus=cpus,
        gpus=gpus,
    )
    # What waits for a trial's workers takes no processor, so that it cannot keep them from starting.
    needs = {"cpu": cpus, "gpu": gpus} if workers == 1 else {"node:__internal_head__": 0.001}
    trainable = tune.with_resources(tune.with_parameters(run_trial, work=work), needs)
    if options.resume:
        return tune.Tuner.restore(str(folder), trainable, resume_unfinished=True, resume_errored=True)
    search: Searcher | ConcurrencyLimiter | None = None
    if options.scheduler != "pbt":
        search = OptunaSearch(
            space,
            metric=options.metric,
            mode=options.mode,
            points_to_evaluate=[start] if start else None,
            sampler=sampler(options.search, options.seed, options.samples),
        )
    best = KeepBest(folder, options.metric, options.mode == "max", epochs * options.seeds)
    callbacks: list[tune.Callback] = [Release(folder), best]
    if not options.quiet:
        callbacks.append(LiveTable(options.metric, options.mode, TIME, list(space.dimensions), options.samples))
    return tune.Tuner(
        trainable,
        param_space=domains(space) if options.scheduler == "pbt" else None,
        tune_config=tune.TuneConfig(
            metric=options.metric,
            mode=options.mode,
            search_alg=search,
            scheduler=scheduler(options, space, epochs * options.seeds),
            num_samples=options.samples,
            max_concurrent_trials=options.concurrent or (None if workers == 1 else fitting(options)),
            time_budget_s=options.time_budget,
            reuse_actors=workers == 1,
            trial_dirname_creator=_dirname,
        ),
        run_config=tune.RunConfig(
            name=options.name,
            storage_path=str(options.storage.resolve()),
            # Else settings would change once more at the end, to some that were never trained with.
            stop={TIME: epochs * options.seeds} if options.scheduler == "pbt" else None,
            failure_config=tune.FailureConfig(max_failures=options.max_failures),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=options.keep),
            callbacks=callbacks,
            verbose=0,
        ),
    )


class Release(tune.Callback):
    """Gives back what a trial's workers hold when it ends.

    Args:
        folder: Folder of the sweep.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: D102
        release(self.folder / trial.custom_dirname)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: D102
        release(self.folder / trial.custom_dirname)


class KeepBest(tune.Callback):
    """Removes the weights of trials that are over, but for those of the best.

    Args:
        folder: Folder of the sweep.
        metric: Name of its metric.
        rising: Whether the highest value is the best.
        epochs: Epochs of a trial that was not stopped early, which come before those that were.
    """

    def __init__(self, folder: Path, metric: str, rising: bool, epochs: int) -> None:
        self.folder = folder
        self.metric = metric
        self.rising = rising
        self.epochs = epochs

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: D102
        over = {one.custom_dirname for one in trials if one.is_finished()} | {trial.custom_dirname}
        weights = {name: list((self.folder / name).glob("seed_*/checkpoints/*.ckpt")) for name in sorted(over)}
        for name in sorted((name for name in over if weights[name]), key=self._place)[1:]:
            for path in weights[name]:
                path.unlink(missing_ok=True)

    def _place(self, name: str) -> tuple[bool, Any]:
        """What puts the best trial first."""
        metrics = reached(self.folder / name)
        return metrics.get(TIME, 0) < self.epochs, rank(metrics.get(self.metric), self.rising)


def fitting(options: argparse.Namespace) -> int:
    """How many trials of several workers the cluster has room for."""
    here = ray.cluster_resources()
    asked = {"CPU": options.cpus_per_trial, "GPU": options.gpus_per_trial}
    counts = [here.get(kind, 0) / amount for kind, amount in asked.items() if amount]
    return max(1, int(min(counts, default=1)))


def _dirname(trial: Any) -> str:
    """The folder of a trial, with its number, which the names that Tune makes up for searched trials have not."""
    name, count = str(trial.trial_id), trial.experiment_tag.partition("_")[0]  # of searched trials counted from 1
    return name if "_" in name else f"{name}_{int(count) - 1:05d}"


def folder_of(options: argparse.Namespace) -> Path:
    """The folder of the sweep."""
    return Path(options.storage.resolve() / options.name)


def remember(options: argparse.Namespace, fixed: Mapping[str, Any]) -> Path:
    """Keeps what a resumed sweep needs, configuration, space and options; gives the configuration's path."""
    folder = folder_of(options)
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "base.yaml"
    threads = threads_here(options.cpus_per_trial / options.workers_per_trial)
    save(build(str(options.config), options.seed, threads, fixed), config)
    (folder / "space.yaml").write_text(options.space.read_text())
    kept = {name: value for name, value in vars(options).items() if isinstance(value, str | int | float | None)}
    (folder / "options.json").write_text(json.dumps(kept, indent=2) + "\n")
    return config


def threads_here(cpus: float) -> int:
    """CPU threads of a trial with a share of the processors; those of the process where it has no limit."""
    return max(1, int(cpus)) if cpus else torch.get_num_threads()
