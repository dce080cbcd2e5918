"""What a sweep draws of its trials."""

import io
from types import SimpleNamespace

import matplotlib
import numpy as np
import optuna
import pytest
from matplotlib import pyplot as plt
from matplotlib.collections import LineCollection
from optuna.visualization.matplotlib import plot_parallel_coordinate

from locoprop_lightning.results.terminal import as_shown
from locoprop_lightning.tune.results import recolour, table


def test_a_terminal_gets_aligned_columns_and_a_pipe_markdown(monkeypatch):
    names = ["model.lambda_a", "model.solver.average"]
    space = SimpleNamespace(dimensions=dict.fromkeys(names))
    found = SimpleNamespace(name="3f9a1c07_00012", status="stopped early", epoch=3, value=0.5, values={names[0]: 0.1})
    rows = table([found], space, "val/accuracy")
    assert rows == [
        ["trial", "status", "epoch", "val/accuracy", "lambda_a", "average"],
        ["12", "stopped early", "3", "0.5", "0.1", "-"],
    ]
    assert as_shown(rows, words=["status"]).startswith("| trial | status |")
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setenv("TERM", "dumb")  # no bold head
    monkeypatch.setenv("COLUMNS", "80")
    head, _, row = as_shown(rows, words=["status"]).splitlines()
    assert head.index("status") == row.index("stopped early") and head.index("average") + 6 == row.index("-")
    assert "|" not in head


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_the_worst_trial_is_seen_on_white(direction):
    matplotlib.use("Agg")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction=direction)
    distributions = {"rate": optuna.distributions.FloatDistribution(0.0, 1.0)}
    for value in (0.0, 0.5, 1.0):
        trial = optuna.trial.create_trial(params={"rate": value}, distributions=distributions, value=value)
        study.add_trial(trial)
    plot_parallel_coordinate(study, target_name="val/loss")
    figure = plt.gcf()
    recolour(figure)
    found = [part for axes in figure.axes for part in axes.collections if isinstance(part, LineCollection)]
    (lines,) = [part for part in found if part.get_array() is not None]
    lightness = lines.to_rgba(np.array([0.0, 1.0]))[:, :3] @ np.array([0.2126, 0.7152, 0.0722])
    plt.close(figure)
    assert lightness.max() < 0.75  # white is 1; the worst was 0.97
    best, worst = lightness if direction == "minimize" else lightness[::-1]
    assert best < worst
