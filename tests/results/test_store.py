"""Runs that a benchmark stores."""

import json
import math

import pytest

from locoprop_lightning.results.methods import by_method
from locoprop_lightning.results.runs import LOSS
from locoprop_lightning.results.store import finite, load_runs, save_run

RECORD = {"method": "adam", "seed": 3, "settings": {"a": "1"}, "nonfinite_step": None, "ms_per_step": 12.5}


def test_a_stored_run_is_read_back(tmp_path):
    record = RECORD | {"test_loss": [0.5, None, 0.25], "status": {}}
    save_run(tmp_path / "adam-seed3.json", record, [2.123456, 1.0], [0.01, 0.0254])
    assert (tmp_path / "adam-seed3.csv").read_text() == "step,loss,seconds\n0,2.1235,0.010\n1,1,0.025\n"
    assert json.loads((tmp_path / "adam-seed3.json").read_text()) == record
    (run,) = load_runs(tmp_path)
    assert by_method([run], LOSS) == {"adam": [run]}
    assert run.seed == 3 and run.settings["a"] == "1" and run.ms_per_step == 12.5 and run.timed and not run.stopped
    assert run.series(LOSS).values.tolist() == [2.1235, 1.0] and run.series(LOSS).seconds.tolist() == [0.01, 0.025]
    assert [run.epoch_metric("test_loss", index) for index in (0, 1, 2, 3, -1)] == [0.5, None, 0.25, None, 0.25]
    assert run.epoch_metric("test_accuracy", -1) is None and list(run.epoch_metrics) == ["test_loss"]


def test_a_measured_pace_replaces_the_stored_seconds(tmp_path):
    save_run(tmp_path / "adam-seed3.json", RECORD, [2.0, 1.0], [9.0, 10.0])
    (run,) = load_runs(tmp_path, {"adam": 100.0})
    assert run.ms_per_step == 100.0 and run.series(LOSS).seconds.tolist() == [0.1, 0.2]
    (run,) = load_runs(tmp_path, {"sgd": 100.0})
    assert run.ms_per_step is None and run.series(LOSS).after(1.0) is None


def test_a_run_that_stopped_is_infinite_from_there_on(tmp_path):
    save_run(tmp_path / "adam-seed3.json", RECORD | {"nonfinite_step": 1}, [2.0, math.nan], [0.1, 0.2])
    (run,) = load_runs(tmp_path)
    series = run.series(LOSS)
    assert run.stopped and series.last == series.at(7) == series.after(0.3) == math.inf and series.at(0) == 2.0


def test_a_run_that_was_cut_short_is_none(tmp_path):
    path = tmp_path / "adam-seed3.json"
    save_run(path, RECORD, [2.0], [0.1])
    with pytest.raises(TypeError):
        save_run(path, RECORD, [None], [0.1])
    assert load_runs(tmp_path) == []


def test_what_json_can_hold():
    assert finite(0.12345678) == 0.123457 and finite(math.nan) is None and finite(-math.inf) is None
