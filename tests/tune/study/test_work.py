import json
import math

import pytest
import torch

from locoprop_lightning.errors import UserError
from locoprop_lightning.tune.study.store import read_curve
from locoprop_lightning.tune.study.work import CURVE, Job, Referee, highest, run
from tests.support import ROOT

DIGITS = ROOT / "configs" / "digits"
LENGTH = {"trainer.max_epochs": 4}


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def job(folder, name="foof", limits=(math.inf, math.inf), judge="train/loss", **settings):
    line = {"method": name, "trial": 0, "mark": "m", "values": {}}
    config = str(DIGITS / f"{name}.yaml")
    return Job(line, config, LENGTH | settings, 0, 1, 0, str(folder), judge, None if limits is None else list(limits))


def told(line):
    return {name: value for name, value in line.items() if name not in ("ms", "seconds")}


@pytest.mark.parametrize("name", ["foof_rms", "adam"])
def test_a_killed_run_ends_as_an_undisturbed_one(tmp_path, monkeypatch, name):
    whole = run(job(tmp_path / "whole", name), pause=0)

    class Killed(BaseException):
        pass

    def kill(self, trainer, *args):
        original(self, trainer, *args)
        if trainer.global_step == 30:  # in the third of four epochs
            raise Killed

    original = Referee.on_train_batch_end
    with monkeypatch.context() as patched:
        patched.setattr(Referee, "on_train_batch_end", kill)
        with pytest.raises(Killed):
            run(job(tmp_path / "killed", name), pause=0)
    checkpoint = torch.load(tmp_path / "killed" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 24
    again = run(job(tmp_path / "killed", name), pause=0)
    assert told(again) == told(whole) and whole["status"] == "done" and whole["steps"] == 48
    assert read_curve(tmp_path / "killed" / CURVE) == read_curve(tmp_path / "whole" / CURVE)
    assert len(whole["rungs"]) == 2 and whole["value"] == whole["loss"]


def test_a_checkpoint_that_cannot_be_read_back_is_none(tmp_path):
    """As those of an optimizer whose state holds objects of another package."""
    torch.save({"optimizer": Job}, tmp_path / "last.ckpt")
    assert told(run(job(tmp_path))) == told(run(job(tmp_path / "whole")))


def test_what_is_recorded_is_not_run_again(tmp_path, monkeypatch):
    first = run(job(tmp_path))
    monkeypatch.setattr("locoprop_lightning.tune.study.work._train", None)
    assert run(job(tmp_path)) == first


@pytest.mark.parametrize(("limits", "steps"), [((0.0, math.inf), 12), ((math.inf, 0.0), 24)])
def test_a_trial_above_its_limit_is_stopped(tmp_path, limits, steps):
    line = run(job(tmp_path, limits=limits))
    assert (line["status"], line["steps"]) == ("stopped", steps) and line["value"] == line["rungs"][-1]


def test_a_trial_that_learns_nothing_is_stopped_and_a_final_run_is_not(tmp_path):
    idle = {"model.optimizer.lr": 1e-9}
    line = run(job(tmp_path / "trial", "sgd", **idle))
    assert (line["status"], line["steps"]) == ("stopped", 12)
    assert run(job(tmp_path / "final", "sgd", limits=None, **idle))["status"] == "done"


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path):
    line = run(job(tmp_path, "sgd", **{"model.optimizer.lr": 1e38}))
    assert line["status"] == "non-finite" and line["value"] is None and line["steps"] < 48
    json.dumps(line, allow_nan=False)


def test_a_final_run_is_tested_once(tmp_path):
    line = run(job(tmp_path, limits=None))
    assert line["test/accuracy"] > 0.9 and line["test/loss"] < 0.5
    assert "test/accuracy" not in run(job(tmp_path / "trial"))


def test_held_out_data_can_judge(tmp_path):
    line = run(job(tmp_path, judge="val/accuracy", **{"data.validation": 200}))
    assert line["value"] == line["val/accuracy"] > 0.9


def test_a_run_that_was_killed_at_its_very_end_has_its_metrics(tmp_path, monkeypatch):
    settings = {"judge": "val/accuracy", "data.validation": 200}
    whole = run(job(tmp_path / "whole", **settings), pause=0)
    with monkeypatch.context() as patched:
        patched.setattr("locoprop_lightning.tune.study.work.highest", None)  # what comes after the fit
        with pytest.raises(TypeError):
            run(job(tmp_path / "killed", **settings), pause=0)
    assert (tmp_path / "killed" / "last.ckpt").is_file()
    assert run(job(tmp_path / "killed", **settings))["value"] == whole["value"] > 0.9


def test_what_a_run_cannot_do_is_no_result(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="in_features"):
        run(job(tmp_path / "a", **{"model.network.in_features": 65}))

    def broken(self, *args):
        if len(self.losses) > (1 if at_start is False else -1):
            raise kind("linalg.cholesky: not positive definite")
        original(self, *args)

    original = Referee.on_train_batch_end
    monkeypatch.setattr(Referee, "on_train_batch_end", broken)
    at_start, kind = False, torch.linalg.LinAlgError
    line = run(job(tmp_path / "b"))
    assert (line["status"], line["value"], line["steps"]) == ("failed", None, 2) and "cholesky" in line["error"]
    at_start = True
    with pytest.raises(RuntimeError, match="cholesky"):
        run(job(tmp_path / "c"))
    at_start, kind = False, RuntimeError  # such as a disk that is full: not a matter of the settings
    with pytest.raises(RuntimeError, match="cholesky"):
        run(job(tmp_path / "d"))


def test_highest_loss():
    assert highest([9.0] * 101 + [1.0, 2.0, 1.5]) == 2.0 and highest([3.0, 1.0]) is None
    assert highest([1.0] * 101 + [math.inf]) is None
