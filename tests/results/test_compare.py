"""The command `locoprop-compare`."""

import math
import subprocess
import sys
from pathlib import Path

import pytest

from locoprop_lightning.results.compare import main
from locoprop_lightning.results.runs import smooth
from locoprop_lightning.results.terminal import for_terminal
from tests.results.support import LOSSES, rows, settings, write


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
    assert captured.out.startswith("train/loss, smoothed by 0.5\n")
    assert slow["last"] == f"{2 * smoothed:.4g} ({smoothed:.4g}..{5 * smoothed:.4g})" == slow["best"]
    assert slow["at 0.3 s"] == "not yet"  # its first step takes a second
    assert table["fast"]["at 0.3 s"] == table["fast"]["best"] == f"{0.5 * 0.5 * 0.5 + 0.5 * 0.5 * 0.4 + 0.5 * 0.3:.4g}"


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


def test_a_terminal_of_80_columns_shows_all_of_a_table():
    head = ["method", "runs", "last step", "last", "best", "at 118.2 s", "ms a step"]
    values = ["0.0009 (0.0004..0.0012)", "0.0008 (0.0004..0.0011)", "0.0009 (0.0005..0.0012)", "148.1 (147.0..149.9)"]
    table = [head, ["locoprop_s_whitened", "3", "884", *values]]
    text = for_terminal(table, 80)
    assert max(map(len, text.splitlines())) <= 80
    for part in ("locoprop_s_whitened", "0.0009", "(0.0004..", "0.0012)", "148.1", "(147.0..", "149.9)"):
        assert part in text
    wide = for_terminal(table, 160)
    assert "0.0009 (0.0004..0.0012)" in wide and len(wide.splitlines()) == 3


@pytest.mark.parametrize(
    "name", ["locoprop_m_anderson (iterations=4)", "runs/fashion_mnist/before/locoprop_m_anderson"]
)
@pytest.mark.parametrize("width", [60, 70, 80])
def test_names_are_broken_between_words_and_columns_go_on_below(name, width):
    head = ["method", "runs", "last step", "last", "best", "ms a step"]
    ranges = ["0.0009 (0.0004..0.0012)", "0.0008 (0.0004..0.0011)", "148.1 (147.0..149.9)"]
    text = for_terminal([head, [name, "3", "884", *ranges], ["adam", "3", "884", *ranges]], width)
    assert max(map(len, text.splitlines())) <= width
    for part in (*name.split(), "runs", "last", "best", "0.0009", "0.0008", "148.1"):
        assert part in text
    parts = text.split("\n\n")
    assert all("method" in part and "adam" in part for part in parts) and (len(parts) > 1 or width > 60)


def test_more_is_better_for_an_accuracy(tmp_path, capsys):
    write(tmp_path / "good", [0.5, 0.9, 0.8], tag="val/accuracy")
    write(tmp_path / "bad", [0.7, 0.6, 0.6], tag="val/accuracy")
    main([str(tmp_path), "--metric", "val/accuracy", "--out", str(tmp_path / "a.svg")])
    table = rows(capsys.readouterr().out)
    assert list(table) == ["good", "bad"] and table["good"]["best"] == "0.9"
    main([str(tmp_path), "--metric", "val/accuracy", "--mode", "min"])
    assert rows(capsys.readouterr().out)["bad"]["best"] == "0.6"


def test_evaluations_are_no_runs_of_training_and_are_not_told(tmp_path, capsys):
    write(tmp_path / "foof/version_0", settings=settings())
    write(tmp_path / "foof/version_0", [0.5, 0.6], tag="val/accuracy")
    evaluated = settings(ckpt_path="foof/version_0/checkpoints/x.ckpt", verbose=True)
    write(tmp_path / "foof/version_1", [0.9], tag="val/accuracy", settings=evaluated)
    write(tmp_path / "foof/version_2", [0.8], tag="test/accuracy", settings=evaluated)
    write(tmp_path / "foof/version_3", [], settings=settings(return_predictions=True))
    write(tmp_path / "python", [0.8], tag="test/accuracy")
    for metric, value in (("train/loss", "0.5"), ("val/accuracy", "0.6"), ("test/accuracy", "0.8")):
        main([str(tmp_path), "--metric", metric, "--smooth=0"])
        captured = capsys.readouterr()
        assert rows(captured.out)["foof"]["last"] == value and "left out" not in captured.err
    write(tmp_path / "without", [0.5])
    main([str(tmp_path), "--metric", "val/accuracy"])
    assert f"no val/accuracy in 1 of 6 runs ({tmp_path}/without), left out\n" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_comes_last(tmp_path, capsys):
    write(tmp_path / "wild", [1.0, math.nan, math.inf])
    write(tmp_path / "tame", [2.0, 1.9, 1.8])
    main([str(tmp_path), "--out", str(tmp_path / "a.svg"), "--text"])
    table = rows(capsys.readouterr().out)
    assert list(table) == ["tame", "wild"]
    assert table["wild"]["last"] == "non-finite" and table["wild"]["best"] == "1"
    assert ">wild (non-finite)</text>" in (tmp_path / "a.svg").read_text()


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
        (
            ["run", "--metric", "train/los"],
            "No run has logged 'train/los'; the metrics are epoch, train/loss; near names are train/loss.",
        ),
        (["run", "--smooth", "1"], "--smooth=1.0: must be in [0, 1)."),
        (["run", "--out", "a.txt"], "a.txt: no format of a figure; take .svg, .png or .pdf."),
        (["run", "--focus", "rum"], "--focus=rum: there is no such method; near names are run."),
        (["bare"], "No run has logged 'train/loss'; name folders of runs, such as runs/digits."),
    ],
)
def test_mistakes_end_with_one_sentence(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    write(Path("run"))
    Path("bare").mkdir()
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-1] == f"locoprop-compare: error: {message}" and captured.out == ""


def test_it_starts_without_torch():
    script = "import sys, locoprop_lightning.results.compare; print('torch' in sys.modules, 'lightning' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


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


def test_nothing_finite_in_the_terminal(tmp_path, capsys):
    write(tmp_path / "wild", [math.nan] * 3)
    main([str(tmp_path), "--text"])
    assert "no value is finite" in capsys.readouterr().out
