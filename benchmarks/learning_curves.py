"""Learning curves of configurations, from training runs to a Markdown table and a figure.

    python benchmarks/learning_curves.py run configs/fashion_mnist/*.yaml --seeds 0 1 2
    python benchmarks/learning_curves.py time configs/fashion_mnist/*.yaml --json ms.json
    python benchmarks/learning_curves.py table --ms ms.json
    python benchmarks/learning_curves.py figure --ms ms.json --x seconds curves.svg

Steps are counted from 0, as in TensorBoard: the loss at step k is that of the batch before its update. Losses are
smoothed by s = 0.7 s + 0.3 x over the raw loss of every batch, from the first on. Seconds are those of training since
the fit began, without construction and validation; each step is waited for, on a GPU too.
"""

import argparse
import contextlib
import io
import json
import statistics
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from locoprop_lightning import LocoPropModule
from locoprop_lightning.callbacks.recorder import FitEnded, LossRecorder
from locoprop_lightning.cli import LocoPropCLI, one_sentence
from locoprop_lightning.errors import UserError
from locoprop_lightning.results.curves import AXES, fold_whole
from locoprop_lightning.results.figure import draw, draw_families
from locoprop_lightning.results.methods import by_method
from locoprop_lightning.results.runs import LOSS, smooth
from locoprop_lightning.results.settings import pairs
from locoprop_lightning.results.store import finite, load_runs, save_run, write_json
from locoprop_lightning.results.table import Curves, best_first, cell, markdown, method_rows

DECAY = 0.7  # of the old value in the smoothing
STEPS, SECONDS, SETTLED = (118, 236, 472, 884), (30, 60, 90), 100
EVERY = 59  # steps between two progress lines: an epoch of Fashion-MNIST in batches of 1024
FORCED = {"trainer.logger": "false", "trainer.num_sanity_val_steps": "0"}


class Recorder(LossRecorder):
    """Takes down losses, seconds and metrics; with a name it reports progress."""

    def __init__(self, name: str | None = None) -> None:
        super().__init__()
        self.name = name
        self.metrics: dict[str, list[float | None]] = {}

    def on_validation_end(self, trainer, pl_module):
        for name, value in trainer.callback_metrics.items():
            if name.startswith("val/"):
                self.metrics.setdefault(name.removeprefix("val/"), []).append(finite(value.item()))
        super().on_validation_end(trainer, pl_module)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self.name is not None and len(self.losses) % EVERY == 0:
            told = f"smoothed loss {smooth(self.losses, DECAY)[-1]:.4f}, {self.ends[-1]:.1f} s"
            print(f"{self.name}: {len(self.losses)} steps, {told}", flush=True)


def run(options: argparse.Namespace) -> None:
    options.out.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds:
        for config in options.configs:
            method = options.label or config.stem
            path = options.out / f"{method}-seed{seed}.json"
            if path.exists() and not options.force:
                if json.loads(path.read_text())["settings"] != settings(options):
                    raise SystemExit(f"{path} exists, of other settings: give --label, --out or --force.")
                print(f"{path.stem}: exists, skipped (--force runs it again)", flush=True)
                continue
            print(f"{path.stem}: {config}", flush=True)
            recorder, record = train(config, seed, options)
            save_run(path, {"method": method, "seed": seed, **record}, recorder.losses, recorder.ends)


def settings(options: argparse.Namespace) -> dict[str, str]:
    """What a run overrides in its configuration."""
    return options.set | ({} if options.max_steps is None else {"trainer.max_steps": str(options.max_steps)})


def train(config: Path, seed: int, options: argparse.Namespace) -> tuple[Recorder, dict[str, Any]]:
    cli = LocoPropCLI.build(config, settings(options) | FORCED, seed)
    trainer, module, data = cli.trainer, cli.model, cli.datamodule
    split = "val" if getattr(data, "validation", 0) else "test"  # what validation looks at
    if split == "test" and options.no_test:
        trainer.limit_val_batches = 0
    recorder = Recorder(f"{options.label or config.stem}-seed{seed}")
    trainer.callbacks.append(recorder)
    try:
        trainer.fit(module, data)
    except FitEnded:
        print(f"{recorder.name}: the loss of step {recorder.nonfinite_step} is not finite, stopped", flush=True)
    metrics = {f"{split}_{name}": values for name, values in recorder.metrics.items()}
    tests = split == "val" or not recorder.metrics  # the latter where the last step was not an epoch's last
    if tests and not options.no_test and recorder.nonfinite_step is None:
        (tested,) = trainer.test(module, data, verbose=False)
        metrics |= {name.replace("/", "_"): [finite(value)] for name, value in tested.items()}
    return recorder, {
        "settings": settings(options),
        "steps": len(recorder.losses),
        "nonfinite_step": recorder.nonfinite_step,
        **metrics,
        "ms_per_step": round(statistics.mean(recorder.step_ms), 3),
        "status": module.engine.counts if isinstance(module, LocoPropModule) else {},
        "threads": torch.get_num_threads(),
        "device": trainer.strategy.root_device.type,
        "torch": torch.__version__,
    }


def load(folder: Path, ms: Path | None) -> dict[str, list[Curves]]:
    """The train losses of a folder's runs by method, the lowest at the end first."""
    if ms is not None and not ms.is_file():
        raise SystemExit(f"--ms {ms}: no such file; 'time --json {ms}' makes it.")
    runs = load_runs(folder, None if ms is None else json.loads(ms.read_text()))
    if not runs:
        raise SystemExit(f"{folder} holds no runs: make some with the subcommand 'run'.")
    return best_first(by_method(runs, LOSS), LOSS, DECAY)


def highest(curves: Curves) -> float | None:
    """Highest raw loss once training has settled."""
    return curves.raw.beyond or max(curves.raw.values[SETTLED + 1 :].tolist(), default=None)


def table(options: argparse.Namespace) -> None:
    if min(options.steps, default=0) < 0 or min(options.epochs, default=1) < 1:
        raise SystemExit("--steps counts from 0 and --epochs from 1: name none below.")
    methods = load(options.out, options.ms)
    runs = [c.run for curves in methods.values() for c in curves]
    ends = {int(c.raw.steps[-1]) for curves in methods.values() for c in curves if not c.run.stopped}
    last = max(ends, default=0)
    columns = {}
    for step in options.steps:
        if step <= last:
            columns[f"step {step}"] = ".4g", lambda c, step=step: c.smoothed.at(step)
        else:
            print(f"no run has a step {step}; the last one is {last}", file=sys.stderr)
    if not ends <= set(options.steps) or not ends:
        columns["last step"] = ".4g", lambda c: c.smoothed.last
    for seconds in options.seconds:
        columns[f"{seconds:g} s"] = ".4g", lambda c, seconds=seconds: c.smoothed.after(seconds)
    columns[f"highest raw loss after step {SETTLED}"] = ".4g", highest
    accuracy = any(run.epoch_metrics.get("test_accuracy") for run in runs)
    metric, form = ("test_accuracy", ".4f") if accuracy else ("test_loss", ".4g")
    name = metric.replace("_", " ")
    for epoch in options.epochs:
        columns[f"{name}, epoch {epoch}"] = form, lambda c, index=epoch - 1: c.run.epoch_metric(metric, index)
    columns[name] = form, lambda c: c.run.epoch_metric(metric, -1)
    columns["ms a step"] = ".1f", lambda c: c.run.ms_per_step
    print(markdown(method_rows(methods, columns, counted="seeds", empty=False)))


def figure(options: argparse.Namespace) -> None:
    if not options.until > 1:
        raise SystemExit(f"--until {options.until:g}: no curve is left; take a step or second after the first.")
    curves = {}
    for method, members in load(options.out, options.ms).items():
        curve = fold_whole(members, "step" if options.x == "step" else "time")
        if curve is None:
            print(f"{method}: left out, its pace is not in --ms", file=sys.stderr)
        else:
            curves[method] = curve.until(options.until)
    across, up = AXES["step" if options.x == "step" else "time"][0], f"train loss, smoothed by {DECAY:g}"
    if options.family:
        draw_families(curves, {title: names.split(",") for title, names in options.family}, options.file, across, up)
    else:
        draw(curves, options.file, across, up, focus=options.focus)


def measure(options: argparse.Namespace) -> None:
    steps = {"trainer.max_epochs": "-1", "trainer.max_steps": str(options.skip + options.steps)}
    times: dict[str, list[float]] = {config.stem: [] for config in options.configs}
    for turn in range(options.rounds):
        for config in options.configs:
            recorder = Recorder()
            with contextlib.redirect_stdout(io.StringIO()):  # the table of layers and the summary
                changed = options.set | steps | {"trainer.limit_val_batches": "0"} | FORCED
                cli = LocoPropCLI.build(config, changed)
                cli.trainer.callbacks.append(recorder)
                cli.trainer.fit(cli.model, cli.datamodule)
            mean = statistics.mean(recorder.step_ms[options.skip :])
            times[config.stem].append(mean)
            print(f"round {turn + 1}, {config.stem}: {mean:.1f} ms a step", file=sys.stderr, flush=True)
    paces = {stem: statistics.median(values) for stem, values in times.items()}
    adam = paces.get("adam")
    rows = [["method", "ms a step", *(["x adam"] if adam else [])]]
    for stem, pace in sorted(paces.items(), key=lambda item: item[1]):
        rows.append([stem, cell(times[stem], ".1f"), *([f"{pace / adam:.2f}"] if adam else [])])
    print(markdown(rows))
    if options.json:
        write_json(options.json, {stem: round(pace, 3) for stem, pace in paces.items()})


def make_parser() -> argparse.ArgumentParser:
    configs, folder, pace = (argparse.ArgumentParser(add_help=False) for _ in range(3))
    text = "YAML file as for `locoprop fit --config`; its stem names the method"
    configs.add_argument("configs", type=Path, nargs="+", metavar="CONFIG", help=text)
    text = "settings to override, named as on the command line: model.lambda_a=100"
    configs.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help=text)
    text = "folder of the results (default: %(default)s)"
    folder.add_argument("--out", type=Path, default=Path("docs/results/fashion_mnist"), metavar="DIR", help=text)
    text = "the --json of 'time': its pace replaces the recorded one, as runs may have shared the machine"
    pace.add_argument("--ms", type=Path, metavar="FILE.json", help=text)

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(function, name: str, text: str, more: str, *parents: argparse.ArgumentParser):
        described = f"{text[0].upper()}{text[1:]}. {more}"
        sub = commands.add_parser(name, help=text, description=described, parents=parents)
        sub.set_defaults(function=function)
        return sub.add_argument

    more = (
        "Writes NAME-seedK.csv (step, loss, seconds) and NAME-seedK.json a run. A run whose json exists is skipped, so "
    )
    more += "that a stopped batch of runs goes on. A run whose loss is not finite is recorded and stops there."
    add = command(run, "run", "train configurations and record their curves", more, configs, folder)
    add("--seeds", type=int, nargs="+", default=[0], metavar="SEED", help="seeds of each configuration (default: 0)")
    add("--max-steps", type=int, metavar="N", help="stop after N steps, or earlier where the epochs end")
    add("--label", metavar="NAME", help="name of the method, for a single configuration (default: its stem)")
    text = "never look at the test images, for choosing settings: no test at the end, and no validation each epoch "
    add("--no-test", action="store_true", help=f"{text} unless data.validation holds training images out")
    add("--force", action="store_true", help="replace results that exist")
    more = "A cell is the median over the seeds and, with several, their range. The lowest final loss comes first."
    add = command(table, "table", "print a Markdown table of the recorded runs, a row a method", more, folder, pace)
    text = "steps whose smoothed loss is shown (default: %(default)s); the last one always is"
    add("--steps", type=int, nargs="*", default=STEPS, metavar="STEP", help=text)
    text = "seconds of training after which it is shown (default: %(default)s)"
    add("--seconds", type=float, nargs="*", default=SECONDS, metavar="S", help=text)
    text = "epochs after which the test metric is shown, from 1 on (default: the last alone)"
    add("--epochs", type=int, nargs="*", default=(), metavar="EPOCH", help=text)
    more = "The line is the median over the seeds; a band shows the range of several."
    add = command(figure, "figure", "draw the smoothed train losses, a line a method", more, folder, pace)
    add("file", type=Path, metavar="FILE.svg", help="file to write")
    add("--x", choices=("step", "seconds"), default="step", help="horizontal axis (default: step)")
    text = "where the horizontal axis ends (default: with the longest run)"
    add("--until", type=float, default=float("inf"), metavar="X", help=text)
    text = "methods that have a colour and their names at their curves' ends, while the others are grey"
    add("--focus", nargs="+", default=[], metavar="METHOD", help=text)
    text = "one of several panels, in which these methods are in focus: TITLE METHOD,METHOD"
    add("--family", nargs=2, action="append", metavar=("TITLE", "METHODS"), help=text)
    more = (
        "The configurations take turns in one process, on their own data, without validation, with seed 0. A turn is a "
    )
    more += (
        "fresh fit whose first --skip steps are left out. Of the next --steps the MEAN is taken: some methods refresh "
    )
    more += "their factors at every step at first and at every tenth later, so that 40 steps hold whole periods, while "
    more += "a median would miss the refreshes. The result is the median over the rounds."
    add = command(measure, "time", "measure milliseconds a step, on an otherwise idle machine", more, configs)
    add("--steps", type=int, default=40, metavar="N", help="measured steps of a turn (default: 40)")
    add("--rounds", type=int, default=3, metavar="N", help="turns of each configuration (default: 3)")
    add("--skip", type=int, default=45, metavar="N", help="steps before those (default: 45)")
    add("--json", type=Path, metavar="FILE.json", help="file to write {stem: milliseconds a step} to, for --ms")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    parser = make_parser()
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(arguments)
    if "configs" in options:
        try:
            options.set = pairs(options.set)
        except UserError:
            parser.error("--set takes KEY=VALUE")
        if getattr(options, "label", None) and len(options.configs) > 1:
            parser.error("--label names a single configuration")
        if len({config.stem for config in options.configs}) < len(options.configs):
            parser.error("two configurations have the same stem")
    warnings.filterwarnings("ignore")
    with one_sentence("learning_curves", arguments):
        options.function(options)


if __name__ == "__main__":
    main()
