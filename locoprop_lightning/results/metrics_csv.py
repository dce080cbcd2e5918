"""The tables that Lightning's CSVLogger writes."""

import csv
import sys
from pathlib import Path

from locoprop_lightning.results.runs import Points

NAME = "metrics.csv"


def folders(root: Path) -> set[Path]:
    """Folders of runs.

    Args:
        root: Folder to look in, at any depth, or a file in it.
    """
    folder = root if root.is_dir() else root.parent
    return {file.parent for file in folder.rglob(NAME) if "step" in _header(file)}


def read_scalars(folder: Path, wanted: set[str], seen: set[str]) -> dict[str, Points]:
    """Points by tag, whose seconds are not known; a later row stands for an earlier one of its step.

    What is damaged is named on stderr.

    Args:
        folder: Folder of the table.
        wanted: Tags to read.
        seen: Takes in all tags that were met.
    """
    path = folder / NAME
    scalars: dict[str, Points] = {}
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        table = csv.DictReader(file)
        seen |= {*(table.fieldnames or ())} - {"step"}
        for count, row in enumerate(table):
            try:
                step = int(row["step"])
                taken = {tag: float(row[tag]) for tag in wanted & row.keys() if row[tag]}
            except (TypeError, ValueError):
                print(f"{path}: damaged or half-written; the rest after {count} rows is skipped", file=sys.stderr)
                break
            for tag, value in taken.items():
                scalars.setdefault(tag, {})[step] = (value, float("nan"))
    return scalars


def _header(path: Path) -> list[str]:
    try:
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            return next(csv.reader(file), [])
    except OSError:
        return []
