"""Runs that a benchmark has stored: NAME-seedK.csv with the loss of every step, NAME-seedK.json with all else."""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from locoprop_lightning.results.runs import LOSS, Run


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes JSON, a line for each key.

    Args:
        path: File to write.
        content: What to write.
    """
    path.write_text("{\n" + ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in content.items()) + "\n}\n")


def finite(value: float) -> float | None:
    """What JSON can hold: the value in 6 significant digits, None if it is not finite.

    Args:
        value: The value.
    """
    return float(f"{value:.6g}") if math.isfinite(value) else None


def save_run(path: Path, record: Mapping[str, Any], losses: Sequence[float], ends: Sequence[float]) -> None:
    """Stores a run; its JSON is written last, so that the run is complete where that is.

    Args:
        path: The JSON.
        record: Its content: at least ``method``, ``seed``, ``nonfinite_step`` (None where all losses were finite) and
            ``ms_per_step``; lists are metrics after each epoch.
        losses: Loss of every step [steps].
        ends: Second of training at which each step was over [steps].
    """
    path.unlink(missing_ok=True)
    with path.with_suffix(".csv").open("w", newline="") as stream:
        rows = csv.writer(stream, lineterminator="\n")
        rows.writerow(["step", "loss", "seconds"])
        for step, (loss, passed) in enumerate(zip(losses, ends, strict=True)):
            rows.writerow([step, f"{loss:.5g}", f"{passed:.3f}"])
    write_json(path, record)


def load_runs(folder: Path, paces: Mapping[str, float] | None = None) -> list[Run]:
    """All stored runs of a folder, each with the label of its method.

    Args:
        folder: The folder.
        paces: Milliseconds a step by method, in place of the seconds that were stored; those of other methods are then
            not known.
    """
    runs = []
    for path in sorted(folder.glob("*-seed*.json")):
        record = json.loads(path.read_text())
        with path.with_suffix(".csv").open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        losses = [value if math.isfinite(value) else math.inf for value in (float(row["loss"]) for row in rows)]
        if paces is None:
            pace, seconds = record["ms_per_step"], [float(row["seconds"]) for row in rows]
        else:
            pace = paces.get(record["method"])
            seconds = [math.nan if pace is None else pace * step / 1000 for step in range(1, len(rows) + 1)]
        runs.append(
            Run(
                scalars={LOSS: dict(enumerate(zip(losses, seconds, strict=True)))},
                folder=folder,
                settings=record.get("settings", {}) | {"seed_everything": record["seed"]},
                label=record["method"],
                shown=str(path),
                stopped=record["nonfinite_step"] is not None,
                epoch_metrics={name: value for name, value in record.items() if isinstance(value, list)},
                ms_per_step=pace,
            )
        )
    return runs
