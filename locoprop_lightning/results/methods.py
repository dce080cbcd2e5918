"""Which runs belong together: a run and its continuation, runs of a method."""

import math
import sys
from pathlib import Path
from typing import Any

from locoprop_lightning.results.names import differing, home, method_name
from locoprop_lightning.results.runs import Run
from locoprop_lightning.results.settings import NEUTRAL


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
    groups: dict[Any, list[Run]] = {}
    for run in runs:
        own = _method(run)
        groups.setdefault(run.label or ((home(run), own) if own else run.folder.resolve()), []).append(run)
    by_seed = [_by_seed(members, tag) for members in groups.values()]
    firsts = [same[-1] for same, *_ in by_seed if not same[-1].label]
    methods: dict[str, list[Run]] = {}
    for members, seeds in zip(groups.values(), by_seed, strict=True):
        shown = [same[-1] for same in seeds]
        name = shown[0].label or method_name(shown, firsts)
        name = name if name not in methods else f"{name} {shown[0].shown}"
        methods[name] = shown
        if shown[0].label and (differ := differing(members[0], members)):
            told = ", ".join(differ[:3])
            print(
                f"{name}: its {len(members)} runs are shown as one method, though they differ in {told}; give each "
                "method a label of its own",
                file=sys.stderr,
            )
        for same in seeds:
            if len(same) > 1:
                told = f"of {len(same)} runs with seed {same[-1].seed} the longest, {same[-1].shown}, is shown"
                print(f"{name}: {told}", file=sys.stderr)
    return methods


def _by_seed(runs: list[Run], tag: str) -> list[list[Run]]:
    """Runs with the same seed, the longest last, the newest of several; each alone where settings do not tell."""
    if runs[0].label or not runs[0].settings:
        return [[run] for run in runs]
    seeds: dict[Any, list[Run]] = {}
    for run in runs:
        seeds.setdefault(run.seed, []).append(run)
    for same in seeds.values():
        same.sort(key=lambda run: (max(run.scalars[tag]), run.folder.stat().st_mtime))
    return list(seeds.values())
