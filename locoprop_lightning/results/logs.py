"""Runs that were logged with TensorBoard, or as a table."""

import sys
from pathlib import Path

from locoprop_lightning.errors import UserError, check_several, listed, near_names
from locoprop_lightning.results import events, metrics_csv
from locoprop_lightning.results.methods import join_resumed
from locoprop_lightning.results.runs import EPOCH, PACE, Run, with_training_seconds
from locoprop_lightning.results.settings import read_settings

_OF_EVALUATION = {"verbose", "return_predictions"}  # settings that validate, test and predict have, and a fit has not


def read_runs(names: list[str], tag: str) -> list[Run]:
    """All runs below some folders that have logged a tag; what cannot be used is named on stderr.

    A run that went on from a checkpoint of another one starts with that one's points.

    Args:
        names: Folders, each with ``LABEL=`` in front if the runs below it shall go by that name.
        tag: The scalar that is wanted.

    Raises:
        UserError: For a folder that is missing, and where no run is left.
    """
    check_several("read_runs", "folders", names=names)
    runs: dict[Path, Run] = {}
    tags: dict[Path, set[str]] = {}
    for name in names:
        label, _, path = name.partition("=") if "=" in name and not Path(name).exists() else ("", "", name)
        if not path or (name.startswith("=") and not label):
            raise UserError(f"{name}: must be a folder, or LABEL=FOLDER, such as adam=runs/digits/adam.")
        root = Path(path)
        if not root.exists():
            raise UserError(f"{path}: there is no such folder; name folders of runs, such as runs/digits.")
        if root.is_file() and "tfevents" not in root.name and root.name != metrics_csv.NAME:
            run = root.parent.parent if root.parent.name == "checkpoints" else root.parent
            raise UserError(f"{path}: is a file; name the folder of a run, such as {run}.")
        recorded = dict.fromkeys(metrics_csv.folders(root), metrics_csv) | dict.fromkeys(events.folders(root), events)
        for folder, kind in sorted(recorded.items(), key=lambda entry: entry[0]):
            if folder.resolve() not in runs:
                scalars = kind.read_scalars(folder, {tag, PACE, EPOCH}, tags.setdefault(folder, set()))
                runs[folder.resolve()] = Run(scalars, folder, read_settings(folder), label, str(folder))
        if not recorded:
            print(
                f"{path}: left out, it holds no event files of TensorBoard and no metrics.csv of CSVLogger with rows",
                file=sys.stderr,
            )
    joined = join_resumed(list(runs.values()), tag)
    having = [run for run in joined if tag in run.scalars]
    if not tag.startswith("test/"):  # a validation of a checkpoint is no curve, where fits have some
        having = [run for run in having if not _OF_EVALUATION & run.settings.keys()] or having
    without = [run.shown for run in joined if tag not in run.scalars and not _evaluates(run, tags[run.folder], tag)]
    if without and having:
        print(f"no {tag} in {len(without)} of {len(joined)} runs ({listed(without, 3)}), left out", file=sys.stderr)
    if not having:
        known = sorted({t for own in tags.values() for t in own if not t.startswith("local_loss/")})
        way = f"the metrics are {', '.join(known)}" if known else "name folders of runs, such as runs/digits"
        raise UserError(f"No run has logged {tag!r}; {way}{near_names(tag, known)}.")
    return [with_training_seconds(run) for run in having]


def _evaluates(run: Run, tags: set[str], wanted: str) -> bool:
    """Whether a run without the wanted metric was made to have others: a test, or a fit where tests are compared."""
    if wanted.startswith("test/") or _OF_EVALUATION & run.settings.keys():
        return True
    metrics = tags - {EPOCH}
    return bool(metrics) and all(metric.startswith(("test/", "val/")) for metric in metrics)
