import math

import numpy as np
import pytest

from locoprop_lightning.tune.study.pairs import better, p_value


@pytest.mark.parametrize("seeds", [3, 5])
def test_of_equal_methods_few_are_called_different(seeds):
    """Losses of a seed have something in common, as of its first weights, and something of their own."""
    draw = np.random.default_rng(0)
    called = 0
    for _ in range(1000):
        common = draw.normal(0, 0.2, seeds)
        one, other = (dict(enumerate(-2 + common + draw.normal(0, 0.05, seeds))) for _ in range(2))
        called += better(one, other) is not None
    assert 20 <= called <= 60


@pytest.mark.parametrize("rising", [False, True])
def test_a_difference_that_every_seed_shows_stands(rising):
    one, other = {1: 0.10, 2: 0.20, 3: 0.30}, {1: 0.20, 2: 0.31, 3: 0.40}
    assert better(one, other, rising) == (1 if rising else -1)
    assert better(other, one, rising) == (-1 if rising else 1)


def test_what_is_not_decided():
    assert better({1: 0.1, 2: 0.3}, {1: 0.2, 2: 0.2}) is None
    assert better({1: 0.1}, {1: 0.9}) is None  # one seed decides nothing
    assert better({1: 0.1, 2: 0.2}, {3: 0.9, 4: 0.8}) is None  # nor do different ones
    same = {1: 0.1, 2: 0.2, 3: 0.3}
    assert better(same, same) is None and p_value([0.0, 0.0, 0.0]) is None


def test_runs_that_are_not_finite_lose():
    fine, broken = {1: 0.1, 2: 0.2}, {1: None, 2: math.inf}
    assert better(fine, broken) == -1 and better(broken, fine) == 1
    assert better(fine, {1: 0.1, 2: None}) is None and better(broken, broken) is None


def test_the_p_value_is_that_of_the_t_distribution():
    """For two degrees of freedom it has a closed form: 1 - |t| / sqrt(2 + t^2)."""
    values = [0.3, 0.1, 0.5]
    t = np.mean(values) / (np.std(values, ddof=1) / math.sqrt(3))
    assert p_value(values) == pytest.approx(1 - t / math.sqrt(2 + t * t))
