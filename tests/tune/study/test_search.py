import math

import pytest

from locoprop_lightning.tune.space import Space
from locoprop_lightning.tune.study.search import LEAST, RUNGS, limits, score, suggest

SPACE = Space.of({"a": {"loguniform": [1, 1000]}, "b": {"choice": ["x", "y"]}}, "space")


def search(trials, start, loss, space=SPACE, name="m"):
    past = []
    for _ in range(trials):
        values = suggest(space, start, past, name, rising=False)
        past.append({"values": values, "score": loss(values)})
    return past


def loss(values):
    return (math.log(values["a"]) - math.log(40)) ** 2 + (values["b"] == "y")


def test_a_search_is_the_same_wherever_it_was_interrupted():
    whole = search(7, {"a": 500.0, "b": "y"}, loss)
    for count in range(7):
        past = [{"values": dict(one["values"]), "score": one["score"]} for one in whole[:count]]
        assert suggest(SPACE, {"a": 500.0, "b": "y"}, past, "m", rising=False) == whole[count]["values"]
    assert whole[0]["values"] == {"a": 500.0, "b": "y"}
    assert search(7, {"a": 500.0, "b": "y"}, loss, name="another")[1:] != whole[1:]


def test_a_search_finds_what_is_better():
    found = search(12, {"a": 1.0, "b": "y"}, loss)
    assert min(one["score"] for one in found) < 0.1
    later = sorted(one["score"] for one in found[6:])
    assert later[3] < sorted(one["score"] for one in found[:6])[3]


def test_no_trial_is_tried_again():
    """The losses of a search whose best settings lay in a corner, where it went twice."""
    space = Space.of({"a": {"loguniform": [10, 5000]}, "b": {"loguniform": [10, 1e6]}}, "space")
    tried = {
        (300.0, 100.0): 0.320902,
        (20.8286, 2000.41): 1.47718,
        (295.290, 1526.56): 0.407386,
        (38.4798, 63013.1): 2.30023,
        (1772.77, 39.0770): 0.262657,
        (5000.0, 7189.87): 0.353147,
        (5000.0, 10.0): 0.194966,
    }
    past = [{"values": {"a": a, "b": b}, "score": math.log(value)} for (a, b), value in tried.items()]
    for _ in range(3):
        values = suggest(space, {}, past, "locoprop_s_anderson", rising=False)
        assert all(
            abs(math.log(values["a"] / one["values"]["a"])) + abs(math.log(values["b"] / one["values"]["b"])) > 0.01
            for one in past
        )
        past.append({"values": values, "score": math.log(0.3)})


def test_what_the_first_trial_lacks_is_drawn():
    assert search(1, {"b": "x"}, loss)[0]["values"]["b"] == "x"
    assert 1 <= search(1, {}, loss)[0]["values"]["a"] <= 1000


@pytest.mark.parametrize("value", [None, math.nan, math.inf, 1e30, 2.4])
def test_no_loss_is_told_as_worse_than_that_of_the_start(value):
    assert score(value, 2.3, loss=True) == math.log(2.3)


def test_scores():
    assert score(0.5, 2.3, loss=True) == math.log(0.5) and score(0.0, 2.3, loss=True) == math.log(1e-12)
    assert score(None, None, loss=True) == math.inf  # not even the first loss was finite
    assert score(0.9, -math.inf, loss=False) == 0.9 and score(None, -math.inf, loss=False) == -math.inf


def test_limits_are_of_the_trials_that_came_to_a_rung():
    past = [{"rungs": [1.0, 0.5]}, {"rungs": [2.0, 0.4]}, {"rungs": [3.0]}, {"rungs": []}, {"rungs": [None]}]
    assert len(RUNGS) == 2 and LEAST == 3
    assert limits(past) == [pytest.approx(2 + 1 / 3), math.inf]
    assert limits(past[:2]) == [math.inf, math.inf]
