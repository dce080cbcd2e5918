"""What a study has found: a line of JSON for each trial and each final run, and the loss curves of the latter."""

import csv
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any

from locoprop_lightning.errors import UserError, listed, shown
from locoprop_lightning.files import parse_json, replace

TRIALS, FINALS = "trials.jsonl", "finals.jsonl"

Line = dict[str, Any]


def fingerprint(settings: Mapping[str, Any]) -> str:
    """Twelve digits that tell settings apart.

    Args:
        settings: Settings by name.
    """
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:12]


class Store:
    """The folder of a study.

    Files are replaced as a whole, so that one which is read is complete whenever a process was killed.

    Args:
        folder: The folder.
        order: The methods, in the order of the lines.
    """

    def __init__(self, folder: Path, order: Sequence[str] = ()) -> None:
        self.folder = folder
        self.order = list(order)
        self._read: dict[str, tuple[tuple[int, int], list[Line]]] = {}  # files as they were, and their lines

    def trials(self, method: str, mark: str) -> list[Line]:
        """The trials of a method from the first on, as far as none is missing.

        Args:
            method: Its name.
            mark: Fingerprint of what makes its search; trials of another one do not count.
        """
        known = {
            line["trial"]: line for line in self.lines(TRIALS) if line["method"] == method and line["mark"] == mark
        }
        count = next(index for index in range(len(known) + 1) if index not in known)
        return [known[index] for index in range(count)]

    def finals(self, method: str, mark: str) -> dict[int, Line]:
        """The final runs of a method by seed.

        Args:
            method: Its name.
            mark: Fingerprint of its settings; runs of others do not count.
        """
        lines = self.lines(FINALS)
        return {line["seed"]: line for line in lines if line["method"] == method and line["mark"] == mark}

    def lines(self, name: str) -> list[Line]:
        """All lines of a file.

        Args:
            name: The file.

        Raises:
            UserError: Names one that is damaged.
        """
        path = self.folder / name
        if not path.is_file():
            return []
        now = path.stat().st_ino, path.stat().st_mtime_ns
        if name not in self._read or self._read[name][0] != now:
            lines = enumerate(path.read_text(errors="replace").splitlines(), start=1)
            self._read[name] = now, [_line(f"{path}: line {n}", line, name) for n, line in lines if line.strip()]
        return self._read[name][1]

    def add(self, name: str, line: Line) -> None:
        """Adds a line in its place; one of the same trial or seed, and those with another mark, go.

        Args:
            name: The file.
            line: The line, with ``method``, ``mark`` and ``trial`` or ``seed``.
        """
        part = "trial" if name == TRIALS else "seed"

        def kept(other: Line) -> bool:
            same = other["method"] == line["method"]
            return not same or (other["mark"] == line["mark"] and other[part] != line[part])

        lines = [other for other in self.lines(name) if kept(other)] + [line]
        places = {method: place for place, method in enumerate(self.order)}
        lines.sort(key=lambda one: (places.get(one["method"], len(places)), one["method"], one[part]))
        replace(self.folder / name, "".join(json.dumps(one) + "\n" for one in lines))

    def work(self, line: Line) -> Path:
        """The folder in which a run works.

        Args:
            line: Its line, or what is known of it before.
        """
        part = f"trial{line['trial']}" if "trial" in line else f"seed{line['seed']}"
        return self.folder / "work" / f"{line['method']}-{line['mark']}-{part}"

    def tidy(self) -> None:
        """Removes the working folders of runs that are stored, as a kill between the two leaves them."""
        for line in [*self.lines(TRIALS), *self.lines(FINALS)]:
            shutil.rmtree(self.work(line), ignore_errors=True)

    def curve(self, method: str, seed: int) -> Path:
        """The file with the losses of a final run.

        Args:
            method: Its method.
            seed: Its seed.
        """
        return self.folder / "curves" / f"{method}-seed{seed}.csv"


def _line(place: str, text: str, name: str) -> Line:
    """A line of a file, which may have been edited."""
    way = "mend it, or take it out, and its run is made again"
    line = parse_json(text, place, way)
    if not isinstance(line, dict):
        raise UserError(f"{place}: is of no run; {way}.")
    for key, kinds in _KINDS.items():
        if key in line and (not isinstance(line[key], kinds) or isinstance(line[key], bool)):
            raise UserError(f"{place}: {key}={shown(line[key])}: is not what a run has written; {way}.")
    needed = {"method", "mark", "status", "value", "trial" if name == TRIALS else "seed"}
    if lacking := sorted(needed - line.keys()):
        raise UserError(f"{place}: is of no whole run, and lacks {listed(lacking)}; {way}.")
    return line


_KINDS: dict[str, type | UnionType] = {  # of what is read of a line
    **dict.fromkeys(("method", "mark", "status"), str),
    **dict.fromkeys(("trial", "seed", "steps"), int),
    **dict.fromkeys(("value", "first", "highest", "ms", "seconds"), float | int | None),
    "values": dict,
}


def write_curve(path: Path, losses: Sequence[float]) -> None:
    """Writes the loss of every step.

    Args:
        path: The file.
        losses: Loss of every step [steps].
    """
    replace(path, "step,loss\n" + "".join(f"{step},{loss:.5g}\n" for step, loss in enumerate(losses)))


def read_curve(path: Path) -> list[float]:
    """The loss of every step [steps].

    Args:
        path: The file.
    """
    with path.open(newline="") as stream:
        return [float(row["loss"]) for row in csv.DictReader(stream)]
