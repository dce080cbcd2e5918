"""Logged runs, read from TensorBoard's event files."""

import math
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from google.protobuf.message import DecodeError
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.tensorflow_stub.errors import DataLossError, NotFoundError, OutOfRangeError
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import PyRecordReader_New
from tensorboard.util.tensor_util import make_ndarray

from locoprop_lightning.errors import UserError

PACE, EPOCH = "time/step_ms", "epoch"
# What does not make another method: where a run reads from and logs to, what it watches, and its seed.
NEUTRAL = re.compile(
    r"seed_everything|threads$|ckpt_path|data\.root|(local_losses|step_timer|summary|predictions)(\.|$)"
    r"|trainer\.(default_root_dir|enable_\w+|log_every_n_steps|num_sanity_val_steps|(logger|callbacks|profiler)(\.|$))"
)
_VERSION = re.compile(r"version_\d+|seed_?\d+")  # a folder that holds one of several runs of a method

Points = dict[int, tuple[float, float]]  # value and wall-clock second of each step


@dataclass
class Run:
    """One logged run.

    Attributes:
        folder: Folder of its event files.
        scalars: Points by tag.
        settings: Settings by dotted name from the config.yaml of `locoprop fit`; empty without one.
        label: Name that the user gave, or "".
        shown: Folder as the user knows it.
    """

    folder: Path
    scalars: dict[str, Points]
    settings: dict[str, Any] = field(default_factory=dict)
    label: str = ""
    shown: str = ""

    @property
    def seed(self) -> Any:
        """The seed, None if it is not known."""
        return self.settings.get("seed_everything")

    def steps(self, tag: str) -> np.ndarray:
        """Steps at which a tag was logged, ascending, counted from 0."""
        return np.array(sorted(self.scalars[tag]))

    def values(self, tag: str) -> np.ndarray:
        """Values of a tag, by step."""
        return np.array([self.scalars[tag][step][0] for step in sorted(self.scalars[tag])])

    def seconds(self, tag: str) -> np.ndarray:
        """Seconds of training until each point of a tag.

        They are those of ``time/step_ms``, without validation; where a run has not logged it, those of the clock on
        the wall from the first point on.
        """
        steps = self.steps(tag)
        if not self.timed:
            wall = np.array([self.scalars[tag][step][1] for step in steps.tolist()])
            return wall - wall[0]
        ends, paces = self.steps(PACE) + 1, self.values(PACE)  # steps taken by then
        if steps[-1] >= ends[-1]:  # after the last one the pace is taken to last
            ends, paces = np.append(ends, steps[-1] + 1), np.append(paces, paces[-1])
        total = np.cumsum(np.diff(ends, prepend=0) * paces) / 1000
        return np.interp(steps + 1, np.concatenate([[0], ends]), np.concatenate([[0.0], total]))

    @property
    def timed(self) -> bool:
        """Whether the run has logged its pace."""
        return PACE in self.scalars

    def epochs(self, tag: str) -> np.ndarray:
        """Epochs passed at each point of a tag, estimated from the logged ``epoch``; one while there is but one."""
        epoch = self.scalars.get(EPOCH, {})
        firsts: dict[int, int] = {}
        for step in sorted(epoch):
            firsts.setdefault(int(epoch[step][0]), step)
        length = min((step / e for e, step in firsts.items() if e > 0), default=max(self.steps(tag)) + 1)
        return (self.steps(tag) + 1) / length


def smooth(values: Any, share: float = 0.7) -> np.ndarray:
    """s_0 = x_0, s = share s + (1 - share) x, over the points of a curve, without bias correction.

    A value that is not finite stands for itself, and is passed over by the values after it.

    Args:
        values: The curve, in order.
        share: In [0, 1); 0.7 is the review's.
    """
    smoothed, last = [], None
    for value in values:
        if math.isfinite(value):
            last = value if last is None else share * last + (1 - share) * value
        smoothed.append(last if math.isfinite(value) else value)
    return np.array(smoothed, dtype=float)


def read_runs(names: list[str], tag: str) -> list[Run]:
    """All runs below some folders that have logged a tag; what cannot be used is named on stderr.

    A run that went on from a checkpoint of another one starts with that one's points.

    Args:
        names: Folders, each with ``LABEL=`` in front if the runs below it shall go by that name.
        tag: The scalar that is wanted.

    Raises:
        UserError: For a folder that is missing, and where no run is left.
    """
    runs: dict[Path, Run] = {}
    tags: set[str] = set()
    for name in names:
        label, _, path = name.partition("=") if "=" in name and not Path(name).exists() else ("", "", name)
        root = Path(path)
        if not root.exists():
            raise UserError(f"{path}: there is no such folder; name folders of runs, such as runs/digits.")
        found = False
        for folder in _folders(root):
            found = True
            if folder.resolve() in runs:
                continue
            scalars = _scalars(folder, {tag, PACE, EPOCH}, tags)
            runs[folder.resolve()] = Run(folder, scalars, _settings(folder), label, str(folder))
        if not found:
            print(f"{path}: left out, it holds no event files of TensorBoard", file=sys.stderr)
    joined = _joined(list(runs.values()), tag)
    for run in joined:
        if tag not in run.scalars:
            print(f"{run.shown}: left out, it has logged no {tag}", file=sys.stderr)
    having = [run for run in joined if tag in run.scalars]
    if not having:
        known = ", ".join(sorted(t for t in tags if not t.startswith("local_loss/")))
        raise UserError(f"No run has logged {tag!r}" + (f"; the metrics are {known}." if known else "."))
    return having


def _folders(root: Path) -> Iterator[Path]:
    """Folders of runs; the sampled inner curves of a run are none."""
    folder = root if root.is_dir() else root.parent
    for path in sorted({file.parent for file in folder.rglob("events.out.tfevents.*")}):
        if not (path.parent.name == "inner" and path.name.startswith("step_")):
            yield path


def _scalars(folder: Path, wanted: set[str], seen: set[str]) -> dict[str, Points]:
    """Points by tag; a later file of a folder stands for everything from its first step on."""
    scalars: dict[str, Points] = {}
    for path in sorted(folder.glob("events.out.tfevents.*")):
        own: dict[str, Points] = {}
        for event in _events(path):
            for value in event.summary.value:
                kind = value.WhichOneof("value")
                if kind == "simple_value" or (kind == "tensor" and value.metadata.plugin_data.plugin_name == "scalars"):
                    seen.add(value.tag)
                    if value.tag in wanted:
                        number = value.simple_value if kind == "simple_value" else make_ndarray(value.tensor).item()
                        own.setdefault(value.tag, {})[event.step] = (float(number), event.wall_time)
        for tag, points in own.items():
            start = min(points)
            scalars[tag] = {step: point for step, point in scalars.get(tag, {}).items() if step < start} | points
    return scalars


def _events(path: Path) -> Iterator[Event]:
    """Events of a file up to its end, or to where it is damaged or half-written."""
    count = 0
    try:
        reader = PyRecordReader_New(str(path))
    except (OSError, NotFoundError):
        print(f"{path}: cannot be read, skipped", file=sys.stderr)
        return
    while True:
        try:
            reader.GetNext()
            event = Event.FromString(reader.record())
        except OutOfRangeError:
            return
        except (DataLossError, DecodeError, OSError):
            print(f"{path}: damaged or half-written; the rest after {count} events is skipped", file=sys.stderr)
            return
        count += 1
        yield event


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / "config.yaml"
    try:
        loaded = yaml.safe_load(path.read_text()) if path.is_file() else {}
    except (yaml.YAMLError, UnicodeDecodeError, OSError):
        print(f"{path}: cannot be read as YAML, so that the run's seed and settings are not known", file=sys.stderr)
        loaded = {}
    return flatten(loaded) if isinstance(loaded, dict) else {}


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted name; a class stands under the name of its setting, its own settings below.

    Example:
        >>> flatten({"model": {"solver": {"class_path": "a.ClosedForm", "init_args": {"average": 0}}, "skip": []}})
        {'model.solver': 'a.ClosedForm', 'model.solver.average': 0, 'model.skip': '[]'}
    """
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if key in ("class_path", "init_args", "dict_kwargs"):
            name = prefix
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, name)
        else:
            flat[name] = value if isinstance(value, str | int | float | bool | None) else str(value)
    return flat


def _joined(runs: list[Run], tag: str) -> list[Run]:
    """Gives a run that was resumed the points of what it went on from.

    That one is then no run of its own, unless it has other settings. A run without the tag, such as a test of a
    checkpoint, is given nothing, and a chain goes through it.
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
        for tag, points in other.scalars.items():
            own = run.scalars.setdefault(tag, {})
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
    """
    groups: dict[tuple[str, Any], list[Run]] = {}
    for run in runs:
        own = _method(run)
        key: Any = () if run.label else (_home(run), own) if own else run.folder.resolve()
        groups.setdefault((run.label or _home(run).name or run.shown, key), []).append(run)
    methods: dict[str, list[Run]] = {}
    for (base, _), members in groups.items():
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


def _name(base: str, run: Run, rivals: list[Run]) -> str:
    """The method's name, with what tells it from others of that name."""
    if len(rivals) == 1 or run.label:
        return base
    names = {name for rival in rivals for name in rival.settings if not NEUTRAL.match(name)}
    differ = [name for name in sorted(names) if len({repr(rival.settings.get(name)) for rival in rivals}) > 1]
    if not run.settings or not 0 < len(differ) <= 3:
        return run.shown
    told = [f"{name.rpartition('.')[2]}={run.settings.get(name)}" for name in differ]
    return f"{base} ({', '.join(told)})"


def _one_a_seed(base: str, runs: list[Run], tag: str) -> list[Run]:
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
