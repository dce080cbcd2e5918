"""Whether a difference between two methods stands."""

import math
import warnings
from collections.abc import Mapping, Sequence

from scipy import stats

LEVEL = 0.05


def better(first: Mapping[int, float | None], second: Mapping[int, float | None], rising: bool = False) -> int | None:
    """Which of two methods is better, as far as their runs of the same seeds tell.

    A paired t-test at the level of 5%. Runs whose result is not finite are not tested but counted: a method none of
    whose runs is finite is worse than one all of whose runs are.

    Args:
        first: Result of a method by seed, None where it is not finite.
        second: That of the other one.
        rising: Whether more is better.

    Returns:
        -1 if the first is better, 1 if the second is, None if these runs do not decide it.

    Example:
        >>> better({1: 0.1, 2: 0.11, 3: 0.12}, {1: 0.2, 2: 0.22, 3: 0.21})
        -1
        >>> better({1: 0.1, 2: 0.3, 3: 0.2}, {1: 0.2, 2: 0.1, 3: 0.3}) is None
        True
    """
    seeds = sorted(first.keys() & second.keys())
    finite = [(_is_finite(first[seed]), _is_finite(second[seed])) for seed in seeds]
    if not seeds:
        return None
    if not all(a and b for a, b in finite):
        if all(a and not b for a, b in finite):
            return -1
        return 1 if all(b and not a for a, b in finite) else None
    differences = [float(first[seed]) - float(second[seed]) for seed in seeds]  # type: ignore[arg-type]
    value = p_value(differences)
    if value is None or value > LEVEL:
        return None
    return 1 if (sum(differences) > 0) is not rising else -1


def p_value(differences: Sequence[float]) -> float | None:
    """The two-sided p-value of differences whose mean is 0, None where they do not tell.

    Args:
        differences: One a seed.
    """
    if len(differences) < 2 or not any(differences):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of differences that are all the same
        value = float(stats.ttest_1samp(differences, 0.0).pvalue)
    return None if math.isnan(value) else value


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
