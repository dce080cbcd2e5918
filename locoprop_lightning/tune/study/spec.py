"""A study as YAML: a workload, one budget for all, and methods.

    title: Digits, an MLP
    workload: {trainer.max_epochs: 10}
    judge: train/loss
    budget: {trials: 6, seeds: 3, threads: 1}
    reference: adam
    methods:
      adam: configs/digits/adam.yaml
      mine: {config: my.yaml, space: {model.lambda_a: {loguniform: [1, 100]}}}

A method is a configuration with a space: a file, or what stands in one. Where none is named, it is the file in
tune/spaces with the name of the configuration. Files are looked for beside the study, then in the working directory,
then among those that are shipped.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from locoprop_lightning.errors import UserError, check_counts
from locoprop_lightning.files import load_yaml
from locoprop_lightning.results.table import rises
from locoprop_lightning.shipped import CONFIGS, SPACES, find, is_configuration
from locoprop_lightning.tune.space import Space

LOSS = "train/loss"
_NAME = re.compile(r"[\w.+-]+")


class Budget(NamedTuple):
    """What every method gets.

    Attributes:
        trials: Trials of a method, each as long as the final runs.
        seeds: Final runs of a method, with seeds 1, 2, ...; trials have seed 0.
        threads: CPU threads of a run.
    """

    trials: int = 12
    seeds: int = 3
    threads: int = 1


class Method(NamedTuple):
    """What is compared.

    Attributes:
        name: Its name in tables.
        config: Its configuration.
        space: What is searched in it.
        searched: The same as it stands in the YAML.
        settings: What is changed in it, that of the workload included, by name.
    """

    name: str
    config: Path
    space: Space
    searched: dict[str, Any]
    settings: dict[str, Any]


class Study(NamedTuple):
    """What is compared, and how.

    Attributes:
        title: Of the report.
        note: What a reader of the report should know of the choices.
        methods: The methods by name.
        budget: What every method gets.
        judge: Tag of the metric that chooses between trials: the smoothed loss of the last step, or a metric of the
            images that ``data.validation`` holds out.
        reference: The method that others are measured against.
    """

    title: str
    note: str
    methods: dict[str, Method]
    budget: Budget
    judge: str
    reference: str

    @property
    def rising(self) -> bool:
        """Whether more of the judged metric is better."""
        return rises(self.judge)


def load(path: Path, added: list[Path]) -> Study:
    """Reads a study.

    Args:
        path: The YAML.
        added: Files with further methods, each as under ``methods``.

    Raises:
        UserError: Names the file, the key and what could stand there.
    """
    content = _read(path, "STUDY")
    known = {"title", "note", "workload", "judge", "budget", "reference", "methods"}
    if unknown := content.keys() - known:
        raise UserError(f"{path}: {min(unknown)}: is none of {', '.join(sorted(known))}.")
    for name, kind in (("workload", dict), ("budget", dict), ("methods", dict)):
        if not isinstance(content.get(name, {}), kind):
            raise UserError(f"{path}: {name}: must be a mapping of names to values.")
    entries = {str(name): (entry, path) for name, entry in content.get("methods", {}).items()}
    for file in added:
        further = _read(file, "--add")
        if is_configuration(further):
            way = f"write a file with a line NAME: {{config: {file}, space: FILE}}"
            raise UserError(f"--add {file}: is a configuration; {way}.")
        for name, entry in further.items():
            if name == "methods" and isinstance(entry, dict) and "config" not in entry:
                raise UserError(f"--add {file}: methods: each method stands at the left margin there; leave this out.")
            if str(name) in entries:
                raise UserError(f"--add {file}: {name} is a method of the study already; give it another name.")
            entries[str(name)] = entry, file
    if not entries:
        raise UserError(f"{path}: methods: name at least one, such as adam: configs/digits/adam.yaml.")
    workload = {str(name): value for name, value in content.get("workload", {}).items()}
    methods = {name: _method(name, entry, file, workload) for name, (entry, file) in entries.items()}
    reference = str(content.get("reference", next(iter(methods))))
    if reference not in methods:
        raise UserError(f"{path}: reference: {reference} is none of the methods {', '.join(methods)}.")
    judge = str(content.get("judge", LOSS))
    if judge != LOSS and not judge.startswith("val/"):
        raise UserError(
            f"{path}: judge: must be {LOSS} or a metric of held-out data, such as val/accuracy, not {judge}."
        )
    title = str(content.get("title", path.stem))
    return Study(
        title, str(content.get("note", "")).strip(), methods, _budget(path, content.get("budget", {})), judge, reference
    )


def _read(path: Path, option: str) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{option} {path}: there is no such file; name one that is there.")
    content = load_yaml(path, f"{option} {path}")
    if not isinstance(content, dict):
        raise UserError(f"{option} {path}: must hold a mapping; see docs/studies.md.")
    return content


def _budget(path: Path, entries: Mapping[str, Any]) -> Budget:
    if unknown := entries.keys() - set(Budget._fields):
        raise UserError(f"{path}: budget: {min(unknown)} is none of {', '.join(Budget._fields)}.")
    budget = Budget(**entries)
    check_counts("budget", 1, **budget._asdict())
    return budget


def _method(name: str, entry: Any, file: Path, workload: Mapping[str, Any]) -> Method:
    where = f"{file}: {name}"
    if not _NAME.fullmatch(name):
        raise UserError(f"{where}: a method's name has letters, digits and . _ + - alone, as files are named after it.")
    if isinstance(entry, str):
        entry = {"config": entry}
    if not isinstance(entry, dict) or "config" not in entry:
        raise UserError(f"{where}: must be a configuration, or {{config: FILE, space: FILE, set: {{...}}}}.")
    if unknown := entry.keys() - {"config", "space", "set"}:
        raise UserError(f"{where}: {min(unknown)} is none of config, space, set.")
    config = _find(entry["config"], file, CONFIGS, f"{where}: config: ")
    space = entry.get("space", f"tune/spaces/{config.name}")
    if not isinstance(space, dict):
        found = _find(space, file, SPACES, f"{where}: space: ")
        space = load_yaml(found, f"{where}: space: {found}")
    parsed = Space.of(space, f"{where}: space")
    changed = entry.get("set", {})
    if not isinstance(changed, dict):
        raise UserError(f"{where}: set: must be a mapping of settings to values.")
    for key in workload.keys() & parsed.dimensions.keys():
        raise UserError(f"{where}: {key} is of the workload, and searched by its space; take it out of one.")
    return Method(name, config, parsed, space, {**workload, **changed})


def _find(name: Any, file: Path, folder: str, what: str) -> Path:
    """A file that a study names."""
    beside = file.parent / str(name)
    return (beside if beside.is_file() else find(str(name), folder, what)).resolve()
