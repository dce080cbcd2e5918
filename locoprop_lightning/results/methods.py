"""Which runs belong together: a run and its continuation, runs of a method."""

import math
import re
import sys
from pathlib import Path
from typing import Any

from locoprop_lightning.results.runs import Run
from locoprop_lightning.results.settings import NEUTRAL

_VERSION = re.compile(r"version_\d+|seed_?\d+")  # a folder that holds one of several runs of a method

_CLASS = re.compile(r"(\w+\.)+[A-Z]\w*")  # a class by its path

_TRIAL = re.compile(r"[0-9a-f]{5,}_(\d{5})")  # as Ray Tune names a trial


def join_resumed(runs: list[Run], tag: str) -> list[Run]:
    """Gives a run that was resumed the points of what it went on from.

    That one is then no run of its own, unless it has other settings. A run without the tag, such as a test of a
    checkpoint, is given nothing, and a chain goes through it.

    Args:
        runs: All runs; their points get changed.
        tag: The scalar that is wanted.
    """
    having = {id(run) for run in runs if tag in run.scalars}
    continued: set[int] = set()
    for run in sorted(runs, key=lambda run: min((min(points) for points in run.scalars.values()), default=0)):
        other = _parent(run, runs) if id(run) in having else None
        for _ in runs:  # as many links as a chain can have
            if other is not None and id(other) not in having:
                other = _parent(other, runs)
        if other is None or other is run:
            continue
        for name, points in other.scalars.items():
            own = run.scalars.setdefault(name, {})
            start = min(own, default=math.inf)
            own |= {step: point for step, point in points.items() if step < start}
        if _method(other, False) == _method(run, False):
            continued.add(id(other))
    return [run for run in runs if id(run) not in continued]


def _parent(run: Run, runs: list[Run]) -> Run | None:
    """The run that another one went on from: where its checkpoint lay, beside it, or the only one of that path."""
    checkpoint = run.settings.get("ckpt_path")
    if not isinstance(checkpoint, str):
        return None
    source = Path(checkpoint).parent.parent
    others = [other for other in runs if other is not run]
    for wanted in (source.resolve(), (run.folder.parent / source.name).resolve()):
        for other in others:
            if source.name and other.folder.resolve() == wanted:
                return other
    tail = source.parts
    ending = [other for other in others if tail and other.folder.resolve().parts[-len(tail) :] == tail]
    return ending[0] if len(ending) == 1 else None


def _method(run: Run, length: bool = True) -> tuple[tuple[str, str], ...]:
    """The settings that make a run's method; without its length those that a resume keeps."""
    ends = ("trainer.max_epochs", "trainer.max_steps")
    kept = {n: v for n, v in run.settings.items() if not NEUTRAL.match(n) and (length or n not in ends)}
    return tuple(sorted((name, repr(value)) for name, value in kept.items()))


def by_method(runs: list[Run], tag: str) -> dict[str, list[Run]]:
    """Runs by the name of their method: runs that differ in their seed alone are of one method.

    Runs of one folder, its ``version_<n>`` left out, go by its name, and by the settings in which they differ. A run
    without settings of its own is a method of its own. Of runs with the same seed the longest is taken.

    Args:
        runs: The runs.
        tag: The scalar whose last step tells the longest.
    """
    groups: dict[tuple[str, Any], list[Run]] = {}
    for run in runs:
        own = _method(run)
        key: Any = () if run.label else (_home(run), own) if own else run.folder.resolve()
        groups.setdefault((run.label or _base(_home(run)) or run.shown, key), []).append(run)
    methods: dict[str, list[Run]] = {}
    for (base, _), members in groups.items():
        if members[0].label and (differ := _differing(members[0], members)):
            told = ", ".join(differ[:3])
            print(
                f"{base}: its {len(members)} runs are shown as one method, though they differ in {told}; give each "
                "method a label of its own",
                file=sys.stderr,
            )
        rivals = [others[0] for (name, _), others in groups.items() if name == base]
        name = _name(base, members[0], rivals)
        methods[name if name not in methods else f"{name} {members[0].shown}"] = _one_a_seed(base, members, tag)
    return methods


def _home(run: Run) -> Path:
    """The folder of a run's method: its own without the parts that tell versions and seeds apart."""
    folder = run.folder.resolve()
    while _VERSION.fullmatch(folder.name):
        folder = folder.parent
    return folder


def _base(home: Path) -> str:
    """The name of a folder of runs; that of a sweep's trial is the sweep's and the trial's number."""
    trial = _TRIAL.fullmatch(home.name)
    return f"{home.parent.name}, trial {int(trial[1])}" if trial else home.name


def _name(base: str, run: Run, rivals: list[Run]) -> str:
    """The method's name, with what tells it from others of that name."""
    if len(rivals) == 1 or run.label:
        return base
    differ = _differing(run, rivals)
    if not run.settings or not 0 < len(differ) <= 3:
        return run.shown
    told = [f"{name.rpartition('.')[2]}={_shown(run.settings.get(name))}" for name in differ]
    return f"{base} ({', '.join(told)})"


def _differing(run: Run, rivals: list[Run]) -> list[str]:
    """The settings that tell a run from its rivals; those of a class, from rivals that have the same class there."""
    names = {name for rival in rivals for name in rival.settings if not NEUTRAL.match(name)}
    return [name for name in sorted(names) if _tells(name, run, rivals)]


def _tells(name: str, run: Run, rivals: list[Run]) -> bool:
    """Whether a setting is another in a rival; one of a class, in those that have the same class there."""
    parts = name.split(".")
    above = [".".join(parts[:end]) for end in range(1, len(parts))]
    alike = [rival for rival in rivals if all(rival.settings.get(n) == run.settings.get(n) for n in above)]
    return len({repr(rival.settings.get(name)) for rival in alike}) > 1


def _shown(value: Any) -> Any:
    """A value, of a class by its path the class alone."""
    return value.rpartition(".")[2] if isinstance(value, str) and _CLASS.fullmatch(value) else value


def _one_a_seed(base: str, runs: list[Run], tag: str) -> list[Run]:
    """The longest run of each seed, the newest of several; all where settings do not tell."""
    if runs[0].label or not runs[0].settings:
        return runs
    seeds: dict[Any, list[Run]] = {}
    for run in runs:
        seeds.setdefault(run.seed, []).append(run)
    for seed, same in seeds.items():
        same.sort(key=lambda run: (max(run.scalars[tag]), run.folder.stat().st_mtime))
        if len(same) > 1:
            print(
                f"{base}: of {len(same)} runs with seed {seed} the longest, {same[-1].shown}, is shown", file=sys.stderr
            )
    return [same[-1] for same in seeds.values()]
