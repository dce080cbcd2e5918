"""Runs that were logged with CSVLogger."""

import math

import pytest
import yaml

from locoprop_lightning.cli import main as locoprop
from locoprop_lightning.results.compare import main
from locoprop_lightning.results.logs import read_runs
from tests.results.support import rows, settings, write
from tests.support import ROOT

SHORT = ["--trainer.max_epochs=1", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]


def table(folder, losses, pace=10.0, more=""):
    """What CSVLogger writes: a row for each kind of metric, cells of the others empty."""
    folder.mkdir(parents=True)
    lines = ["epoch,local_loss/1/first,step,time/step_ms,train/loss,val/loss"]
    for step, loss in enumerate(losses):
        lines += [f",0.5,{step},,,", f"0,,{step},{'' if pace is None else pace},{loss},"]
    (folder / "metrics.csv").write_text("\n".join([*lines, f"0,,{len(losses) - 1},,,7.5"]) + more)
    return folder


@pytest.mark.slow
def test_both_loggers_of_a_fit_say_the_same(folder, capsys):
    config = ["fit", "--config", str(ROOT / "configs/digits/foof.yaml"), *SHORT, "--trainer.log_every_n_steps=1"]
    locoprop([*config, "--trainer.logger=CSVLogger", "--trainer.logger.save_dir=c", "--trainer.logger.name=foof"])
    assert "  compare              locoprop-compare c\n" in capsys.readouterr().out
    locoprop(config)
    for tag in ("train/loss", "val/accuracy"):
        ((tabled,), (recorded,)) = (read_runs([name], tag) for name in ("c", "runs"))
        assert tabled.steps(tag).tolist() == recorded.steps(tag).tolist() and len(tabled.steps(tag)) >= 1
        assert tabled.values(tag) == pytest.approx(recorded.values(tag), rel=1e-6)
        assert tabled.seed == recorded.seed == 0
        assert math.isfinite(tabled.seconds(tag)[-1]) and tabled.timed


def test_they_are_compared_with_those_of_tensorboard(tmp_path, capsys):
    for seed, last in enumerate((1.0, 3.0)):
        run = table(tmp_path / "foof" / f"version_{seed}", [4.0, last])
        (run / "config.yaml").write_text(yaml.safe_dump(settings(seed)))
    write(tmp_path / "adam", [4.0, 2.5], pace=10.0, settings=settings())
    main([str(tmp_path), "--smooth", "0"])
    shown = rows(capsys.readouterr().out)
    assert list(shown) == ["foof", "adam"] and shown["foof"]["runs"] == "2"
    assert shown["foof"]["last"] == "2 (1..3)" and shown["foof"]["ms a step"] == "10.0"


def test_a_value_that_is_not_finite_is_one(tmp_path):
    (run,) = read_runs([str(table(tmp_path / "a", [4.0, "nan", "inf"]))], "train/loss")
    assert str(run.values("train/loss").tolist()) == "[4.0, nan, inf]"


def test_a_damaged_table_is_named_and_read_up_to_there(tmp_path, capsys):
    folder = table(tmp_path / "a", [4.0, 2.0], more="\n0,,2,10.0,hello,\n0,,3,10.0,1.0,\n")
    (run,) = read_runs([str(folder)], "train/loss")
    assert run.values("train/loss").tolist() == [4, 2]
    assert f"{folder}/metrics.csv: damaged or half-written; the rest after 5 rows is skipped" in capsys.readouterr().err


def test_a_table_of_something_else_is_no_run(tmp_path, capsys):
    (tmp_path / "metrics.csv").write_text("name,value\na,1\n")
    with pytest.raises(SystemExit):
        main([str(tmp_path)])
    assert (
        "left out, it holds no event files of TensorBoard and no metrics.csv of CSVLogger with"
        in capsys.readouterr().err
    )


def test_seconds_that_are_not_known(tmp_path, capsys):
    table(tmp_path / "a", [4.0, 2.0], pace=None)
    main([str(tmp_path)])
    captured = capsys.readouterr()
    assert rows(captured.out)["a"]["ms a step"] == "-" and "are not known of a metrics.csv" in captured.err
    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path), "--x", "time", "--text"])
    assert stopped.value.code == 2
    assert f"--x time: {tmp_path}/a has no time/step_ms, and so no seconds; take --x step." in capsys.readouterr().err
