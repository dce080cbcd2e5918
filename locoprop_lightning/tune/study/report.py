"""The report of a study: one Markdown page and its figures, from what is stored alone."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from locoprop_lightning.files import replace
from locoprop_lightning.results.curves import AXES, fold_whole
from locoprop_lightning.results.figure import draw
from locoprop_lightning.results.runs import LOSS, Run
from locoprop_lightning.results.table import best_first, markdown
from locoprop_lightning.results.terminal import as_shown
from locoprop_lightning.tune.study import paces
from locoprop_lightning.tune.study.figures import draw_ends, draw_tuning
from locoprop_lightning.tune.study.spec import Study
from locoprop_lightning.tune.study.standing import Standing
from locoprop_lightning.tune.study.store import FINALS, TRIALS, Line, Store, read_curve
from locoprop_lightning.tune.study.tables import Methods, best_so_far, chosen, ends, pairs, tuning, way

DECAY = 0.7  # of the old value in the smoothing
PAGE = "report.md"
FOCUS = 7  # methods that a figure can name


def write(study: Study, store: Store) -> str | None:
    """Writes the page and the figures; gives what to say of them, None where nothing of the study is stored yet.

    Args:
        study: The study.
        store: What it has found.
    """
    standing = {name: Standing(method, study, store) for name, method in study.methods.items()}
    trials = {name: own for name, one in standing.items() if (own := one.trials)}
    finals = {name: list(runs.values()) for name, one in standing.items() if (runs := one.finals)}
    if not trials:
        return None
    known = paces.load(store.folder)
    methods = best_first(load_runs(finals, store, known), LOSS, DECAY)
    lines = {name: finals[name] for name in methods}
    parts = [f"# {study.title}", *_unfinished(standing, store), setting(study, trials, finals, known)]
    local = {name for name, own in trials.items() if own[0]["local"]}
    if methods:
        reference = study.reference if study.reference in methods else next(iter(methods))
        last = {name: [c.smoothed.last for c in curves] for name, curves in methods.items()}
        draw_ends(last, local, store.folder / "ends.svg")
        figures(methods, in_focus(methods, local, reference), store.folder)
        parts += [
            "## At the end",
            "![Train loss at the end of every run](ends.svg)",
            markdown(ends(methods, lines)),
            "## On the way",
            way(methods, reference),
            "![Train loss against steps](steps.svg)",
        ]
        parts += ["![Train loss against seconds](seconds.svg)"] if (store.folder / "seconds.svg").is_file() else []
        parts += ["## Which differences stand", pairs(methods)]
    searched = {name: best_so_far(own, study.rising) for name, own in trials.items()}
    named = in_focus(_ranked(searched, methods, study.rising), local, study.reference)
    draw_tuning(searched, named, store.folder / "tuning.svg")
    parts += [
        "## Tuning",
        markdown(tuning(trials, study.rising)),
        "![The best of the first trials](tuning.svg)",
        "Settings of each method's best trial; `best/METHOD.yaml` holds the whole configuration. Where one lies at the "
        "end of its range, a wider one might have served the method better.",
        chosen(study, trials),
    ]
    replace(store.folder / PAGE, "\n\n".join(parts) + "\n")
    table = ends(methods, lines) if methods else tuning(trials, study.rising)
    return f"{as_shown(table)}\n\nreport: {store.folder / PAGE}"


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
            if line["status"] != "done":  # where it came to is no result
                losses = [*losses[:-1], math.inf]
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
    trials: Mapping[str, Sequence[Line]],
    finals: Mapping[str, Sequence[Line]],
    known: Mapping[str, paces.Pace],
) -> str:
    """What was compared, and how.

    Args:
        study: The study.
        trials: Lines of the trials by method.
        finals: Lines of the final runs by method.
        known: The measured paces.
    """
    budget = study.budget
    every = [*(line for own in trials.values() for line in own), *(line for own in finals.values() for line in own)]
    machines = sorted({f"{line['device']}, torch {line['torch']}" for line in every if "device" in line})
    measured = sorted({f"{pace.machine} ({pace.when})" for pace in known.values()})
    steps = sorted({line["steps"] for own in finals.values() for line in own if line["status"] == "done"})
    told = [
        *filter(None, [study.note]),
        f"Every method has {budget.trials} trials with seed 0, the first with the configuration as shipped, the others "
        "by Bayesian search; each as long as the final runs, and stopped after a quarter or a half if its loss is in "
        "the last third of the method's trials there, or has not fallen. The settings of the best trial by "
        f"`{study.judge}`"
        + (", smoothed, at the last step," if study.judge == LOSS else "")
        + f" are then trained with the seeds 1 to {budget.seeds}, which are what the tables show: the median, and the "
        "range.",
        "Losses are of the batch before its update, smoothed by s = 0.7 s + 0.3 x; steps count from 0."
        + (f" A run has {', '.join(map(str, steps))} steps." if steps else ""),
        f"Runs had {budget.threads} thread{'s' if budget.threads > 1 else ''} on {'; '.join(machines)}."
        + (f" Paces were measured alone, all methods in turn, on {'; '.join(measured)}." if measured else ""),
    ]
    return "\n\n".join(told)


def _unfinished(standing: Mapping[str, Standing], store: Store) -> list[str]:
    """What is still to run, and what is stored but is not the study's as it stands."""
    missing = [name for name, one in standing.items() if not one.finished]
    runs = sum(len(one.finals) for one in standing.values())
    told = []
    if missing:
        which = f"any of the {len(standing)} methods" if len(missing) == len(standing) else ", ".join(missing)
        told = [f"**Not finished** for {which}."]
        told += [] if runs else ["There is no final run yet: all that follows is of single trials."]
    if without := [name for name, one in standing.items() if one.finished and not one.finals]:
        told.append(f"**No result** of {', '.join(without)}: no trial came to its end with a finite loss.")
    other = {line["method"] for name in (TRIALS, FINALS) for line in store.lines(name) if _strange(line, standing)}
    if other:
        told.append(
            f"Stored, but not shown, since the study names no such method, or has it with other settings: "
            f"{', '.join(sorted(other))}."
        )
    return told


def _strange(line: Line, standing: Mapping[str, Standing]) -> bool:
    """Whether a line is of none of the methods, or of another version of one."""
    own = standing.get(line["method"])
    if own is None:
        return True
    best = own.best
    return line["mark"] not in (own.mark, best and own.final_mark(best))


def in_focus(methods: Iterable[str], local: set[str], reference: str) -> list[str]:
    """The methods that figures name: all of a few, else the best three of either kind, and the reference.

    Args:
        methods: The methods, the best first.
        local: Those that solve local losses.
        reference: The method that others are measured by.
    """
    methods = list(methods)
    if len(methods) <= FOCUS:
        return methods
    kinds = [name for name in methods if name in local], [name for name in methods if name not in local]
    named = {reference, *kinds[0][:3], *kinds[1][:3]}
    return [name for name in methods if name in named]


def _ranked(searched: Mapping[str, Sequence[float]], methods: Methods, rising: bool) -> list[str]:
    """All methods, the best first: those with final runs in their order, then the others by their best trial."""
    sign = -1 if rising else 1
    last = {name: sign * best[-1] if math.isfinite(best[-1]) else math.inf for name, best in searched.items()}
    return [*methods, *sorted((name for name in searched if name not in methods), key=last.__getitem__)]


def figures(methods: Methods, focus: Sequence[str], folder: Path) -> None:
    """Draws the curves against steps, and against seconds where the paces are known.

    Args:
        methods: Curves of the final runs.
        focus: The methods that are named; others are grey.
        folder: Where the figures go.
    """
    for axis, stem in (("step", "steps"), ("time", "seconds")):
        folded = {name: fold_whole(curves, axis) for name, curves in methods.items()}
        lines = {name: curve for name, curve in folded.items() if curve is not None}
        for ending in (".svg", ".png"):
            path = folder / f"{stem}{ending}"
            path.unlink(missing_ok=True)
            if lines:
                shown = [name for name in focus if name in lines]
                draw(lines, path, AXES[axis][0], f"train loss, smoothed by {DECAY:g}", focus=shown)
