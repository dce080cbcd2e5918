"""Curves of methods."""

import numpy as np
import pytest

from locoprop_lightning.errors import UserError
from locoprop_lightning.results.curves import Curve, fold, fold_runs
from locoprop_lightning.results.figure import draw, draw_families, spread, thinned
from locoprop_lightning.results.logs import read_runs
from locoprop_lightning.results.methods import by_method
from locoprop_lightning.results.terminal import draw_text
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


def test_a_curve_is_drawn_as_far_as_one_asks():
    part = fold(np.arange(5.0), np.arange(10.0).reshape(2, 5)).until(2)
    assert part.x.tolist() == [0, 1, 2] and part.runs == 2
    assert (part.low.tolist(), part.middle.tolist(), part.high.tolist()) == ([0, 1, 2], [2.5, 3.5, 4.5], [5, 6, 7])


def ends(**values):
    """Two points a method, the last at a height."""
    return {name: fold(np.array([0.0, 1.0]), np.array([[1.0, end]])) for name, end in values.items()}


def test_methods_in_focus_have_their_names_at_their_ends_and_others_are_grey(tmp_path):
    curves = ends(best=0.1, near=0.11, rest=0.5, worst=np.inf)
    draw(curves, tmp_path / "a.svg", "step", "loss", focus=["near", "best", "worst"])
    text = (tmp_path / "a.svg").read_text()
    for said in (">best</text>", ">near</text>", ">worst (non-finite)</text>"):
        assert text.count(said) == 1
    assert "rest" not in text and text.count("stroke: #bbbbbb; stroke-width: 0.8") == 1
    draw(curves, tmp_path / "b.svg", "step", "loss")
    assert ">rest</text>" in (tmp_path / "b.svg").read_text()
    with pytest.raises(UserError, match="focus=bests: there is no such method; near names are best"):
        draw(curves, tmp_path / "c.svg", "step", "loss", focus=["bests"])


def test_each_family_has_a_panel_in_which_its_methods_are_named(tmp_path):
    curves = ends(a=0.1, b=0.2, c=0.3, d=0.4)
    draw_families(curves, {"first": ["a", "b"], "second": ["c"], "third": ["d"]}, tmp_path / "a.svg", "step", "loss")
    text = (tmp_path / "a.svg").read_text()
    assert all(text.count(f">{name}</text>") == 1 for name in ("a", "b", "c", "d", "first", "second", "third"))
    assert text.count("stroke: #bbbbbb; stroke-width: 0.8") == 2 + 3 + 3


@pytest.mark.parametrize(
    ("heights", "expected"),
    [
        ([0.2, 0.8], [0.2, 0.8]),
        ([0.5, 0.5, 0.52], [0.5, 0.6, 0.7]),
        ([0.95, 0.97, 2.0], [0.8, 0.9, 1.0]),
        ([-1.0, 0.0], [0.0, 0.1]),
        ([], []),
    ],
)
def test_labels_are_spread(heights, expected):
    assert spread(heights, 0.1) == pytest.approx(expected)
