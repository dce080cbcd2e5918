import math
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from torch.utils.tensorboard import SummaryWriter

from locoprop_lightning import UserError
from locoprop_lightning.compare import curve, main
from locoprop_lightning.runs import by_method, flatten, read_runs, smooth

LOSSES = [4.0, 2.0, 1.0, 0.5]


def write(folder, losses=LOSSES, start=0, pace=None, settings=None, tag="train/loss", every=1):
    """A logged run; pace in milliseconds a step, three steps an epoch."""
    with SummaryWriter(folder) as writer:
        for step, loss in enumerate(losses, start):
            if (step + 1) % every == 0:
                writer.add_scalar(tag, loss, step, walltime=1000 + 10 * step)
                writer.add_scalar("epoch", step // 3, step, walltime=1000 + 10 * step)
                if pace is not None:
                    writer.add_scalar("time/step_ms", pace, step)
    if settings is not None:
        (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    return folder


def settings(seed=0, lambda_a=1.0, **more):
    module = {"class_path": "locoprop_lightning.LocoPropModule", "init_args": {"lambda_a": lambda_a}}
    return {"seed_everything": seed, "model": module, "trainer": {"max_epochs": 2, "logger": {"a": seed}}} | more


def rows(output):
    head, _, *lines = [line for line in output.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in (head, *lines)]
    return {row[0]: dict(zip(cells[0], row, strict=True)) for row in cells[1:]}


def test_seeds_are_folded_and_the_best_comes_first(tmp_path, capsys):
    for seed, factor in enumerate((1.0, 2.0, 5.0)):
        losses = [factor * loss for loss in LOSSES]
        write(tmp_path / "runs/slow" / f"version_{seed}", losses, pace=1000.0, settings=settings(seed))
    write(tmp_path / "runs/fast/version_0", [0.5, 0.4, 0.3], pace=100.0, settings=settings())
    main([str(tmp_path / "runs"), "--smooth", "0.5"])
    captured = capsys.readouterr()
    table = rows(captured.out)
    assert list(table) == ["fast", "slow"] and not captured.err
    smoothed = 0.5 * (0.5 * (0.5 * 4 + 0.5 * 2) + 0.5 * 1) + 0.5 * 0.5
    slow = table["slow"]
    assert slow["runs"] == "3" and slow["last step"] == "3" and slow["ms a step"] == "1000.0"
    assert slow["last"] == "1 (0.5..2.5)"
    assert slow["smoothed by 0.5"] == f"{2 * smoothed:.4g} ({smoothed:.4g}..{5 * smoothed:.4g})" == slow["best"]
    assert slow["at 0.3 s"] == "-"  # its first step takes a second
    assert table["fast"]["at 0.3 s"] == table["fast"]["best"] == f"{0.5 * 0.5 * 0.5 + 0.5 * 0.5 * 0.4 + 0.5 * 0.3:.4g}"


def test_smoothing_is_the_review_s_by_default():
    assert smooth(LOSSES) == pytest.approx([4.0, 3.4, 2.68, 2.026])
    assert smooth(LOSSES, 0.0) == pytest.approx(LOSSES)


def test_settings_tell_methods_apart(tmp_path):
    for version, (seed, lambda_a) in enumerate([(0, 1.0), (1, 1.0), (0, 2.0), (0, 1.0)]):
        write(tmp_path / "foof" / f"version_{version}", LOSSES, settings=settings(seed, lambda_a))
    methods = by_method(read_runs([str(tmp_path)], "train/loss"), "train/loss")
    assert {name: sorted(run.folder.name for run in runs) for name, runs in methods.items()} == {
        "foof (lambda_a=1.0)": ["version_1", "version_3"],  # of two runs with seed 0 the newer
        "foof (lambda_a=2.0)": ["version_2"],
    }


def test_runs_without_settings_and_runs_with_a_label(tmp_path):
    for name in ("a/version_0", "a/version_1", "b"):
        write(tmp_path / name)
    runs = read_runs([f"mine={tmp_path / 'a'}", str(tmp_path / "b")], "train/loss")
    methods = by_method(runs, "train/loss")
    assert {name: len(members) for name, members in methods.items()} == {"mine": 2, "b": 1}
    alone = by_method(read_runs([str(tmp_path / "a")], "train/loss"), "train/loss")
    assert sorted(alone) == [str(tmp_path / "a/version_0"), str(tmp_path / "a/version_1")]


def test_a_resumed_run_goes_on_where_the_first_was_left(tmp_path):
    write(tmp_path / "foof/version_0", [4.0, 2.0, 1.0, 99.0], pace=100.0, settings=settings())
    resumed = settings(ckpt_path="foof/version_0/checkpoints/epoch=0-step=3.ckpt")
    write(tmp_path / "foof/version_1", [0.5, 0.2], start=3, pace=200.0, settings=resumed)
    ((_, (run,)),) = by_method(read_runs([str(tmp_path)], "train/loss"), "train/loss").items()
    assert run.values("train/loss").tolist() == pytest.approx([4.0, 2.0, 1.0, 0.5, 0.2])
    assert run.seconds("train/loss").tolist() == pytest.approx([0.1, 0.2, 0.3, 0.5, 0.7])


def test_axes(tmp_path):
    paced = write(tmp_path / "paced", LOSSES * 3, pace=50.0, every=2)
    (run,) = read_runs([str(paced)], "train/loss")
    assert run.steps("train/loss").tolist() == [1, 3, 5, 7, 9, 11]
    assert run.seconds("train/loss") == pytest.approx(np.array([2, 4, 6, 8, 10, 12]) * 0.05)
    assert run.epochs("train/loss")[-1] == pytest.approx(4)  # three steps an epoch
    (wall,) = read_runs([str(write(tmp_path / "wall"))], "train/loss")
    assert wall.seconds("train/loss").tolist() == [0, 10, 20, 30]
    assert wall.epochs("train/loss") == pytest.approx(np.arange(1, 5) / 3)


def test_figures_and_text(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("adam", "foof"):
        for seed in (0, 1):
            write(Path("runs") / name / f"version_{seed}", LOSSES, pace=1.0 + seed, settings=settings(seed))
    main(["runs", "--out", "a/b.svg", "a/b.png", "--table", "c/t.md", "--text", "--x", "time"])
    output = capsys.readouterr().out
    assert Path("c/t.md").read_text().strip() in output
    assert "adam" in output.split("\n\n")[-1] and "against seconds of training" in output and "\x1b" not in output
    drawn = Path("a/b.svg").read_text()
    for text in (">adam</text>", ">foof</text>", ">seconds of training</text>", "train/loss, smoothed by 0.7"):
        assert text in drawn
    assert Path("a/b.png").read_bytes().startswith(b"\x89PNG")
    main(["runs", "--out", "again.svg", "--x", "time"])
    assert Path("again.svg").read_text() == drawn


def test_more_is_better_for_an_accuracy(tmp_path, capsys):
    write(tmp_path / "good", [0.5, 0.9, 0.8], tag="val/accuracy")
    write(tmp_path / "bad", [0.7, 0.6, 0.6], tag="val/accuracy")
    main([str(tmp_path), "--metric", "val/accuracy", "--out", str(tmp_path / "a.svg")])
    table = rows(capsys.readouterr().out)
    assert list(table) == ["good", "bad"] and table["good"]["best"] == "0.9"
    main([str(tmp_path), "--metric", "val/accuracy", "--mode", "min"])
    assert rows(capsys.readouterr().out)["bad"]["best"] == "0.6"


def test_a_loss_that_is_not_finite_comes_last(tmp_path, capsys):
    write(tmp_path / "wild", [1.0, math.nan, math.inf])
    write(tmp_path / "tame", [2.0, 1.9, 1.8])
    main([str(tmp_path), "--out", str(tmp_path / "a.svg"), "--text"])
    table = rows(capsys.readouterr().out)
    assert list(table) == ["tame", "wild"]
    assert table["wild"]["last"] == "non-finite" and table["wild"]["best"] == "1"
    assert ">wild (non-finite)</text>" in (tmp_path / "a.svg").read_text()


def test_damaged_files_are_named_and_skipped(tmp_path, capsys):
    (half,) = write(tmp_path / "half").glob("events*")
    half.write_bytes(half.read_bytes()[:-5])
    (flipped,) = write(tmp_path / "flipped").glob("events*")
    content = bytearray(flipped.read_bytes())
    content[40] ^= 1
    flipped.write_bytes(content)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/events.out.tfevents.1").touch()
    (tmp_path / "text").mkdir()
    (tmp_path / "text/events.out.tfevents.1").write_text("hello")
    (tmp_path / "good").mkdir()
    shutil.copytree(write(tmp_path / "source"), tmp_path / "good", dirs_exist_ok=True)
    (tmp_path / "good/config.yaml").write_text("a: [")
    main([str(tmp_path)])
    captured = capsys.readouterr()
    table = rows(captured.out)
    assert sorted(table) == ["good", "half", "source"] and table["half"]["last"] == table["good"]["last"] == "0.5"
    for name in ("half", "flipped", "text"):
        assert f"{name}/events.out.tfevents" in captured.err and "damaged or half-written" in captured.err
    assert "empty: left out, it has logged no train/loss" in captured.err
    assert "good/config.yaml: cannot be read as YAML" in captured.err


def test_unfair_comparisons_are_told(tmp_path, capsys):
    write(tmp_path / "each", LOSSES * 3)
    write(tmp_path / "fourth", LOSSES * 3, every=4, pace=1.0)
    main([str(tmp_path)])
    errors = capsys.readouterr().err
    assert "train/loss was logged at different steps (1 in " in errors and "4 in " in errors
    assert "no time/step_ms in 1 of 2 runs" in errors and "each" in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: there is no such folder; name folders of runs, such as runs/digits."),
        (["run", "--metric", "train/los"], "No run has logged 'train/los'; the metrics are epoch, train/loss."),
        (["run", "--smooth", "1"], "smooth=1.0: must be in [0, 1)."),
        (["run", "--out", "a.txt"], "a.txt: no format of a figure; take .svg, .png or .pdf."),
        (["bare"], "No run has logged 'train/loss'."),
    ],
)
def test_mistakes_end_with_one_sentence(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    write(Path("run"))
    Path("bare").mkdir()
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"locoprop-compare: error: {message}"


def test_a_seed_that_has_just_begun_does_not_cut_the_others(tmp_path):
    for seed, losses in enumerate(([4.0, 2.0, 1.0], [2.0, 1.0, 0.5], [9.0])):
        write(tmp_path / "foof" / f"version_{seed}", losses, settings=settings(seed))
    ((_, runs),) = by_method(read_runs([str(tmp_path)], "train/loss"), "train/loss").items()
    drawn = curve(runs, "train/loss", 0.0, "step")
    assert drawn.x.tolist() == [0, 1, 2] and drawn.middle.tolist() == [4.0, 1.5, 0.75]
    assert drawn.high.tolist() == [9.0, 2.0, 1.0]


def test_flatten():
    nested = {"model": {"class_path": "a.B", "init_args": {"c": 1, "d": {"class_path": "e.F"}}}, "g": {}}
    assert flatten(nested) == {"model": "a.B", "model.c": 1, "model.d": "e.F", "g": "{}"}


def test_it_starts_without_torch():
    script = "import sys, locoprop_lightning.compare; print('torch' in sys.modules, 'lightning' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_user_error_is_the_package_s():
    with pytest.raises(UserError):
        read_runs(["nowhere"], "train/loss")


def test_a_resumed_run_is_joined_to_its_own_only(tmp_path):
    """Another root may hold a run of the same relative path."""
    point = "lightning_logs/version_0/checkpoints/x.ckpt"
    write(tmp_path / "a/lightning_logs/version_0", [4.0, 3.0, 2.0], settings=settings())
    write(tmp_path / "a/lightning_logs/version_1", [1.0, 0.5], start=3, settings=settings(ckpt_path=point))
    write(tmp_path / "b/lightning_logs/version_0", [400.0, 300.0, 200.0], settings=settings())
    runs = read_runs([str(tmp_path / "b"), str(tmp_path / "a")], "train/loss")
    assert [run.values("train/loss").tolist() for run in runs] == [[400, 300, 200], [4, 3, 2, 1, 0.5]]
    assert len(by_method(runs, "train/loss")) == 2


def test_a_fork_leaves_the_run_that_it_came_from(tmp_path):
    write(tmp_path / "foof/version_0", [4.0, 3.0, 2.0, 1.0], settings=settings())
    fork = settings(lambda_a=2.0, ckpt_path="foof/version_0/checkpoints/x.ckpt")
    write(tmp_path / "foof/version_1", [9.0], start=2, settings=fork)
    runs = read_runs([str(tmp_path)], "train/loss")
    assert [run.values("train/loss").tolist() for run in runs] == [[4, 3, 2, 1], [4, 3, 9]]


def test_a_chain_goes_through_a_run_that_logged_nothing(tmp_path):
    write(tmp_path / "foof/version_0", [9.0, 8.0, 7.0], settings=settings())
    for version, start, losses in ((1, 3, []), (2, 3, [5.0, 4.0])):
        point = f"/gone/foof/version_{version - 1}/checkpoints/x.ckpt"  # the runs were moved
        write(tmp_path / f"foof/version_{version}", losses, start, settings=settings(ckpt_path=point))
        (tmp_path / f"foof/version_{version}/events.out.tfevents.0").touch()
    (run,) = read_runs([str(tmp_path)], "train/loss")
    assert run.values("train/loss").tolist() == [9, 8, 7, 5, 4]


def test_a_test_of_a_checkpoint_is_no_run_of_its_metric(tmp_path):
    write(tmp_path / "foof/version_0", settings=settings(lambda_a=2.0))
    tested = settings(ckpt_path="foof/version_0/checkpoints/x.ckpt")
    write(tmp_path / "foof/version_1", [0.1], tag="test/loss", settings=tested)
    (run,) = read_runs([str(tmp_path)], "train/loss")
    assert run.folder.name == "version_0"


def test_seconds_go_on_after_the_last_logged_pace(tmp_path):
    folder = write(tmp_path / "run", [1.0] * 240)
    with SummaryWriter(folder) as writer:
        for step in (49, 99, 149, 199):
            writer.add_scalar("time/step_ms", 100.0, step)
    (run,) = read_runs([str(folder)], "train/loss")
    assert run.seconds("train/loss")[[49, 199, 239]] == pytest.approx([5, 20, 24])


def test_a_rerun_in_the_same_folder_replaces_the_first(tmp_path):
    write(tmp_path, [4.0] * 10)
    time.sleep(1.1)  # the files are named by the second
    write(tmp_path, [1.0] * 3)
    (run,) = read_runs([str(tmp_path)], "train/loss")
    assert run.values("train/loss").tolist() == [1, 1, 1]


def test_what_is_not_finite_is_worst_and_passes(tmp_path, capsys):
    write(tmp_path / "broken", [0.1, 0.2, math.nan], tag="val/accuracy")
    write(tmp_path / "good", [0.8, 0.9, 0.95], tag="val/accuracy")
    main([str(tmp_path), "--metric", "val/accuracy"])
    table = rows(capsys.readouterr().out)
    assert list(table) == ["good", "broken"] and table["broken"]["best"] == "0.2"
    assert smooth([4.0, math.nan, 2.0])[[0, 2]].tolist() == pytest.approx([4.0, 3.4])


def test_equal_time_asks_for_runs_that_lasted(tmp_path, capsys):
    for seed, steps in enumerate((10, 10, 1)):
        write(tmp_path / "foof" / f"version_{seed}", [96.0] + [1.0] * (steps - 1), pace=1000.0, settings=settings(seed))
    main([str(tmp_path), "--smooth", "0"])
    assert rows(capsys.readouterr().out)["foof"]["at 10.0 s"] == "1"


def test_folders_that_make_methods(tmp_path, monkeypatch):
    def names(*roots):
        return {name: len(runs) for name, runs in by_method(read_runs(list(roots), "train/loss"), "train/loss").items()}

    for folder in ("before/foof", "after/foof"):
        for seed in (0, 1):
            quiet = settings(seed)
            quiet["trainer"] = quiet["trainer"] | {"enable_progress_bar": bool(seed)}
            write(tmp_path / folder / f"seed{seed}", settings=quiet)
    monkeypatch.chdir(tmp_path)
    assert names("before") == {"foof": 2}
    assert names("before", "after") == {"before/foof/seed0": 2, "after/foof/seed0": 2}
    assert names("x=before", "y=after") == {"x": 2, "y": 2}
    monkeypatch.chdir(tmp_path / "before/foof")
    assert names(".") == {"foof": 2}


def test_files_that_cannot_be_read(tmp_path, capsys):
    good = write(tmp_path / "good", settings=settings(ckpt_path=5))
    (tmp_path / "dangling").mkdir()
    (tmp_path / "dangling/events.out.tfevents.1").symlink_to(tmp_path / "none")
    (tmp_path / "folder/events.out.tfevents.1").mkdir(parents=True)
    main([str(tmp_path)])
    captured = capsys.readouterr()
    assert list(rows(captured.out)) == [good.name] and "dangling/events.out.tfevents.1: cannot be read" in captured.err


def test_nothing_finite_in_the_terminal(tmp_path, capsys):
    write(tmp_path / "wild", [math.nan] * 3)
    main([str(tmp_path), "--text"])
    assert "no value is finite" in capsys.readouterr().out
