"""Curves of methods."""

import numpy as np

from locoprop_lightning.results.figure import Curve, draw, draw_text, fold, fold_runs, thinned
from locoprop_lightning.results.logs import read_runs
from locoprop_lightning.results.methods import by_method
from tests.results.support import settings, write


def test_a_seed_that_has_just_begun_does_not_cut_the_others(tmp_path):
    for seed, losses in enumerate(([4.0, 2.0, 1.0], [2.0, 1.0, 0.5], [9.0])):
        write(tmp_path / "foof" / f"version_{seed}", losses, settings=settings(seed))
    ((_, runs),) = by_method(read_runs([str(tmp_path)], "train/loss"), "train/loss").items()
    drawn = fold_runs(runs, "train/loss", 0.0, "step")
    assert drawn.x.tolist() == [0, 1, 2] and drawn.middle.tolist() == [4.0, 1.5, 0.75]
    assert drawn.high.tolist() == [9.0, 2.0, 1.0]


def test_text_without_colours_names_what_it_has_no_mark_for():
    x = np.arange(5.0)
    curves = {name: Curve(x, x + i + 1, x + i + 1, x + i + 1, 1) for i, name in enumerate("abcdefgh")}
    text = draw_text(curves, "step", "loss")
    assert text.endswith("(without colours there is no mark left for g, h)")
    assert "no mark" not in draw_text(curves, "step", "loss", colour=True)


def test_a_figure_of_many_long_curves_is_small_and_keeps_their_spikes(tmp_path):
    generator, x = np.random.default_rng(0), np.arange(900.0)
    curves = {}
    for index in range(20):
        values = np.exp(generator.normal(size=(3, 900)) - x / 300)
        values[:, 500] = 50.0
        curves[f"method {index}"] = fold(x, values)
    draw(curves, tmp_path / "a.svg", "step", "loss")
    assert (tmp_path / "a.svg").stat().st_size < 350_000
    line, starts = thinned(curves["method 0"])
    assert {0, 500, 899} <= {*line} and 150 <= len(line) <= 302 and len(starts) == 150
    short = fold(x[:200], np.ones((2, 200)))
    assert len(thinned(short)[0]) == len(thinned(short)[1]) == 200
