"""Tables of a study's report."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from locoprop_lightning.results.table import Curves, cell, markdown, method_rows
from locoprop_lightning.tune.space import shown
from locoprop_lightning.tune.study.pairs import LEVEL, better
from locoprop_lightning.tune.study.search import best_trial
from locoprop_lightning.tune.study.spec import Study
from locoprop_lightning.tune.study.store import Line

FRACTIONS = (0.25, 0.5, 0.75)  # of the run and of the reference's seconds

Methods = Mapping[str, Sequence[Curves]]


def ends(methods: Methods, lines: Mapping[str, Sequence[Line]]) -> list[list[str]]:
    """The rows of the table of what the final runs end with.

    Args:
        methods: Curves of the final runs.
        lines: Lines of the same runs.
    """
    tests = sorted({key for own in lines.values() for line in own for key in line if key.startswith("test/")})
    rows = [["method", "seeds", "train loss", *(key.replace("/", " ") for key in tests), "highest loss after step 100"]]
    rows[0].append("ms a step")
    for name, curves in methods.items():
        own = lines[name]
        values = [_tested([line.get(key) for line in own], ".4f" if "accuracy" in key else ".4g") for key in tests]
        spikes = [math.inf if line["status"] != "done" else line["highest"] for line in own]
        pace = curves[0].run.ms_per_step
        told = "-" if pace is None or math.isnan(pace) else f"{pace:.1f}"
        losses = cell((c.smoothed.last for c in curves), ".4g")
        rows.append([name, str(len(own)), losses, *values, cell(spikes, ".3g"), told])
    return rows


def _tested(values: Sequence[float | None], form: str) -> str:
    """A metric of the runs that came to their end, with their number where it is not all of them."""
    known = sum(value is not None for value in values)
    return cell(values, form) + (f" in {known} of {len(values)}" if 0 < known < len(values) else "")


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
    head, *rows = method_rows(methods, columns, counted="seeds", empty=False)
    if not math.isfinite(target):
        why = f"Most runs of {reference} ended without a finite loss, so that there is none to reach."
        return f"{markdown([head, *rows])}\n\n{why}"
    head += [f"steps to {target:.4g}, of {reference}'s", f"seconds to it, of {reference}'s"]
    steps = {name: [steps_to(c, target) for c in curves] for name, curves in methods.items()}
    own = statistics.median_low(steps[reference])
    for row, name in zip(rows, methods, strict=True):
        reached = statistics.median_low(steps[name])
        pace, base = (methods[one][0].run.ms_per_step for one in (name, reference))
        time = reached / own * (pace or math.nan) / (base or math.nan)
        row += [_ratio(reached / own), _ratio(time)]
    return markdown([head, *rows])


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
    results = {name: {c.run.seed: _logarithm(c.smoothed.last) for c in curves} for name, curves in methods.items()}
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
    bests = (best_trial(lines[: count + 1], rising) for count in range(len(lines)))
    return [math.nan if best is None else best["value"] for best in bests]


def tuning(trials: Mapping[str, Sequence[Line]], rising: bool) -> list[list[str]]:
    """The rows of the table of how easy each method was to tune.

    Args:
        trials: Lines of the trials by method, of each at least one.
        rising: Whether more is better.
    """
    most = max(map(len, trials.values()))
    counts = [count for count in (1, 3, 6, 12, 24, 48) if count == 1 or count < most]
    heads = ["as shipped", *(f"best of {count}" for count in counts[1:]), "best of all"]
    rows = [["method", "trials", *heads, "median of those that ended", "stopped early", "not finite"]]
    for name, lines in trials.items():
        best = best_so_far(lines, rising)
        told = [*(best[count - 1] if count <= len(best) else math.nan for count in counts), best[-1]]
        done = [line["value"] for line in lines if line["status"] == "done" and line["value"] is not None]
        states = [line["status"] for line in lines]
        middle = f"{statistics.median(done):.4g}" if done else "-"
        broken = str(len(states) - states.count("done") - states.count("stopped"))
        cells = ["-" if math.isnan(value) else f"{value:.4g}" for value in told]
        rows.append([name, str(len(lines)), *cells, middle, str(states.count("stopped")), broken])
    return rows


def chosen(study: Study, trials: Mapping[str, Sequence[Line]]) -> str:
    """The table of the best settings and of what was searched, with a word where one lies at the end of its range.

    Args:
        study: The study.
        trials: Lines of the trials by method.
    """
    rows = [["method", "settings", "searched in"]]
    for name, lines in trials.items():
        best, method, told = best_trial(lines, study.rising), study.methods[name], []
        for key, value in ({} if best is None else best["values"]).items():
            told.append(f"{key}={shown(value)}{' (end of its range)' if method.space.at_end(key, value) else ''}")
        ranges = "; ".join(f"{key} {_range(entry)}" for key, entry in method.searched.items())
        rows.append([name, ", ".join(told) or "no trial ended", ranges])
    return markdown(rows, words=rows[0])


def _range(entry: Mapping[str, Any]) -> str:
    """What a space holds of a setting, such as 'loguniform 0.01, 1'."""
    shown = {
        kind: ", ".join(map(str, values)) if isinstance(values, list) else values for kind, values in entry.items()
    }
    return " ".join(f"{kind} {values}" for kind, values in shown.items())
