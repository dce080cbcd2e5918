"""Milliseconds a step, measured alone on the machine with all methods taking turns; and how long a study takes."""

import contextlib
import io
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ray
from torch.linalg import LinAlgError

from locoprop_lightning.callbacks.recorder import FitEnded, LossRecorder
from locoprop_lightning.files import parse_json, replace
from locoprop_lightning.results.terminal import as_shown
from locoprop_lightning.tune.study.driver import Entry
from locoprop_lightning.tune.study.store import Store
from locoprop_lightning.tune.study.work import here, plain
from locoprop_lightning.tune.trial import build

FILE = "paces.json"
ROUNDS, SKIPPED, STEPS = 3, 10, 40


class Pace(NamedTuple):
    """How fast a method is.

    Attributes:
        ms: Milliseconds a step.
        mark: Fingerprint of its settings.
        machine: What it was measured on.
        when: The day.
    """

    ms: float
    mark: str
    machine: str
    when: str


def load(folder: Path) -> dict[str, Pace]:
    """The measured paces by method.

    Args:
        folder: Folder of the study.
    """
    path = folder / FILE
    if not path.is_file():
        return {}
    entries = parse_json(path.read_text(), str(path), "remove it, and paces are measured again")
    return {name: Pace(**entry) for name, entry in entries.items()}


def lacking(entries: Mapping[str, Entry], store: Store) -> bool:
    """Whether a method is finished and has no pace.

    Args:
        entries: The methods.
        store: Where paces are kept.
    """
    known, marks = load(store.folder), _marks(entries)
    return any(name not in known or known[name].mark != mark for name, mark in marks.items())


def _marks(entries: Mapping[str, Entry]) -> dict[str, str]:
    """What the final runs of the finished methods are known by."""
    return {name: entry.final_mark(best) for name, entry in entries.items() if entry.finished and (best := entry.best)}


def measure(entries: Mapping[str, Entry], store: Store) -> None:
    """Measures the methods that are finished, on the cluster where they ran, which must be idle.

    A turn of a method is a fresh fit whose first steps are left out. Of the next 40 the mean is taken: some methods
    refresh their factors at every tenth step, and a median would miss the refreshes. The pace is the median over the
    turns.

    Args:
        entries: The methods.
        store: Where they are kept.
    """
    known, marks = load(store.folder), _marks(entries)
    times: dict[str, list[float]] = {name: [] for name in marks}
    machine = ""
    for turn in range(ROUNDS):
        for name in marks:
            entry = entries[name]
            assert entry.best is not None
            task = ray.remote(pace).options(num_gpus=entry.gpus, max_retries=0)
            settings = {**entry.method.settings, **entry.best["values"]}
            ms, machine = ray.get(task.remote(str(entry.method.config), settings, None, entry.gpus, SKIPPED, STEPS))
            times[name].append(ms)
            print(f"pace, turn {turn + 1} of {ROUNDS}: {name} {ms:.1f} ms a step", file=sys.stderr, flush=True)
    today = time.strftime("%Y-%m-%d")
    for name, mark in marks.items():
        known[name] = Pace(round(statistics.median(times[name]), 3), mark, machine, today)
    lines = [f"  {json.dumps(name)}: {json.dumps(one._asdict())}" for name, one in known.items()]
    replace(store.folder / FILE, "{\n" + ",\n".join(lines) + "\n}\n")


def pace(
    config: str, settings: Mapping[str, Any], threads: int | None, gpus: float, skipped: int, steps: int
) -> tuple[float, str]:
    """Milliseconds a step of a fresh fit, and the machine.

    Args:
        config: Path of the configuration.
        settings: What is changed in it, by name.
        threads: CPU threads, None for as many as there are processors.
        gpus: GPUs of a run.
        skipped: Steps that are left out.
        steps: Steps that are counted.
    """
    threads = threads or len(os.sched_getaffinity(0))
    length = {"trainer.max_epochs": "-1", "trainer.max_steps": str(skipped + steps)}
    recorder = LossRecorder()
    with contextlib.redirect_stdout(io.StringIO()):  # the table of layers
        cli = build(config, 0, threads, {**settings, **length, **plain(gpus, validate=False)})
        cli.trainer.callbacks.append(recorder)  # type: ignore[attr-defined]
        with contextlib.suppress(FitEnded, LinAlgError):
            cli.trainer.fit(cli.model, cli.datamodule)
    machine = f"{here(cli.trainer)['device']}, {threads} thread{'s' if threads > 1 else ''}"
    if len(recorder.ends) < skipped + steps:  # its loss was not finite by then
        return math.nan, machine
    return statistics.mean(recorder.step_ms[skipped:]), machine


def plan(entries: Mapping[str, Entry], at_a_time: int) -> str:
    """What would be run, and how long it takes: at the pace of finished runs, or of a few steps where there is none.

    Args:
        entries: The methods.
        at_a_time: Runs at a time, 0 for what fits on this machine.
    """
    cores, total = len(os.sched_getaffinity(0)), 0.0
    rows = [["method", "trials left", "final runs left", "steps of a run", "ms a step", "minutes at most"]]
    for name, entry in entries.items():
        trials, finals = entry.left()
        ran = [line for line in [*entry.trials, *entry.finals.values()] if line["status"] == "done"]
        if ran:
            ms, steps = statistics.median(line["ms"] for line in ran), ran[0]["steps"]
        else:
            print(f"{name}: a few steps are run for its pace", file=sys.stderr)
            ms, _ = pace(str(entry.method.config), entry.method.settings, entry.study.budget.threads, entry.gpus, 2, 5)
            steps = entry.steps()
        seconds = (trials + finals) * steps * ms / 1000
        total += seconds
        rows.append([name, str(trials), str(finals), str(steps), f"{ms:.1f}", f"{seconds / 60:.1f}"])
    slots = at_a_time or max(1, cores // next(iter(entries.values())).study.budget.threads)
    told = f"{math.ceil(total / slots / 60)} minutes at most with {slots} runs at a time"
    return f"{as_shown(rows)}\n\n{told}, and seconds for each to start; trials that are stopped early take less."
