"""What a sweep draws of its trials."""

import matplotlib
import numpy as np
import optuna
import pytest
from matplotlib import pyplot as plt
from matplotlib.collections import LineCollection
from optuna.visualization.matplotlib import plot_parallel_coordinate

from locoprop_lightning.tune.results import recolour


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
