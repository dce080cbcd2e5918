"""Runs and the series of their metrics."""

import math

import numpy as np
import pytest
from torch.utils.tensorboard import SummaryWriter

from locoprop_lightning.results.logs import read_runs
from locoprop_lightning.results.runs import Series, smooth
from tests.results.support import LOSSES, write


def test_smoothing_is_the_review_s_by_default():
    assert smooth(LOSSES) == pytest.approx([4.0, 3.4, 2.68, 2.026])
    assert smooth(LOSSES, 0.0) == pytest.approx(LOSSES)


def test_axes(tmp_path):
    paced = write(tmp_path / "paced", LOSSES * 3, pace=50.0, every=2)
    (run,) = read_runs([str(paced)], "train/loss")
    assert run.steps("train/loss").tolist() == [1, 3, 5, 7, 9, 11]
    assert run.seconds("train/loss") == pytest.approx(np.array([2, 4, 6, 8, 10, 12]) * 0.05)
    assert run.epochs("train/loss")[-1] == pytest.approx(4)  # three steps an epoch
    (wall,) = read_runs([str(write(tmp_path / "wall"))], "train/loss")
    assert wall.seconds("train/loss").tolist() == [0, 10, 20, 30]
    assert wall.epochs("train/loss") == pytest.approx(np.arange(1, 5) / 3)


def test_seconds_go_on_after_the_last_logged_pace(tmp_path):
    folder = write(tmp_path / "run", [1.0] * 240)
    with SummaryWriter(folder) as writer:
        for step in (49, 99, 149, 199):
            writer.add_scalar("time/step_ms", 100.0, step)
    (run,) = read_runs([str(folder)], "train/loss")
    assert run.seconds("train/loss")[[49, 199, 239]] == pytest.approx([5, 20, 24])


def series(beyond=None, seconds=(1.0, 2.0, 4.0)):
    return Series(np.array([1, 3, 5]), np.array([4.0, math.nan, 2.0]), np.array(seconds), beyond)


@pytest.mark.parametrize("beyond", [None, math.inf])
def test_a_series_is_read_off_at_steps_and_seconds(beyond):
    filled = series(beyond).bounded(9.0)
    assert [filled.at(step) for step in range(7)] == [None, 4.0, 4.0, 9.0, 9.0, 2.0, beyond]
    assert [filled.after(second) for second in (0.5, 1.0, 1.9, 2.0, 4.0, 4.1)] == [None, 4.0, 4.0, 9.0, 2.0, beyond]
    assert filled.after(1.0 - 1e-12) == 4.0 and filled.after(4.0 + 1e-12) == 2.0  # rounding decides nothing


def test_a_series_without_seconds_has_no_value_after_some():
    assert series(seconds=[math.nan] * 3).after(1.0) is None


def test_a_smoothed_series_keeps_its_places():
    smoothed = series(math.inf).smoothed(0.5)
    assert smoothed.steps.tolist() == [1, 3, 5] and smoothed.seconds.tolist() == [1, 2, 4]
    assert smoothed.last == 3.0 and math.isnan(smoothed.values[1]) and smoothed.at(6) == math.inf
