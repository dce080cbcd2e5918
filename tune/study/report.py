"""The report of a study: one Markdown page and its figures, from what is stored alone."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from locoprop_lightning.results.figure import AXES, Curve, draw, fold
from locoprop_lightning.results.runs import LOSS, Run
from locoprop_lightning.results.table import Curves, best_first, cell, markdown, method_table, rank
from tune.space import shown
from tune.study import paces
from tune.study.figures import draw_ends, draw_tuning
from tune.study.pairs import LEVEL, better
from tune.study.spec import Study
from tune.study.store import FINALS, TRIALS, Line, Store, read_curve, replace

DECAY = 0.7  # of the old value in the smoothing
PAGE = "report.md"
FRACTIONS = (0.25, 0.5, 0.75)

Methods = dict[str, list[Curves]]


def write(study: Study, store: Store) -> str:
    """Writes the page and the figures; gives what to say of them.

    Args:
        study: The study.
        store: What it has found.
    """
    trials, finals = by_method(store.lines(TRIALS)), by_method(store.lines(FINALS))
    if not trials:
        return f"{store.folder}: nothing is stored yet."
    known = paces.load(store.folder)
    methods = best_first(load_runs(finals, store, known), LOSS, DECAY)
    lines = {name: finals[name] for name in methods}
    parts = [f"# {study.title}", setting(study, store, trials, finals, known)]
    if methods:
        reference = study.reference if study.reference in methods else next(iter(methods))
        draw_ends(
            {name: [c.smoothed.last for c in curves] for name, curves in methods.items()},
            {name for name, own in lines.items() if own[0]["local"]},
            store.folder / "ends.svg",
        )
        figures(methods, store.folder)
        parts += [
            "## At the end",
            "![Train loss at the end of every run](ends.svg)",
            ends(methods, lines),
            "## On the way",
            way(methods, reference),
            "![Train loss against steps](steps.svg)",
        ]
        parts += ["![Train loss against seconds](seconds.svg)"] if (store.folder / "seconds.svg").is_file() else []
        parts += ["## Which differences stand", pairs(methods)]
    draw_tuning({name: best_so_far(own, study.rising) for name, own in trials.items()}, store.folder / "tuning.svg")
    parts += [
        "## Tuning",
        tuning(trials, study.rising),
        "![The best of the first trials](tuning.svg)",
        "Settings of each method's best trial; `best/METHOD.yaml` holds the whole configuration:",
        chosen(trials, study.rising),
    ]
    replace(store.folder / PAGE, "\n\n".join(parts) + "\n")
    table = ends(methods, lines) if methods else tuning(trials, study.rising)
    return f"{table}\n\nreport: {store.folder / PAGE}"


def by_method(lines: Sequence[Line]) -> dict[str, list[Line]]:
    """Lines by method, in the order in which they stand.

    Args:
        lines: The lines.
    """
    found: dict[str, list[Line]] = {}
    for line in lines:
        found.setdefault(line["method"], []).append(line)
    return found


def load_runs(
    finals: Mapping[str, Sequence[Line]], store: Store, known: Mapping[str, paces.Pace]
) -> dict[str, list[Run]]:
    """The final runs by method, with seconds at the measured pace.

    Args:
        finals: Their lines.
        store: Where their curves lie.
        known: The measured paces.
    """
    runs: dict[str, list[Run]] = {}
    for name, lines in finals.items():
        for line in lines:
            losses = read_curve(store.curve(name, line["seed"]))
            pace = known[name].ms if name in known and known[name].mark == line["mark"] else math.nan
            points = {step: (loss, pace * (step + 1) / 1000) for step, loss in enumerate(losses)}
            run = Run(
                scalars={LOSS: points},
                folder=store.folder,
                settings={"seed_everything": line["seed"]},
                label=name,
                stopped=line["status"] != "done",
                ms_per_step=pace,
            )
            runs.setdefault(name, []).append(run)
    return runs


def setting(
    study: Study,
    store: Store,
    trials: Mapping[str, Sequence[Line]],
    finals: Mapping[str, Sequence[Line]],
    known: Mapping[str, paces.Pace],
) -> str:
    """What was compared, and how.

    Args:
        study: The study.
        store: What it has found.
        trials: Lines of the trials by method.
        finals: Lines of the final runs by method.
        known: The measured paces.
    """
    budget = study.budget
    every = [*(line for own in trials.values() for line in own), *(line for own in finals.values() for line in own)]
    machines = sorted({f"{line['device']}, torch {line['torch']}" for line in every if "device" in line})
    measured = sorted({f"{pace.machine} ({pace.when})" for pace in known.values()})
    missing = [
        name
        for name in study.methods
        if len(trials.get(name, [])) < budget.trials or len(finals.get(name, [])) < budget.seeds
    ]
    steps = sorted({line["steps"] for own in finals.values() for line in own if line["status"] == "done"})
    told = [
        *filter(None, [study.note]),
        f"Every method has {budget.trials} trials with seed 0, the first with the configuration as shipped, the others "
        "by Bayesian search; each as long as the final runs, and stopped after a quarter or a half if its loss is in "
        f"the last third of the method's trials there. The settings of the best trial by `{study.judge}`"
        + (", smoothed, at the last step," if study.judge == LOSS else "")
        + f" are then trained with the seeds 1 to {budget.seeds}, which are what the tables show: the median, and the "
        "range.",
        "Losses are of the batch before its update, smoothed by s = 0.7 s + 0.3 x; steps count from 0."
        + (f" A run has {', '.join(map(str, steps))} steps." if steps else ""),
        f"Runs had {budget.threads} threads on {'; '.join(machines)}."
        + (f" Paces were measured alone, all methods in turn, on {'; '.join(measured)}." if measured else ""),
    ]
    if missing:
        told.append(f"Not finished yet: {', '.join(missing)}.")
    return "\n\n".join(told)


def ends(methods: Methods, lines: Mapping[str, Sequence[Line]]) -> str:
    """The table of what the final runs end with.

    Args:
        methods: Curves of the final runs.
        lines: Lines of the same runs.
    """
    tests = sorted({key for own in lines.values() for line in own for key in line if key.startswith("test/")})
    rows = [["method", "seeds", "train loss", *(key.replace("/", " ") for key in tests), "highest loss after step 100"]]
    rows[0].append("ms a step")
    for name, curves in methods.items():
        own = lines[name]
        values = [cell((line.get(key) for line in own), ".4f" if "accuracy" in key else ".4g") for key in tests]
        spikes = [math.inf if line["status"] != "done" else line["highest"] for line in own]
        pace = curves[0].run.ms_per_step
        told = "-" if pace is None or math.isnan(pace) else f"{pace:.1f}"
        losses = cell((c.smoothed.last for c in curves), ".4g")
        rows.append([name, str(len(own)), losses, *values, cell(spikes, ".3g"), told])
    return markdown(rows)


def way(methods: Methods, reference: str) -> str:
    """The table of losses at equal steps and seconds, and of what it takes to the reference's last loss.

    Args:
        methods: Curves of the final runs.
        reference: The method that sets the target.
    """
    rival = methods[reference]
    length = max(int(c.raw.steps[-1]) for c in rival)
    columns: dict[str, tuple[str, Callable[[Curves], float | None]]] = {}
    for fraction in FRACTIONS:
        step = round(fraction * length)
        columns[f"step {step}"] = ".4g", lambda c, step=step: c.smoothed.at(step)  # type: ignore[misc]
    columns[f"step {length}"] = ".4g", lambda c: c.smoothed.last
    whole = statistics.median(float(c.raw.seconds[-1]) for c in rival)
    if math.isfinite(whole):
        for fraction in (*FRACTIONS, 1.0):
            seconds = fraction * whole
            columns[f"{seconds:.3g} s"] = ".4g", lambda c, seconds=seconds: c.smoothed.after(seconds)  # type: ignore[misc]
    target = statistics.median_high(c.smoothed.last for c in rival)  # which at least half of its runs come to
    table = method_table(methods, columns, counted="seeds", empty=False)
    heads, line, *body = table.splitlines()
    more = [f" steps to {target:.4g}, of {reference}'s | seconds to it, of {reference}'s |", "---:|---:|"]
    steps = {name: [steps_to(c, target) for c in curves] for name, curves in methods.items()}
    own = statistics.median_low(steps[reference])
    for name in methods:
        reached = statistics.median_low(steps[name])
        pace, base = (methods[one][0].run.ms_per_step for one in (name, reference))
        time = reached / own * (pace or math.nan) / (base or math.nan)
        more.append(f" {_ratio(reached / own)} | {_ratio(time)} |")
    return "\n".join(a + b for a, b in zip([heads, line, *body], more, strict=True))


def _ratio(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "-"


def steps_to(curves: Curves, target: float) -> float:
    """Steps until the smoothed loss is at a target, infinite where it never is.

    Args:
        curves: Curves of a run.
        target: The target.
    """
    below = np.flatnonzero(curves.smoothed.values <= target)
    return float(curves.smoothed.steps[below[0]] + 1) if len(below) else math.inf


def pairs(methods: Methods) -> str:
    """The table of which method is better than which.

    Args:
        methods: Curves of the final runs.
    """
    names = list(methods)
    results = {
        name: {
            c.run.seed: math.log(max(c.smoothed.last, 1e-300)) if math.isfinite(c.smoothed.last) else None for c in cs
        }
        for name, cs in methods.items()
    }
    rows = [["", *map(str, range(1, len(names) + 1))]]
    open_pairs = total = 0
    for place, name in enumerate(names, 1):
        cells = []
        for other in names:
            verdict = better(results[name], results[other])
            cells.append("" if other == name else {-1: "<", 1: ">", None: "?"}[verdict])
        rows.append([f"{place} {name}", *cells])
        open_pairs += cells.count("?")
        total += len(names) - 1
    seeds = min((len(one) for one in results.values()), default=0)
    decided = (total - open_pairs) // 2
    told = (
        f"`<`: the method of the row has the lower train loss; `>`: the higher one; `?`: not decided with {seeds} "
        f"seeds. A paired t-test by seed on the logarithm of the loss, at {LEVEL:.0%} a pair: of pairs that do not "
        "differ, that share is called different by chance. The settings are taken as given: that one search chose each "
        "is not in it. "
        f"{decided} of {total // 2} pairs are decided."
    )
    return f"{told}\n\n{markdown(rows)}"


def _logarithm(loss: float) -> float | None:
    return math.log(max(loss, 1e-300)) if math.isfinite(loss) else None


def best_so_far(lines: Sequence[Line], rising: bool) -> list[float]:
    """The best judged metric of the first trials, NaN while there is none [trials].

    Args:
        lines: Lines of a method's trials, in order.
        rising: Whether more is better.
    """
    best, found = math.nan, []
    for line in lines:
        value = line["value"] if line["status"] == "done" else None
        if value is not None and (math.isnan(best) or rank(value, rising) < rank(best, rising)):
            best = value
        found.append(best)
    return found


def tuning(trials: Mapping[str, Sequence[Line]], rising: bool) -> str:
    """The table of how easy each method was to tune.

    Args:
        trials: Lines of the trials by method.
        rising: Whether more is better.
    """
    most = max(map(len, trials.values()))
    counts = [count for count in (1, 3, 6, 12, 24, 48) if count < most] + [most]
    heads = ["as shipped" if count == 1 else f"best of {count}" for count in counts]
    rows = [["method", "trials", *heads, "median", "stopped early", "not finite"]]
    for name, lines in trials.items():
        best = best_so_far(lines, rising)
        told = [best[count - 1] if count <= len(best) else math.nan for count in counts]
        done = [line["value"] for line in lines if line["status"] == "done" and line["value"] is not None]
        states = [line["status"] for line in lines]
        middle = f"{statistics.median(done):.4g}" if done else "-"
        broken = str(len(states) - states.count("done") - states.count("stopped"))
        cells = ["-" if math.isnan(value) else f"{value:.4g}" for value in told]
        rows.append([name, str(len(lines)), *cells, middle, str(states.count("stopped")), broken])
    return markdown(rows)


def chosen(trials: Mapping[str, Sequence[Line]], rising: bool) -> str:
    """The table of the best settings.

    Args:
        trials: Lines of the trials by method.
        rising: Whether more is better.
    """
    rows = [["method", "settings"]]
    for name, lines in trials.items():
        done = [line for line in lines if line["status"] == "done" and line["value"] is not None]
        best = min(done, key=lambda line: rank(line["value"], rising), default=None)
        told = (
            "none came to its end" if best is None else ", ".join(f"{k}={shown(v)}" for k, v in best["values"].items())
        )
        rows.append([name, told])
    return markdown(rows)


def figures(methods: Methods, folder: Path) -> None:
    """Draws the curves against steps, and against seconds where the paces are known.

    Args:
        methods: Curves of the final runs.
        folder: Where the figures go.
    """
    for axis in ("step", "time"):
        path = folder / ("steps.svg" if axis == "step" else "seconds.svg")
        lines: dict[str, Curve] = {}
        for name, curves in methods.items():
            whole = [len(c.raw.steps) for c in curves if not c.run.stopped]
            length = min(whole, default=max(len(c.raw.steps) for c in curves))
            losses = np.array([[c.smoothed.at(step) for step in range(length)] for c in curves], dtype=float)
            pace = curves[0].run.ms_per_step
            x = (
                np.arange(length, dtype=float)
                if axis == "step"
                else np.arange(1, length + 1) * (pace or math.nan) / 1000
            )
            if np.isfinite(x).all():
                lines[name] = fold(x, losses)
        path.unlink(missing_ok=True)
        if lines:
            for ending in (".svg", ".png"):
                draw(lines, path.with_suffix(ending), AXES[axis][0], f"train loss, smoothed by {DECAY:g}")
