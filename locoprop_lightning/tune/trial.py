"""One trial of a sweep: a configuration with some values of its own, trained with one or several seeds."""

import contextlib
import io
import json
import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ray.train
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import TensorBoardLogger
from ray import tune
from ray.train.lightning import RayDDPStrategy, RayLightningEnvironment
from ray.train.torch import TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback
from ray.util.placement_group import PlacementGroup, get_current_placement_group, remove_placement_group

from locoprop_lightning.callbacks import FitSummary
from locoprop_lightning.callbacks.hyperparameters import settings_logger
from locoprop_lightning.cli import LocoPropCLI
from locoprop_lightning.errors import UserError
from locoprop_lightning.files import SETTINGS_FILE, replace
from locoprop_lightning.run_folder import checkpoint_folder
from locoprop_lightning.tune.loopback import meeting_place

STATE, PROGRESS = "trial.json", "progress"


def strategy_settings(strategy: Any) -> dict[str, Any]:
    """Arguments of the strategy that a configuration names, for Ray's DDP.

    Args:
        strategy: The setting ``trainer.strategy``, a name or a class with its arguments.

    Raises:
        UserError: If it is another one.
    """
    if strategy in ("auto", "ddp"):
        return {}
    if strategy == "ddp_find_unused_parameters_true":
        return {"find_unused_parameters": True}
    path = getattr(strategy, "class_path", None)
    if path is None or path.rpartition(".")[2] != "DDPStrategy":
        raise UserError(f"trainer.strategy={path or strategy}: trials of several workers take 'ddp' alone.")
    kept = dict(getattr(strategy, "init_args", None) or {})
    for name in ("process_group_backend", "timeout", "start_method", "accelerator", "parallel_devices"):  # Ray's
        kept.pop(name, None)
    return kept


class WorkerCLI(LocoPropCLI):
    """The command as one of several workers runs it: which processes there are and who they are is Ray's to say."""

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:  # noqa: D102
        return super().instantiate_trainer(
            strategy=RayDDPStrategy(**strategy_settings(self.config.trainer.strategy)),
            plugins=[RayLightningEnvironment()],
            devices="auto",
            num_nodes=1,
            **kwargs,
        )


def build(config: str, seed: int, threads: int, values: Mapping[str, Any], workers: int = 1) -> LocoPropCLI:
    """What `locoprop fit` would train, without checkpoints, progress bar and summary of its own.

    Args:
        config: Path of the YAML.
        seed: Seed.
        threads: CPU threads.
        values: What is changed in the YAML, by name.
        workers: Processes of the trial; this is one of them where there are several.
    """
    command = LocoPropCLI if workers == 1 else WorkerCLI
    settings = {"threads": threads, **values, "trainer.enable_model_summary": "false"}
    return command.build(config, settings, seed, without=(FitSummary,))


class Progress:
    """How far a trial has come, in its folder: metrics of the seeds that are done, a checkpoint of the one that is not.

    What is on disk is always whole: a checkpoint is written under a name of its own, then the file that names it is
    replaced, then the one before is removed. Tune's own record may be a second behind, and with it lose a checkpoint
    that it still counts on.

    Args:
        folder: Folder of the trial.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.done: list[dict[str, float]] = []
        self.metrics: dict[str, float] = {}
        self.weights: Path | None = None
        if (folder / STATE).is_file():
            self._read(folder)

    def _read(self, folder: Path) -> None:
        state = json.loads((folder / STATE).read_text())
        self.done, self.metrics = state["done"], state["said"]
        self.weights = folder / state["weights"] if state["weights"] else None

    def take_over(self, other: Path) -> None:
        """Goes on from where another trial is, as population-based training asks."""
        self._read(other)

    def write(self, trainer: Trainer, last: bool) -> None:
        """Writes it all; where the seed is not done, its checkpoint too. To be called by all workers of a trial.

        Args:
            trainer: The trainer.
            last: Whether the seed is done.
        """
        old, self.weights = set(self.folder.glob("epoch_*.ckpt")), None
        if not last:
            self.weights = self.folder / f"epoch_{len(self.done)}_{trainer.current_epoch + 1}.ckpt"
            trainer.save_checkpoint(self.weights)
        if not trainer.is_global_zero:
            return
        state = {"done": self.done, "said": self.metrics, "weights": self.weights and self.weights.name}
        replace(self.folder / STATE, json.dumps(state))
        for path in old - {self.weights}:
            path.unlink(missing_ok=True)


def reached(trial: Path) -> dict[str, float]:
    """The metrics that a trial has come to by what is in its folder, empty where it never ended an epoch.

    Args:
        trial: Folder of the trial.
    """
    path = trial / PROGRESS / STATE
    return dict(json.loads(path.read_text())["said"]) if path.is_file() else {}


class Reporter(Checkpoint):
    """Reports to Tune after each epoch.

    Metrics are those of the seed in training while it is the first one, and from then on the median over the seeds
    that are done; ``epoch`` counts over all seeds.

    Args:
        metric: Name of the metric that the sweep looks at.
        worst: Reported for it where a value is not finite.
        progress: How far the trial has come.
        hands_on: Whether other trials may go on from this one's checkpoint.
    """

    def __init__(self, metric: str, worst: float, progress: Progress, hands_on: bool) -> None:
        self.metric = metric
        self.worst = worst
        self.progress = progress
        self.hands_on = hands_on

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Reports; ends the fit where a loss is not finite."""
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        finite = all(math.isfinite(value) for value in values.values())
        if not finite:  # every metric of such weights is worthless
            values = dict.fromkeys(values, math.inf) | {self.metric: self.worst}
            trainer.should_stop = True
        assert trainer.max_epochs is not None
        done = self.progress.done
        last = not finite or trainer.current_epoch + 1 >= trainer.max_epochs
        epoch = len(done) * trainer.max_epochs + trainer.current_epoch + 1
        if last and finite:  # of which the sweep keeps those of its best trial
            trainer.save_checkpoint(checkpoint_folder(trainer) / f"step={trainer.global_step}.ckpt", weights_only=True)
        if last:
            done.append(values)
            epoch = len(done) * trainer.max_epochs
        known = done or [values]
        metrics = {name: statistics.median(one.get(name, math.inf) for one in known) for name in known[0]}
        self.progress.metrics = metrics | {"epoch": epoch, "seeds_done": len(done)}
        self.progress.write(trainer, last)
        report(self.progress, self.hands_on, trainer.world_size)


def report(progress: Progress, hands_on: bool, workers: int) -> None:
    """Tells Tune how far a trial has come.

    Args:
        progress: How far.
        hands_on: Whether other trials may go on from its checkpoint.
        workers: Processes of the trial, all of which come here; Tune hears of the first.
    """
    if workers > 1:
        ray.train.report(progress.metrics)
    else:
        tune.report(progress.metrics, checkpoint=tune.Checkpoint.from_directory(progress.folder) if hands_on else None)


class Work(NamedTuple):
    """What all trials of a sweep have.

    Attributes:
        config: Path of the YAML.
        seeds: Seeds.
        threads: CPU threads of a worker.
        folder: Folder of the sweep; a trial has a subfolder for its logs and its checkpoint.
        metric: Name of the metric.
        worst: Its value where something is not finite.
        hands_on: Whether trials go on from each other's checkpoints, as in population-based training.
        workers: Processes of a trial.
        cpus: Processors of a worker.
        gpus: GPUs of a worker.
    """

    config: str
    seeds: list[int]
    threads: int
    folder: str
    metric: str
    worst: float
    hands_on: bool
    workers: int
    cpus: float
    gpus: float


def run_trial(values: dict[str, Any], work: Work) -> None:
    """Trains a configuration, one seed after the other; goes on from where the trial was, if it was stopped.

    Args:
        values: Values of the searched settings by name.
        work: What all trials have.
    """
    trial = Path(work.folder) / Path(tune.get_context().get_trial_dir()).name
    if work.workers > 1:
        run_workers(values, work, trial)
        return
    progress = Progress(trial / PROGRESS)
    with contextlib.ExitStack() as stack:
        checkpoint = tune.get_checkpoint() if work.hands_on else None
        if checkpoint is not None:
            progress.take_over(Path(stack.enter_context(checkpoint.as_directory())))
        run_seeds(values, work, trial, progress)


GROUP = "placement_group"


def release(trial: Path) -> None:
    """Gives back what the workers of a trial hold.

    Ray Train does so where the process that waits for the workers comes to its end, but Tune ends that process when it
    stops a trial early.

    Args:
        trial: Folder of the trial.
    """
    path = trial / GROUP
    if path.exists():
        remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(path.read_text())))
        path.unlink()


def run_workers(values: dict[str, Any], work: Work, trial: Path) -> None:
    """Trains a configuration on several workers, each with a part of every batch."""
    resources = {"CPU": work.cpus} | ({"GPU": work.gpus} if work.gpus else {})
    release(trial)  # where this is another attempt

    def worker() -> None:
        if ray.train.get_context().get_world_rank() == 0:
            group = get_current_placement_group()
            assert group is not None
            (trial / GROUP).write_text(group.id.hex())
        run_seeds(values, work, trial, Progress(trial / PROGRESS))

    TorchTrainer(
        worker,
        torch_config=meeting_place(),
        scaling_config=ray.train.ScalingConfig(
            num_workers=work.workers, use_gpu=work.gpus > 0, resources_per_worker=resources
        ),
        run_config=ray.train.RunConfig(  # its failures are Tune's
            name="train",
            storage_path=str(trial),
            callbacks=[TuneReportCallback()],  # type: ignore[list-item]
        ),
    ).fit()


def run_seeds(values: dict[str, Any], work: Work, trial: Path, progress: Progress) -> None:
    """Trains with the seeds that are not done."""
    if len(progress.done) == len(work.seeds):  # Tune's own record may be of an epoch before
        report(progress, work.hands_on, work.workers)
    for seed in work.seeds[len(progress.done) :]:
        reporter = Reporter(work.metric, work.worst, progress, work.hands_on)
        weights, progress.weights = progress.weights, None
        run_seed(values, work, seed, trial / f"seed_{seed}", reporter, weights)


def run_seed(
    values: dict[str, Any], work: Work, seed: int, run: Path, reporter: Reporter, weights: Path | None
) -> None:
    """Trains with one seed, and logs to TensorBoard in a folder of its own."""
    run.mkdir(parents=True, exist_ok=True)
    cli = build(work.config, seed, work.threads, values, work.workers)
    trainer = cli.trainer
    if trainer.is_global_zero:
        save(cli, run / SETTINGS_FILE, work.workers)
    trainer.logger = TensorBoardLogger(run.parent, name=None, version=run.name, default_hp_metric=False)
    trainer.callbacks += [settings_logger(cli.settings()), reporter]  # type: ignore[attr-defined]
    with contextlib.redirect_stdout(io.StringIO()):  # the table of layers, once a trial
        trainer.fit(cli.model, cli.datamodule, ckpt_path=weights, weights_only=True)


def save(cli: LocoPropCLI, path: Path, workers: int = 1) -> None:
    """Writes the configuration of a run as `locoprop fit --config` takes it."""
    config = cli.config.clone()
    for name in ("enable_progress_bar", "enable_model_summary"):  # turned off for the trial alone
        config.trainer.pop(name)
    if workers > 1:
        config.trainer.devices = workers
    cli.parser.save(config, path, skip_validation=True, overwrite=True, skip_none=True)
