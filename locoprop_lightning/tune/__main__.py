"""The command `locoprop-tune`."""

import argparse
import logging
import re
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

from locoprop_lightning import shipped
from locoprop_lightning.cli import one_sentence
from locoprop_lightning.command_line import Parser, check_arguments
from locoprop_lightning.errors import INTERRUPTED, UserError, check_counts, check_positive
from locoprop_lightning.files import check_folder, expanded, parse_json
from locoprop_lightning.results.names import trial_number
from locoprop_lightning.results.settings import pairs
from locoprop_lightning.results.table import rises
from locoprop_lightning.results.terminal import as_shown
from locoprop_lightning.tune import stay_on_loopback

BEGUN = "tuner.pkl"  # what Tune writes when a sweep begins
NEEDED = ("cmaes", "optuna", "ray", "scipy")  # what the extra of this name installs


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = Parser(
        prog="locoprop-tune",
        description="Searches settings of a configuration with Ray Tune. Logs, checkpoints and results are in "
        "STORAGE/NAME; a sweep that was stopped goes on with --resume. `locoprop-tune study --help` is about studies, "
        "which compare methods with equal budgets.",
    )
    add = parser.add_argument
    add(
        "--config",
        type=Path,
        metavar="A.yaml",
        help="configuration, as for `locoprop fit --config`: a file or a shipped one, such as digits/foof",
    )
    add("--space", type=Path, metavar="SPACE.yaml", help="what is searched: a file or a shipped one, such as foof")
    text = "settings that all trials have, such as data.validation=5000"
    add("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help=text)
    add("--samples", type=int, default=16, metavar="N", help="number of trials (default: %(default)s)")
    text = "how settings are chosen (default: %(default)s); gp is Bayesian search with a Gaussian process"
    add("--search", choices=("random", "tpe", "gp", "cmaes"), default="tpe", help=text)
    text = "what stops bad trials early (default: %(default)s); pbt changes settings within a trial"
    add("--scheduler", choices=("none", "asha", "median", "pbt"), default="none", help=text)
    add("--grace", type=int, default=1, metavar="E", help="epochs before a trial may be stopped (default: %(default)s)")
    add("--metric", default="val/accuracy", metavar="TAG", help="what is judged at the end (default: %(default)s)")
    text = "whether less or more is better (default: more for an accuracy, else less)"
    add("--mode", choices=("min", "max"), help=text)
    text = "seeds a configuration is judged on, by the median (default: %(default)s)"
    add("--seeds", type=int, default=1, metavar="K", help=text)
    add("--seed", type=int, default=0, help="first seed, and that of the search (default: %(default)s)")
    text = "processors of a trial, and its threads (default: %(default)s)"
    add("--cpus-per-trial", type=float, default=1, metavar="N", help=text)
    add("--gpus-per-trial", type=float, default=0, metavar="N", help="GPUs of a trial, such as 0.5 (default: 0)")
    text = "processes of a trial, which share its processors, GPUs and batches (default: %(default)s)"
    add("--workers-per-trial", type=int, default=1, metavar="W", help=text)
    add("--concurrent", type=int, default=0, metavar="N", help="trials at a time (default: what fits)")
    add("--time-budget", type=float, metavar="SECONDS", help="stop the sweep after so long")
    text = "folder of all sweeps (default: %(default)s); on a cluster one that every node sees"
    add("--storage", type=Path, default=Path("runs/tune"), metavar="DIR", help=text)
    add("--name", help="name of the sweep (default: the configuration's and the time)")
    add("--resume", action="store_true", help="go on with the sweep NAME, whose other options are kept")
    add("--address", help="address of a Ray cluster, 'auto' for that of this machine (default: start one)")
    text = "checkpoints that pbt keeps of a trial (default: %(default)s); all else keeps one"
    add("--keep", type=int, default=4, metavar="N", help=text)
    text = "times that a trial which failed is tried again from its checkpoint (default: %(default)s)"
    add("--max-failures", type=int, default=2, metavar="N", help=text)
    add("--quiet", action="store_true", help="no table while it runs")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a sweep, or a study where that is the first argument.

    A mistake that the user can mend ends the process with one sentence and status 2. Warnings are switched off.

    Args:
        arguments: Arguments of the command; those of the process if not given.

    Returns:
        An exit status, which is 0, 1 where trials failed for good, or 130 where the command was interrupted.
    """
    check_arguments(arguments)
    arguments = expanded(sys.argv[1:] if arguments is None else arguments)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning").setLevel(logging.WARNING)  # each configuration that is tried says what it sees
    for name in ("pytorch", "fabric"):
        logging.getLogger(f"lightning.{name}").setLevel(logging.WARNING)
    with one_sentence("locoprop-tune", arguments):
        try:
            if arguments[:1] == ["study"]:
                from locoprop_lightning.tune.study.command import study

                return study(arguments[1:], [*make_parser()._option_string_actions])
            if arguments and not arguments[0].startswith("-"):
                name = arguments[0]
                config = name if "/" in name or name.endswith(".yaml") else f"{name}/NAME"
                raise UserError(f"{name}: is no option; give locoprop-tune study {name}, or --config {config}.")
            return sweep(make_parser().parse_args(arguments))
        except ModuleNotFoundError as error:
            if error.name not in NEEDED:
                raise
            raise UserError(
                f"{error.name} is not installed: sweeps and studies need pip install 'locoprop-lightning[tune]'."
            ) from error


def sweep(options: argparse.Namespace) -> int:
    """Searches, then writes and prints what was found."""
    if options.resume:
        options = kept(options)
    if options.config is None or options.space is None:
        raise UserError("--config and --space: name a configuration and a space; locoprop configs lists some.")
    for name in ("samples", "seeds", "keep", "grace", "workers_per_trial"):
        check_counts("", 1, **{name: getattr(options, name)})
    for name in ("concurrent", "max_failures", "seed"):
        check_counts("", 0, **{name: getattr(options, name)})
    check_positive("", cpus_per_trial=options.cpus_per_trial)
    if options.gpus_per_trial:
        check_positive("", gpus_per_trial=options.gpus_per_trial)
    if options.time_budget is not None:
        check_positive("", time_budget=options.time_budget)
    if options.workers_per_trial > 1:
        if options.scheduler == "pbt":
            raise UserError("--scheduler pbt: hands checkpoints from trial to trial, and takes --workers-per-trial 1.")
        if options.gpus_per_trial % options.workers_per_trial:
            raise UserError(
                f"--gpus-per-trial {options.gpus_per_trial:g}: each of the {options.workers_per_trial} workers needs "
                "whole GPUs; give a multiple of --workers-per-trial, or 0."
            )
    options.config = shipped.find(options.config, shipped.CONFIGS, "--config ")
    options.space = shipped.find(options.space, shipped.SPACES, "--space ")
    usual, other = ("max", "min") if rises(options.metric) else ("min", "max")
    options.mode = options.mode or usual
    if options.mode == other and re.search("accuracy|loss", options.metric):
        ends = {"min": "lowest", "max": "highest"}
        told = f"takes the {ends[other]} {options.metric} for the best; leave it out for the {ends[usual]}."
        print(f"--mode {other}: {told}", file=sys.stderr)
    if options.name and (Path(options.name).name != options.name or options.name == ".."):
        raise UserError(f"--name {options.name}: is no name of a folder; --storage says where that lies.")
    options.name = options.name or f"{options.config.stem}_{time.strftime('%Y-%m-%d_%H-%M-%S')}"

    stay_on_loopback(options.address)
    import ray  # which takes seconds to import

    from locoprop_lightning.tune import cluster, results
    from locoprop_lightning.tune import sweep as sweeps
    from locoprop_lightning.tune.check import check, epochs_of
    from locoprop_lightning.tune.space import Space

    folder = sweeps.folder_of(options)
    if not options.resume and (folder / BEGUN).exists():
        raise UserError(f"--name {options.name}: {folder} holds a sweep; give another name, or --resume.")
    space = Space.load(options.space)
    if options.scheduler == "pbt":
        sweeps.domains(space)
    fixed = {} if options.resume else pairs(options.set)
    for key in fixed.keys() & space.dimensions.keys():
        raise UserError(f"--set {key}={fixed[key]}: is searched by the space; take it out of one of the two.")
    settings = check(options.config, space, options.metric, fixed, options.workers_per_trial)
    epochs = epochs_of(settings)
    length = epochs * options.seeds
    if options.scheduler != "none" and options.grace >= length and not options.resume:
        raise UserError(
            f"--grace {options.grace}: is not below the {length} epochs of a trial; give less, or more of these."
        )
    if settings.get("data.validation") == 0:
        print("data.validation=0: trials are judged on the test images; --set data.validation=N holds others out.")
    start = space.start(settings)
    missing = [key for key, one in space.dimensions.items() if not one.when and key not in start]
    if missing and not options.resume and options.scheduler != "pbt":
        print(f"the configuration has no value of {', '.join(missing)} in the space: its first trial draws one.")
    check_folder(f"--storage {options.storage}", folder)
    if not options.address:
        cluster.check_room(options, cluster.here())
    with cluster.joined(options.address):
        cluster.check_room(options, ray.cluster_resources())
        config = folder / "base.yaml" if options.resume else sweeps.remember(options, fixed)
        grid = sweeps.tuner(options, space, config, start, epochs).fit()
        found = results.outcomes(grid, options, epochs)
    print(as_shown(results.table(found, space, options.metric), words=["status"]))
    print(*results.write(found, space, options), sep="\n", flush=True)
    failed = [outcome for outcome in found if outcome.status == "failed"]
    for outcome in failed:
        print(f"trial {trial_number(outcome.name)} failed for good: {outcome.error}", file=sys.stderr)
    if failed or not found:
        return 1
    if unfinished([outcome.status for outcome in found], options):
        print(f"not all trials are done; --storage {options.storage} --name {options.name} --resume goes on.")
        return INTERRUPTED
    return 0


def unfinished(statuses: Sequence[str], options: argparse.Namespace) -> bool:
    """Whether a sweep was interrupted, as far as trials tell: a scheduler or the time budget ends some early too."""
    early = options.scheduler == "none" and "stopped early" in statuses
    return options.time_budget is None and (len(statuses) < options.samples or early)


def kept(options: argparse.Namespace) -> argparse.Namespace:
    """The options of the sweep that is resumed.

    Raises:
        UserError: Where there is none, or it was damaged or renamed.
    """
    if not options.name:
        raise UserError("--resume: name the sweep with --name.")
    folder = options.storage.resolve() / options.name
    path = folder / "options.json"
    if not path.is_file():
        raise UserError(f"--resume: {folder} holds no sweep; look at --storage and --name.")
    if not (folder / BEGUN).exists():
        raise UserError(f"--resume: the sweep in {folder} never began; start it again without --resume.")
    defaults = vars(make_parser().parse_args([]))  # also of options that an older sweep did not have
    changed = [
        f"--{name.replace('_', '-')}"
        for name, value in vars(options).items()
        if name not in ("storage", "name", "resume", "address", "quiet") and value != defaults[name]
    ]
    if changed:
        raise UserError(f"--resume: goes on with the options that the sweep was started with; leave out {changed[0]}.")
    files = [path, *sorted(folder.glob("experiment_state-*.json"))[-1:]]  # with what Tune would go on from
    way = "put back a copy of it, or start another sweep"
    stored, *_ = [parse_json(file.read_text(), f"--resume: {file}", way) for file in files]
    if not isinstance(stored, dict):
        raise UserError(f"--resume: {path}: holds no options; {way}.")
    if (name := stored.get("name", options.name)) != options.name:
        raise UserError(
            f"--name {options.name}: the sweep in {folder} began as {name}, and would go on there; give its "
            "folder that name again."
        )
    new = {"storage": options.storage, "resume": True, "address": options.address, "quiet": options.quiet}
    return argparse.Namespace(
        **(defaults | stored | new | {"config": folder / "base.yaml", "space": folder / "space.yaml"})
    )


if __name__ == "__main__":
    raise SystemExit(main())
