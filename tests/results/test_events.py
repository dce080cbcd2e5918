"""Event files: whole, damaged, or not there."""

import shutil
import time

import pytest

from locoprop_lightning import UserError
from locoprop_lightning.results.compare import main
from locoprop_lightning.results.logs import read_runs
from tests.results.support import rows, settings, write


def test_a_rerun_in_the_same_folder_replaces_the_first(tmp_path):
    write(tmp_path, [4.0] * 10)
    time.sleep(1.1)  # the files are named by the second
    write(tmp_path, [1.0] * 3)
    (run,) = read_runs([str(tmp_path)], "train/loss")
    assert run.values("train/loss").tolist() == [1, 1, 1]


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
    assert sorted(table) == ["good", "half", "source"] and table["half"]["last"] == table["good"]["last"] == "2.026"
    for name in ("half", "flipped", "text"):
        assert f"{name}/events.out.tfevents" in captured.err and "damaged or half-written" in captured.err
    none = ", ".join(str(tmp_path / name) for name in ("empty", "flipped", "text"))
    assert f"no train/loss in 3 of 6 runs ({none}), left out" in captured.err
    assert "good/config.yaml: cannot be read as YAML" in captured.err


def test_files_that_cannot_be_read(tmp_path, capsys):
    good = write(tmp_path / "good", settings=settings(ckpt_path=5))
    (tmp_path / "dangling").mkdir()
    (tmp_path / "dangling/events.out.tfevents.1").symlink_to(tmp_path / "none")
    (tmp_path / "folder/events.out.tfevents.1").mkdir(parents=True)
    main([str(tmp_path)])
    captured = capsys.readouterr()
    assert list(rows(captured.out)) == [good.name] and "dangling/events.out.tfevents.1: cannot be read" in captured.err


def test_user_error_is_the_package_s():
    with pytest.raises(UserError):
        read_runs(["nowhere"], "train/loss")
