"""Runs that were logged with TensorBoard."""

import sys
from pathlib import Path

from locoprop_lightning.errors import UserError
from locoprop_lightning.results.events import folders, read_scalars
from locoprop_lightning.results.methods import join_resumed
from locoprop_lightning.results.runs import EPOCH, PACE, Run, with_training_seconds
from locoprop_lightning.results.settings import read_settings


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
        if not path or (name.startswith("=") and not label):
            raise UserError(f"{name}: must be a folder, or LABEL=FOLDER, such as adam=runs/digits/adam.")
        root = Path(path)
        if not root.exists():
            raise UserError(f"{path}: there is no such folder; name folders of runs, such as runs/digits.")
        if root.is_file() and "tfevents" not in root.name:
            raise UserError(f"{path}: is a file; name the folder of a run, such as {root.parent}.")
        found = False
        for folder in folders(root):
            found = True
            if folder.resolve() in runs:
                continue
            scalars = read_scalars(folder, {tag, PACE, EPOCH}, tags)
            runs[folder.resolve()] = Run(scalars, folder, read_settings(folder), label, str(folder))
        if not found:
            print(f"{path}: left out, it holds no event files of TensorBoard", file=sys.stderr)
    joined = join_resumed(list(runs.values()), tag)
    for run in joined:
        if tag not in run.scalars:
            print(f"{run.shown}: left out, it has logged no {tag}", file=sys.stderr)
    having = [run for run in joined if tag in run.scalars]
    if not having:
        known = ", ".join(sorted(t for t in tags if not t.startswith("local_loss/")))
        way = f"the metrics are {known}." if known else "name folders of runs, such as runs/digits."
        raise UserError(f"No run has logged {tag!r}; {way}")
    return [with_training_seconds(run) for run in having]
