"""The command `locoprop-tune study`."""

import argparse
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

from locoprop_lightning.command_line import Parser
from locoprop_lightning.errors import INTERRUPTED, UserError, check_counts
from locoprop_lightning.shipped import STUDIES, find
from locoprop_lightning.tune import stay_on_loopback
from locoprop_lightning.tune.study import report, spec
from locoprop_lightning.tune.study.store import Store


def make_parser(of_sweeps: Collection[str] = ()) -> argparse.ArgumentParser:
    """The parser of the command.

    Args:
        of_sweeps: The options of a sweep, most of which a study has in its file.
    """
    parser = Parser(
        prog="locoprop-tune study",
        instead="; trials and seeds of a study stand in its file, under budget",
        elsewhere=of_sweeps,
        description="Compares methods with equal budgets: each has the same number of trials, then the best settings "
        "of each are trained with several new seeds. All that is found lies in OUT; what is there is never run again "
        "unless its settings changed, so that the same command goes on where a study was stopped.",
    )
    add = parser.add_argument
    add("study", type=Path, metavar="STUDY", help="the study: a file or a shipped one, such as digits")
    add("--out", type=Path, metavar="DIR", help="folder of the results (default: results/ and the study's name)")
    add("--only", nargs="+", action="extend", default=[], metavar="METHOD", help="run these methods alone")
    text = "a file with further methods, each as under `methods` in a study"
    add("--add", nargs="+", type=Path, action="extend", default=[], metavar="MY.yaml", help=text)
    instead = parser.add_mutually_exclusive_group().add_argument
    instead("--plan", action="store_true", help="print what would be run, and how long it would take; run nothing else")
    instead("--report", action="store_true", help="write the report from what is stored; run nothing")
    instead("--paces", action="store_true", help="measure milliseconds a step again, on an otherwise idle machine")
    add("--gpus-per-run", type=float, default=0, metavar="N", help="GPUs of a run, such as 0.5 (default: 0)")
    add("--concurrent", type=int, default=0, metavar="N", help="runs at a time (default: what fits)")
    add("--address", help="address of a Ray cluster, 'auto' for that of this machine (default: start one)")
    add("--quiet", action="store_true", help="show no table while it runs")
    return parser


def study(arguments: Sequence[str], of_sweeps: Collection[str] = ()) -> int:
    """Runs the command.

    Args:
        arguments: Its arguments.
        of_sweeps: As in ``make_parser``.

    Returns:
        0, 1 where a method failed, 130 where it was interrupted.
    """
    options = make_parser(of_sweeps).parse_args(arguments)
    check_counts("", 0, concurrent=options.concurrent)
    if not 0 <= options.gpus_per_run <= 1:
        raise UserError(f"--gpus-per-run {options.gpus_per_run:g}: a run has one device; take a number from 0 to 1.")
    if options.paces and options.only:
        raise UserError("--paces: measures all methods in turn, which --only forbids; leave one of them out.")
    stay_on_loopback(options.address)
    options.study = find(options.study, STUDIES, "STUDY ")
    loaded = spec.load(options.study, options.add)
    if unknown := [name for name in options.only if name not in loaded.methods]:
        way = "; separate them by spaces" if "," in unknown[0] else ""
        raise UserError(f"--only {unknown[0]}: is none of the methods {', '.join(loaded.methods)}{way}.")
    folder = options.out or Path("results") / options.study.stem
    store = Store(folder.resolve(), list(loaded.methods))
    status = 0 if options.report else _run(loaded, store, options)
    if not options.plan and status != INTERRUPTED:
        told = report.write(loaded, store)
        if told is None and options.report:
            raise UserError(
                f"--report: {store.folder} holds nothing of this study yet; run it without --report first, or name its "
                "folder by --out."
            )
        print(told or f"{store.folder}: nothing of this study is stored yet.")
    return status


def _run(loaded: spec.Study, store: Store, options: argparse.Namespace) -> int:
    """Runs what is left, or says what that is; gives the status of the command."""
    from locoprop_lightning.tune import cluster  # ray takes seconds to import
    from locoprop_lightning.tune.study import driver, paces
    from locoprop_lightning.tune.study.live import LiveMethods

    with driver.alone(store.folder):
        chosen = {name: method for name, method in loaded.methods.items() if name in options.only or not options.only}
        entries = {name: driver.Entry(method, loaded, store, options.gpus_per_run) for name, method in chosen.items()}
        if options.plan:
            print(paces.plan(entries, options.concurrent))
            return 0
        store.tidy()
        resources = driver.Resources(loaded.budget.threads, options.gpus_per_run, options.concurrent)
        try:
            if options.paces or not all(one.finished for one in entries.values()) or paces.lacking(entries, store):
                with cluster.joined(options.address):
                    with LiveMethods(options.quiet) as table:
                        driver.drive(entries, resources, table)
                    if options.paces or (not options.only and paces.lacking(entries, store)):
                        paces.measure(entries, store)
        except KeyboardInterrupt:
            print("\ninterrupted; the same command goes on.", file=sys.stderr)
            return INTERRUPTED
    failed = [entry for entry in entries.values() if entry.error]
    for entry in failed:
        print(f"{entry.method.name} failed: {entry.error}", file=sys.stderr)
    return 1 if failed else 0
