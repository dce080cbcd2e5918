"""Which settings a method tries next, and when a trial is stopped: by its earlier trials alone.

A search that depends on nothing else gives the same trials however often it was interrupted, and whatever ran beside
it. Optuna's Gaussian process suggests, or, where that was tried before, one that takes losses for exact; the trials
that it is told of are made anew from those that are stored.
"""

import hashlib
import math
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import optuna

from locoprop_lightning.results.table import rank
from locoprop_lightning.tune.space import Space
from locoprop_lightning.tune.study.store import Line

STARTUP = 4  # trials before the Gaussian process takes over, the shipped configuration included
RUNGS = (0.25, 0.5)  # fractions of a run after which a trial may be stopped
KEPT = 2 / 3  # of the earlier trials, whose losses at a rung a trial must reach
LEAST = 3  # earlier trials that must have come to a rung
LEARNT = 0.99  # of the first loss: a trial that stands above it at a rung learns nothing
RULES = (STARTUP, *RUNGS, KEPT, LEAST, LEARNT)  # which a stored trial was chosen and judged by
SAME = 1e-3  # relative difference of two numbers that are taken for one


def suggest(
    space: Space, start: Mapping[str, Any], past: Sequence[Mapping[str, Any]], name: str, rising: bool
) -> dict[str, Any]:
    """The settings of the next trial, by name; where an earlier one had them, others are looked for once.

    Args:
        space: What is searched.
        start: Settings of the first trial, as far as they lie within the space; what they leave out is drawn.
        past: The earlier trials, with their ``values`` and ``score``.
        name: Makes the random numbers, with the number of earlier trials.
        rising: Whether more of the score is better.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    seed = int(hashlib.sha256(f"{name} {len(past)}".encode()).hexdigest()[:8], 16)
    sampler = partial(optuna.samplers.GPSampler, seed=seed, n_startup_trials=STARTUP)
    study = optuna.create_study(sampler=sampler(), direction="maximize" if rising else "minimize")
    for one in past:
        values = one["values"]
        distributions = space.distributions(values)
        study.add_trial(optuna.trial.create_trial(params=values, distributions=distributions, value=one["score"]))
    if not past and start:
        study.enqueue_trial(dict(start))
    trial = study.ask()
    space(trial)
    if any(_same(trial.params, one["values"]) for one in past):  # whose run would be the same
        with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
            study.sampler = sampler(deterministic_objective=True)
        trial = study.ask()
        space(trial)
    return dict(trial.params)


def _same(values: Mapping[str, Any], others: Mapping[str, Any]) -> bool:
    """Whether settings are the same, numbers but for a thousandth."""
    return all(
        math.isclose(value, others[name], rel_tol=SAME) if isinstance(value, float) else value == others[name]
        for name, value in values.items()
    )


def score(value: float | None, first: float | None, loss: bool) -> float:
    """What the search is told of a trial: the logarithm of its loss, and never worse than where training began.

    Args:
        value: The judged metric, None where there is none or it is not finite.
        first: Loss of the first step, None where it was not finite, or for another metric the worst there is.
        loss: Whether it is the loss.
    """
    first = math.inf if first is None else first
    bounded = first if value is None or not math.isfinite(value) else value
    return math.log(max(min(bounded, first), 1e-12)) if loss else bounded


def best_trial(lines: Sequence[Line], rising: bool) -> Line | None:
    """The best trial that came to its end, the first of several; None where none did.

    Args:
        lines: Lines of a method's trials, in order.
        rising: Whether more is better.
    """
    done = [line for line in lines if line["status"] == "done" and line["value"] is not None]
    return min(done, key=lambda line: rank(line["value"], rising), default=None)


def limits(past: Sequence[Mapping[str, Any]]) -> list[float]:
    """The smoothed loss above which a trial is stopped at each rung [rungs]; none for the first trial, as shipped.

    Args:
        past: The earlier trials, with the losses ``rungs`` as far as they came.
    """
    if not past:
        return []
    found = []
    for rung in range(len(RUNGS)):
        known = [one["rungs"][rung] for one in past if len(one["rungs"]) > rung]
        known = [value for value in known if value is not None]
        enough = len(known) >= LEAST
        found.append(float(np.percentile(known, 100 * KEPT)) if enough else math.inf)
    return found
