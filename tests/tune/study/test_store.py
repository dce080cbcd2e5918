import json

import pytest

from locoprop_lightning.errors import UserError
from locoprop_lightning.tune.study.store import FINALS, TRIALS, Store, fingerprint, read_curve, write_curve


def line(method, index, mark="m", part="trial"):
    return {"method": method, "mark": mark, part: index, "value": index / 2, "status": "done"}


def test_lines_stand_in_order_whenever_they_came(tmp_path):
    store = Store(tmp_path, ["b", "a"])
    for one in (line("a", 1), line("b", 0), line("c", 0), line("a", 0)):
        store.add(TRIALS, one)
    assert [(one["method"], one["trial"]) for one in store.lines(TRIALS)] == [("b", 0), ("a", 0), ("a", 1), ("c", 0)]
    assert not list(tmp_path.glob("*.new"))


def test_trials_count_as_far_as_none_is_missing(tmp_path):
    store = Store(tmp_path)
    for index in (0, 2, 3):
        store.add(TRIALS, line("a", index))
    assert store.trials("a", "m") == [line("a", 0)] and store.trials("a", "other") == []
    store.add(TRIALS, line("a", 1))
    assert store.trials("a", "m") == [line("a", index) for index in range(4)]


def test_lines_of_other_settings_go(tmp_path):
    store = Store(tmp_path)
    for seed, mark in ((1, "old"), (2, "old"), (1, "new")):
        store.add(FINALS, line("a", seed, mark, "seed"))
    assert store.finals("a", "new") == {1: line("a", 1, "new", "seed")} and len(store.lines(FINALS)) == 1


def test_blank_lines_are_passed_and_damaged_ones_are_named(tmp_path):
    store = Store(tmp_path)
    store.add(FINALS, line("a", 1, part="seed"))
    path = tmp_path / FINALS
    path.write_text(f"\n{path.read_text()}\n")
    assert store.lines(FINALS) == [line("a", 1, part="seed")]
    no_run = '{"method": "a", "mark": "m"}', "line 3: is of no whole run, and lacks seed, status, value; mend it"
    for text, said in (("{", "line 3: is damaged"), no_run):
        path.write_text(f"\n{json.dumps(line('a', 1, part='seed'))}\n{text}\n")
        with pytest.raises(UserError, match=said):
            store.lines(FINALS)


def test_fingerprints_tell_settings_apart():
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1}) != fingerprint({"a": 1, "b": [3]})


def test_curves(tmp_path):
    path = Store(tmp_path).curve("a", 3)
    write_curve(path, [1.0, float("inf"), 0.123456789])
    assert read_curve(path) == [1.0, float("inf"), pytest.approx(0.12346, abs=1e-9)]
    assert path.name == "a-seed3.csv"
