"""The script behind the learning curves: smoothing, folding of seeds, real runs."""

import csv
import json
import math
import os

import pytest

from tests.support import ROOT, script

curves = script("learning_curves")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Runs in an empty folder, without the environment variables that Lightning sets."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["learning_curves.py"])
    before = dict(os.environ)
    yield tmp_path
    for name in os.environ.keys() - before.keys():
        del os.environ[name]


def made_up(folder, method, seed, losses, pace, nonfinite_step=None, accuracy=None):
    record = {"method": method, "seed": seed, "nonfinite_step": nonfinite_step, "ms_per_step": 1000 * pace}
    path = folder / f"{method}-seed{seed}.json"
    path.write_text(json.dumps(record | {"test_accuracy": [0.1, accuracy]}))
    rows = [f"{step},{loss},{pace * (step + 1)}" for step, loss in enumerate(losses)]
    path.with_suffix(".csv").write_text("\n".join(["step,loss,seconds", *rows]))


def rows_of(output):
    """The table as dictionaries, by method."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in output.splitlines()]
    return {line[0]: dict(zip(lines[0], line, strict=True)) for line in lines[2:]}


def test_table_folds_seeds_and_sorts_by_the_last_loss(folder, capsys):
    for seed, loss in enumerate((0.5, 0.4, 0.9)):
        made_up(folder, "slow", seed, [loss] * 237, 0.5, accuracy=loss)
    made_up(folder, "fast", 0, [0.3] * 110 + [0.7] + [0.3] * 126, 0.2, accuracy=0.8)
    made_up(folder, "broken", 0, [1.0] * 99 + [math.nan], 0.1, nonfinite_step=99)
    (folder / "ms.json").write_text(json.dumps({"slow": 1000, "fast": 200}))
    curves.main(["table", "--out", str(folder)])
    output = capsys.readouterr()
    assert "no run has a step 472; the last one is 236" in output.err
    rows = rows_of(output.out)
    assert list(rows) == ["fast", "slow", "broken"]
    slow, fast, broken = rows["slow"], rows["fast"], rows["broken"]
    for column in ("step 118", "step 236", "30 s", "highest raw loss after step 100"):
        assert slow[column] == "0.5 (0.4..0.9)"
    assert slow["test accuracy"] == "0.5000 (0.4000..0.9000)" and slow["seeds"] == "3" and slow["ms a step"] == "500.0"
    assert "step 472" not in slow  # no run got that far
    assert fast["30 s"] == "0.3" and fast["60 s"] == "-"  # over after 47.4 s
    assert fast["highest raw loss after step 100"] == "0.7" and fast["step 118"] == "0.3069"
    assert broken["step 118"] == broken["30 s"] == broken["highest raw loss after step 100"] == "non-finite"
    options = ["--steps", "5", "--seconds", "10", "--epochs", "1", "3"]
    curves.main(["table", "--out", str(folder), *options])
    chosen = rows_of(capsys.readouterr().out)["fast"]
    assert chosen["step 5"] == chosen["10 s"] == "0.3" and chosen["test accuracy, epoch 1"] == "0.1000"
    assert "step 118" not in chosen and "test accuracy, epoch 3" not in chosen  # no run had a third epoch
    with pytest.raises(SystemExit, match="--ms none.json: no such file"):
        curves.main(["table", "--out", str(folder), "--ms", "none.json"])
    for wrong in (["--steps", "-1"], ["--epochs", "0"]):
        with pytest.raises(SystemExit, match="name none below"):
            curves.main(["table", "--out", str(folder), *wrong])
    curves.main(["table", "--out", str(folder), "--ms", "ms.json"])
    rows = rows_of(capsys.readouterr().out)
    assert rows["slow"]["ms a step"] == "1000.0" and rows["broken"]["30 s"] == rows["broken"]["ms a step"] == "-"


def test_seconds_are_read_at_the_measured_pace(folder):
    made_up(folder, "a", 0, range(10, 0, -1), 5.0)
    (folder / "ms.json").write_text(json.dumps({"a": 100.0}))
    ((_, _, smoothed),) = curves.load(folder, folder / "ms.json")["a"]
    assert smoothed.after(0.05) is None and smoothed.after(0.35) == smoothed.values[2]
    assert smoothed.after(1.0) == smoothed.values[9] and smoothed.after(1.1) is None


def test_real_runs(folder, capsys):
    configs = [str(ROOT / "configs" / "digits" / f"{name}.yaml") for name in ("adam", "foof")]
    command = ["run", *configs, "--out", "results", "--max-steps", "3", "--set", "data.batch_size=750"]
    curves.main([*command, "trainer.accelerator=cpu"])
    assert {path.name for path in folder.iterdir()} == {"results"}  # neither logs, checkpoints nor config.yaml
    losses = {}
    for name in ("adam", "foof"):
        record = json.loads((folder / "results" / f"{name}-seed0.json").read_text())
        assert record["steps"] == 3 and record["settings"]["data.batch_size"] == "750" and record["status"] == {}
        assert len(record["test_accuracy"]) == len(record["test_loss"]) == 1  # an epoch has 2 steps
        assert record["test_accuracy"][0] > 0
        with (folder / "results" / f"{name}-seed0.csv").open() as stream:
            rows = list(csv.DictReader(stream))
        assert [row["step"] for row in rows] == ["0", "1", "2"]
        losses[name] = [float(row["loss"]) for row in rows]
        seconds = [float(row["seconds"]) for row in rows]
        assert seconds == sorted(seconds)
    assert losses["adam"][0] == losses["foof"][0] and losses["foof"][2] < losses["foof"][0]  # same seed, same start
    capsys.readouterr()
    curves.main([*command, "trainer.accelerator=cpu"])
    assert capsys.readouterr().out.count("skipped") == 2
    with pytest.raises(SystemExit, match="adam-seed0.json exists, of other settings"):
        curves.main(command)
    for file in ("a.svg", "b.svg"):
        curves.main(["figure", "--out", "results", file])
    with pytest.raises(SystemExit):
        curves.main(["figure", "--out", "results", "a.txt"])
    assert "a.txt: no format of a figure; take .svg, .png or .pdf." in capsys.readouterr().err
    drawn = (folder / "a.svg").read_text()
    assert drawn == (folder / "b.svg").read_text() and ">foof</text>" in drawn


def test_a_run_that_is_not_finite_stops(folder):
    config = str(ROOT / "configs" / "digits" / "sgd.yaml")
    curves.main(["run", config, "--label", "wild", "--out", ".", "--no-test", "--set", "model.optimizer.lr=1e38"])
    record = json.loads((folder / "wild-seed0.json").read_text())
    assert record["nonfinite_step"] == record["steps"] - 1 < 20 and "test_accuracy" not in record
    assert curves.load(folder, None)["wild"][0].raw.last == math.inf
