"""The command `locoprop-compare`: logged runs as a table, a figure, and curves in the terminal."""

import argparse
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from locoprop_lightning.command_line import Parser, check_arguments
from locoprop_lightning.errors import UserError, check_fraction, one_sentence
from locoprop_lightning.files import check_file, expanded
from locoprop_lightning.results.curves import AXES, fold_runs
from locoprop_lightning.results.figure import check_focus, check_format, draw
from locoprop_lightning.results.logs import read_runs
from locoprop_lightning.results.methods import by_method
from locoprop_lightning.results.runs import Run
from locoprop_lightning.results.table import comparison, markdown, rank, rises
from locoprop_lightning.results.terminal import as_shown, draw_text


def _warn(methods: dict[str, list[Run]], metric: str, decay: float) -> None:
    """Says what makes a comparison unfair."""
    runs = [run for members in methods.values() for run in members]
    gaps = {run.shown: int(np.median(np.diff(run.steps(metric)))) for run in runs if len(run.scalars[metric]) > 1}
    if decay and len(set(gaps.values())) > 1:
        told = ", ".join(
            f"{gap} in {next(n for n, g in gaps.items() if g == gap)}" for gap in sorted(set(gaps.values()))
        )
        print(f"{metric} was logged at different steps ({told} apart), so that smoothing differs", file=sys.stderr)
    untimed = [run.shown for run in runs if not run.timed]
    if untimed:
        told = f"{untimed[0]}{' ...' if len(untimed) > 1 else ''}"
        known = "contain validation, or are not known of a metrics.csv; fits with StepTimer() have them"
        print(f"no time/step_ms in {len(untimed)} of {len(runs)} runs ({told}), whose seconds {known}", file=sys.stderr)


def compare(options: argparse.Namespace) -> None:
    """Reads the runs, prints the table, and writes what was asked for.

    Args:
        options: Options of the command.
    """
    metric = options.metric
    decay = (0.7 if metric.startswith("train/") else 0.0) if options.smooth is None else options.smooth
    check_fraction("", smooth=decay)
    for path in options.out:
        check_format(path)
        check_file(f"--out {path}", path)
    if options.table:
        check_file(f"--table {options.table}", options.table)
    methods = by_method(read_runs(options.runs, metric), metric)
    check_focus(options.focus, methods)
    _warn(methods, metric, decay)
    clockless = [run.shown for runs in methods.values() for run in runs if not np.isfinite(run.seconds(metric)).all()]
    if options.x == "time" and clockless:
        raise UserError(f"--x time: {clockless[0]} has no time/step_ms, and so no seconds; take --x step.")
    rising = rises(metric) if options.mode is None else options.mode == "max"
    rows = comparison(methods, metric, decay, rising)
    label = f"{metric}, smoothed by {decay:g}" if decay else metric
    print(label, as_shown(rows), sep="\n\n")
    if options.table:
        options.table.parent.mkdir(parents=True, exist_ok=True)
        options.table.write_text(markdown(rows) + "\n")
    if not (options.out or options.text):
        return
    curves = {name: fold_runs(runs, metric, decay, options.x) for name, runs in methods.items()}
    last = {name: c.middle[-1] if math.isfinite(c.middle[-1]) else None for name, c in curves.items()}
    curves = {name: curves[name] for name in sorted(curves, key=lambda name: rank(last[name], rising))}
    log = not rising and all((c.middle > 0).all() for c in curves.values())
    for path in options.out:
        draw(curves, path, AXES[options.x][0], label, log, options.focus)
        print(f"figure: {path}", file=sys.stderr)
    if options.text:
        colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        print(draw_text(curves, AXES[options.x][0], label, log, colour))


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = Parser(
        prog="locoprop-compare",
        description="Compares logged runs: a table on the terminal, and figures. Runs that differ in their seed alone "
        "are folded into median and range; a resumed run goes on where the one before was left.",
        epilog="locoprop-compare runs/digits --out figure.svg figure.png --table table.md",
    )
    text = "folder with logs of TensorBoard or CSVLogger at any depth; LABEL=FOLDER names the runs below it"
    parser.add_argument("runs", nargs="+", metavar="RUN", help=text)
    parser.add_argument("--metric", default="train/loss", metavar="TAG", help="what to compare (default: %(default)s)")
    text = "share of the old value in the smoothing s = S s + (1 - S) x (default: 0.7 for train/..., else 0)"
    parser.add_argument("--smooth", type=float, metavar="S", help=text)
    parser.add_argument("--x", choices=tuple(AXES), default="step", help="horizontal axis (default: step)")
    text = "figures to write; the ending says how: .svg, .png, .pdf"
    parser.add_argument("--out", type=Path, nargs="+", default=[], metavar="FILE", help=text)
    text = "methods that have a colour and their names at their curves' ends, as the table names them; others are grey"
    parser.add_argument("--focus", nargs="+", default=[], metavar="METHOD", help=text)
    parser.add_argument("--table", type=Path, metavar="FILE.md", help="file to write the table to as well")
    parser.add_argument("--text", action="store_true", help="draw the curves in the terminal")
    text = "whether less or more is better (default: more for an accuracy, else less)"
    parser.add_argument("--mode", choices=("min", "max"), help=text)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; a mistake that the user can mend ends it with one sentence and status 2.

    Args:
        arguments: Arguments of the command; those of the process if not given.
    """
    check_arguments(arguments)
    arguments = expanded(sys.argv[1:] if arguments is None else arguments)
    with one_sentence("locoprop-compare", arguments):
        compare(make_parser().parse_args(arguments))


if __name__ == "__main__":
    main()
