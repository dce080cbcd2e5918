"""Names of methods, settings and trials, as short as tells them apart."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from locoprop_lightning.errors import listed
from locoprop_lightning.results.runs import Run
from locoprop_lightning.results.settings import NEUTRAL

_VERSION = re.compile(r"version_\d+|seed_?\d+")  # a folder that holds one of several runs of a method

_CLASS = re.compile(r"(\w+\.)+[A-Z]\w*")  # a class by its path

_TRIAL = re.compile(r"[0-9a-f]{5,}_(\d{5})")  # the folder of a sweep's trial


def tails(names: Iterable[str], separator: str = ".") -> dict[str, str]:
    """The shortest ends of names that tell them apart, by name.

    Args:
        names: Names of several parts.
        separator: What stands between the parts.

    Example:
        >>> list(tails(["model.lambda_a", "model.optimizer.lr", "model.rest_optimizer.lr"]).values())
        ['lambda_a', 'optimizer.lr', 'rest_optimizer.lr']
    """
    parts = {name: name.split(separator) for name in names}
    ends = {name: [separator.join(own[-count:]) for count in range(1, len(own) + 1)] for name, own in parts.items()}
    counted = Counter(end for own in ends.values() for end in own)
    return {name: next((end for end in own if counted[end] == 1), name) for name, own in ends.items()}


def home(run: Run) -> Path:
    """The folder of a run's method: its own without the parts that tell versions and seeds apart.

    Args:
        run: The run.
    """
    folder = run.folder.resolve()
    while _VERSION.fullmatch(folder.name):
        folder = folder.parent
    return folder


def place(run: Run) -> Path:
    """The folder of a run's method; of a sweep's trial the sweep's, with the trial's number in its name.

    Args:
        run: The run.
    """
    folder = home(run)
    if (number := trial_number(folder.name)) == folder.name:
        return folder
    return folder.parent.with_name(f"{folder.parent.name}, trial {number}")


def trial_number(folder: str) -> str:
    """The number of a trial in its sweep, or what its folder is called where that has none.

    Args:
        folder: Name of its folder.

    Example:
        >>> trial_number("3f9a1c07_00012")
        '12'
    """
    found = _TRIAL.fullmatch(folder)
    return str(int(found[1])) if found else folder


def method_name(runs: Sequence[Run], others: Sequence[Run]) -> str:
    """The name of a method: that of its folder, and what tells it from others in that folder.

    These are the settings in which they differ, or the versions of its runs where there are too many.

    Args:
        runs: The runs that are shown.
        others: A run of each method, this one too.
    """
    own = place(runs[0])
    alike = [other for other in others if place(other).name == own.name]
    name = tails({place(other).as_posix() for other in alike}, "/")[own.as_posix()]
    rivals = [other for other in alike if place(other) == own]
    if len(rivals) == 1:
        return name
    differ = differing(runs[0], rivals)
    if runs[0].settings and 0 < len(differ) <= 3:
        told = [f"{short}={_shown(runs[0].settings.get(name))}" for name, short in tails(differ).items()]
    else:
        told = [run.folder.resolve().relative_to(home(run)).as_posix() for run in runs]
    return f"{name} ({listed(told, 3)})"


def differing(run: Run, rivals: Sequence[Run]) -> list[str]:
    """The settings that tell a run from its rivals; those of a class, from rivals that have the same class there.

    Args:
        run: The run.
        rivals: The rivals, with it or without.
    """
    names = {name for rival in rivals for name in rival.settings if not NEUTRAL.match(name)}
    return [name for name in sorted(names) if _tells(name, run, rivals)]


def _tells(name: str, run: Run, rivals: Sequence[Run]) -> bool:
    """Whether a setting is another in a rival; one of a class, in those that have the same class there."""
    parts = name.split(".")
    above = [".".join(parts[:end]) for end in range(1, len(parts))]
    alike = [rival for rival in rivals if all(rival.settings.get(n) == run.settings.get(n) for n in above)]
    return len({repr(rival.settings.get(name)) for rival in alike}) > 1


def _shown(value: Any) -> Any:
    """A value, of a class by its path the class alone."""
    return value.rpartition(".")[2] if isinstance(value, str) and _CLASS.fullmatch(value) else value
