"""Runs what a study still lacks, on a Ray cluster: trials of a method one after the other, methods side by side."""

import fcntl
import math
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import ray

from locoprop_lightning import shipped
from locoprop_lightning.cli import LocoPropCLI
from locoprop_lightning.errors import UserError
from locoprop_lightning.files import replace
from locoprop_lightning.results.settings import written
from locoprop_lightning.results.table import cell
from locoprop_lightning.tune.check import check
from locoprop_lightning.tune.study.live import LiveMethods
from locoprop_lightning.tune.study.search import limits, score, suggest
from locoprop_lightning.tune.study.spec import LOSS, Method, Study
from locoprop_lightning.tune.study.standing import Standing
from locoprop_lightning.tune.study.store import FINALS, TRIALS, Line, Store
from locoprop_lightning.tune.study.work import CURVE, Job, discard, run
from locoprop_lightning.tune.trial import build, save

RETRIES = 2  # of a run whose worker dies


class Entry(Standing):
    """A method in a study under way.

    Args:
        method: The method.
        study: The study.
        store: What is known.
        gpus: GPUs of a run.
    """

    def __init__(self, method: Method, study: Study, store: Store, gpus: float = 0) -> None:
        super().__init__(method, study, store)
        self.gpus = gpus
        self.running: set[str] = set()
        self.error = ""
        if not self.trials:
            try:
                check(method.config, method.space, study.judge, method.settings, 1)
            except UserError as error:
                raise UserError(f"{method.name}: {error}") from error
        if study.judge != LOSS and not float(self.settings.get("data.validation") or 0) > 0:
            raise UserError(
                f"judge {study.judge}: {method.name} would be judged by the test data; set data.validation in the "
                "workload, or judge by train/loss."
            )

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The settings of the configuration, defaults included, by name."""
        settings: dict[str, Any] = self.build({}).settings()
        return settings

    def build(self, values: Mapping[str, Any]) -> LocoPropCLI:
        """What is trained with some values.

        Args:
            values: Settings that are changed.
        """
        return build(str(self.method.config), 0, self.study.budget.threads, {**self.method.settings, **values})

    def steps(self) -> int:
        """Steps of a run."""
        cli = self.build({})
        cli.datamodule.setup("fit")
        epochs, steps = cli.trainer.max_epochs, cli.trainer.max_steps
        whole = len(cli.datamodule.train_dataloader()) * epochs if epochs and epochs > 0 else math.inf
        return int(min(whole, steps if steps >= 0 else math.inf))

    def seconds_left(self) -> float:
        """Seconds that the rest takes one after the other, infinite where nothing has run yet."""
        known = [line["seconds"] for line in [*self.trials, *self.finals.values()] if line["status"] == "done"]
        return math.inf if not known else sum(self.left()) * sum(known) / len(known)

    def next(self) -> Job | None:
        """The next run that can start now; None where there is none."""
        if self.error or self.finished:
            return None
        if not self.tuned:
            return None if self.running else self._trial()
        seeds = [
            s for s in range(1, self.study.budget.seeds + 1) if s not in self.finals and f"seed{s}" not in self.running
        ]
        return self._final(seeds[0]) if seeds else None

    def _trial(self) -> Job:
        past, on_loss = self.trials, self.study.judge == LOSS
        worst = -math.inf if self.study.rising else math.inf
        told = [
            {"values": line["values"], "score": score(line["value"], line["first"] if on_loss else worst, on_loss)}
            for line in past
        ]
        told = _bounded(told, self.study.rising)
        space, start = self.method.space, self.method.space.start(self.settings)
        values = suggest(space, start, told, self.method.name, self.study.rising)
        return self._job({"trial": len(past)}, values, 0, self.mark, limits(past))

    def _final(self, seed: int) -> Job:
        best = self.best
        assert best is not None
        return self._job({"seed": seed}, best["values"], seed, self.final_mark(best), None)

    def _job(self, part: Line, values: dict[str, Any], seed: int, mark: str, limits: list[float] | None) -> Job:
        settings = self.method.settings | values
        line = {"method": self.method.name, "local": self.local, **part, "mark": mark, "values": values}
        folder = self.store.work(line)
        threads = self.study.budget.threads
        config, judge = str(self.method.config), self.study.judge
        return Job(line, config, settings, seed, threads, self.gpus, str(folder), judge, limits)

    def take(self, job: Job, line: Line) -> None:
        """Stores what a run has found.

        Args:
            job: The run.
            line: Its line.
        """
        line = line | {"command": command(job)}
        if job.limits is None:
            curve = self.store.curve(self.method.name, job.seed)
            replace(curve, (Path(job.folder) / CURVE).read_text())
            self.store.add(FINALS, line)
        else:
            self.store.add(TRIALS, line)
        discard(job)

    def write_best(self) -> None:
        """Writes the configuration of the best trial, as `locoprop fit --config` takes it."""
        best = self.best
        if best is not None:
            path = self.store.folder / "best" / f"{self.method.name}.yaml"
            path.parent.mkdir(parents=True, exist_ok=True)
            save(self.build(best["values"]), path)


def _bounded(told: list[dict[str, Any]], rising: bool) -> list[dict[str, Any]]:
    """Scores with the worst finite one where one is not finite, which a Gaussian process cannot take."""
    finite = [one["score"] for one in told if math.isfinite(one["score"])] or [0.0]
    worst = min(finite) if rising else max(finite)
    return [one | {"score": one["score"] if math.isfinite(one["score"]) else worst} for one in told]


def command(job: Job) -> str:
    """The command that trains a run again.

    Args:
        job: The run.
    """
    config = Path(job.config)
    if config.is_relative_to(Path.cwd()):
        config = config.relative_to(Path.cwd())
    elif name := shipped.name_of(config):
        config = Path(name)
    settings = {"seed_everything": job.seed, "threads": job.threads, **job.settings}
    return shlex.join(
        ["locoprop", "fit", "--config", str(config), *(f"--{k}={written(v)}" for k, v in settings.items())]
    )


class Resources(NamedTuple):
    """What a run takes of the cluster.

    Attributes:
        cpus: Processors.
        gpus: GPUs.
        at_a_time: Runs at a time, 0 for what fits.
    """

    cpus: int
    gpus: float
    at_a_time: int

    @property
    def slots(self) -> int:
        """How many runs the cluster has room for."""
        here = ray.cluster_resources()
        counts = [here.get("CPU", 0) / self.cpus]
        counts += [here.get("GPU", 0) / self.gpus] if self.gpus else []
        fitting = int(min(counts))
        if fitting < 1:
            raise UserError(
                f"the cluster has {here.get('CPU', 0):g} processors and {here.get('GPU', 0):g} GPUs: a run with "
                f"{self.cpus} threads (budget.threads) and {self.gpus:g} GPUs (--gpus-per-run) does not fit."
            )
        return min(fitting, self.at_a_time) if self.at_a_time else fitting


def drive(entries: Mapping[str, Entry], resources: Resources, table: LiveMethods) -> None:
    """Runs all that is left, methods with the most left first; a method whose run raises an error stops there.

    Args:
        entries: The methods.
        resources: What a run takes.
        table: What is shown meanwhile.
    """
    task = ray.remote(run).options(
        num_cpus=resources.cpus, num_gpus=resources.gpus, max_retries=RETRIES, retry_exceptions=False
    )
    running: dict[Any, tuple[Entry, str, Job]] = {}
    slots = resources.slots
    while True:
        while len(running) < slots:
            job, entry = _choose(entries)
            if job is None:
                break
            part = f"seed{job.seed}" if job.limits is None else f"trial{job.line['trial']}"
            entry.running.add(part)
            running[task.remote(job)] = entry, part, job
        table.show(entries)
        if not running:
            return
        done, _ = ray.wait(list(running), timeout=1.0)
        for reference in done:
            entry, part, job = running.pop(reference)
            entry.running.discard(part)
            try:
                line = ray.get(reference)
            except (ray.exceptions.RayTaskError, ray.exceptions.RayError) as error:
                entry.error = reason(error)
                table.say(entry, f"{part} failed: {entry.error}")
                continue
            entry.take(job, line)
            if entry.tuned and job.limits is not None:
                entry.write_best()
            table.say(entry, f"{part} {line['status']}, {entry.study.judge} {cell([line['value']], '.4g')}")


def _choose(entries: Mapping[str, Entry]) -> tuple[Job | None, Any]:
    """The next run, of the method with the most left of those that can go on."""
    for entry in sorted(entries.values(), key=lambda entry: -entry.seconds_left()):
        job = entry.next()
        if job is not None:
            return job, entry
    return None, None


def reason(error: BaseException) -> str:
    """What ended a run, in one line."""
    cause = getattr(error, "cause", None) or error
    return str(cause).strip().splitlines()[-1] if str(cause).strip() else type(cause).__name__


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keeps a folder to this process.

    Raises:
        UserError: If another one runs a study there.
    """
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".lock"
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"--out {folder}: another process runs the study there; wait for it or stop it.") from error
        try:
            yield
        finally:  # of a study that is refused nothing stays
            if made and list(folder.iterdir()) == [path]:
                path.unlink()
                with suppress(OSError):  # others may have come
                    for parent in made:
                        parent.rmdir()
