"""Studies with real Ray processes."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest
import yaml

from locoprop_lightning.errors import UserError
from locoprop_lightning.tune.study.command import study as command
from locoprop_lightning.tune.study.driver import Entry, Resources, alone
from locoprop_lightning.tune.study.paces import plan
from locoprop_lightning.tune.study.spec import load
from locoprop_lightning.tune.study.store import FINALS, TRIALS, Store
from tests.support import ROOT, wait_for

VOLATILE = ("ms", "seconds")
METHODS = {"adam": "configs/digits/adam.yaml", "foof": "configs/digits/foof.yaml"}


class Command:
    """Runs `locoprop-tune study` on a study of its own in a folder."""

    def __init__(self, folder, **content):
        self.folder = folder
        folder.mkdir()
        budget = {"trials": 3, "seeds": 2, "threads": 1}
        study = {"workload": {"trainer.max_epochs": 3}, "budget": budget, "methods": METHODS} | content
        (folder / "s.yaml").write_text(yaml.safe_dump(study))
        self.command = [sys.executable, "-m", "locoprop_lightning.tune", "study", "s.yaml", "--quiet"]
        self.options = {"cwd": folder, "env": os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}}

    @property
    def out(self):
        return self.folder / "results" / "s"

    def run(self, *arguments):
        return subprocess.run([*self.command, *arguments], **self.options, capture_output=True, text=True)

    def entries(self, added):
        """The methods, as this process sees them."""
        loaded = load(self.folder / "s.yaml", [added])
        return {name: Entry(method, loaded, Store(self.out)) for name, method in loaded.methods.items()}

    def start(self):
        return subprocess.Popen(self.command, **self.options, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def lines(self, name):
        path = self.out / name
        return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []

    def found(self):
        """All that a study finds, but for how long it took."""
        stored = {name: [_told(line) for line in self.lines(name)] for name in (TRIALS, FINALS)}
        curves = {path.name: path.read_text() for path in (self.out / "curves").glob("*.csv")}
        best = {path.name: path.read_text() for path in (self.out / "best").glob("*.yaml")}
        return stored, curves, best

    def report(self):
        """The page, without measured paces."""
        (self.out / "paces.json").unlink(missing_ok=True)
        assert command([str(self.folder / "s.yaml"), "--out", str(self.out), "--report"]) == 0
        return (self.out / "report.md").read_text()


def _told(line):
    return {name: value for name, value in line.items() if name not in VOLATILE}


@pytest.mark.timeout(600)
@pytest.mark.processes
def test_a_study_that_is_killed_again_and_again_ends_as_an_undisturbed_one(tmp_path):
    budget = {"trials": 2, "seeds": 2, "threads": 1}
    whole, killed = (Command(tmp_path / name, budget=budget) for name in ("whole", "killed"))
    done = whole.run()
    assert done.returncode == 0, done.stderr
    assert "| adam | 2 |" in done.stdout and f"report: {whole.out / 'report.md'}" in done.stdout
    for condition in (
        lambda: list((killed.out / "work").glob("*trial0/lock")),
        lambda: len(killed.lines(FINALS)) >= 1,
    ):
        process = killed.start()
        wait_for(condition, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
    stored = Store(killed.out)
    stored.work(stored.lines(FINALS)[-1]).mkdir(exist_ok=True)  # as a kill right after it was stored leaves it
    done = killed.run()
    assert done.returncode == 0, done.stderr
    assert killed.found() == whole.found() and killed.report() == whole.report()
    stored, curves, _ = whole.found()
    assert len(stored[TRIALS]) == len(stored[FINALS]) == len(curves) == 4
    assert not list((killed.out / "work").iterdir())
    # every line says how it is run again
    (line,) = (line for line in stored[FINALS] if line["method"] == "foof" and line["seed"] == 1)
    again = subprocess.run(
        [sys.executable, "-m", "locoprop_lightning", *line["command"].split()[1:], "--trainer.log_every_n_steps=1"],
        **whole.options,
        capture_output=True,
        text=True,
    )
    assert again.returncode == 0, again.stderr
    told = re.search(r"train loss +([\d.]+)", again.stdout)
    losses = [float(row.split(",")[1]) for row in curves["foof-seed1.csv"].splitlines()[1:]]
    assert told and losses[-1] == pytest.approx(float(told[1]), rel=0.02)


@pytest.mark.processes
@pytest.mark.filterwarnings("ignore")
def test_a_method_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tune"])
    study = Command(tmp_path / "s", budget={"trials": 1, "seeds": 2}, methods={"adam": METHODS["adam"]})
    assert study.run().returncode == 0
    before = study.found()
    mine = study.folder / "mine.yaml"
    mine.write_text("mine: {config: configs/digits/foof_rms.yaml}\n")
    entries = study.entries(mine)
    assert {name: entry.left() for name, entry in entries.items()} == {"adam": (0, 0), "mine": (1, 2)}
    planned = plan(entries, 0)
    assert re.search(r"\| mine \| 1 \| 2 \| 36 \|", planned) and re.search(r"\| adam \| 0 \| 0 \| 36 \|", planned)
    added = study.run("--add", "mine.yaml", "--only", "mine")
    assert added.returncode == 0, added.stderr
    page = (study.out / "report.md").read_text()
    assert "| mine | 2 |" in page and "| adam | 2 |" in page and "not decided with 2 seeds" in page
    stored, _, _ = study.found()
    assert [line for line in stored[TRIALS] if line["method"] == "adam"] == before[0][TRIALS]
    # another setting of a method makes its runs anew, and nobody else's
    assert all(entry.finished for entry in study.entries(mine).values())
    mine.write_text("mine: {config: configs/digits/foof_rms.yaml, set: {data.batch_size: 64}}\n")
    assert {name: entry.left() for name, entry in study.entries(mine).items()} == {"adam": (0, 0), "mine": (1, 2)}


@pytest.mark.processes
def test_a_method_that_fails_keeps_no_other_from_going_on(tmp_path):
    broken = {
        "config": METHODS["foof"],
        "set": {"data.batch_size": 64},
        "space": {"model.lambda_a": {"uniform": [1, 2]}},
    }
    (tmp_path / "broken.py").write_text(
        "from locoprop_lightning.solvers import ClosedForm\n\n\nclass Broken(ClosedForm):\n"
        "    def run(self, *args, **kwargs):\n        raise RuntimeError('no such matrix')\n"
    )
    broken["set"]["model.solver"] = "broken.Broken"
    study = Command(
        tmp_path / "s", budget={"trials": 1, "seeds": 2}, methods={"broken": broken, "adam": METHODS["adam"]}
    )
    study.options["env"]["PYTHONPATH"] += os.pathsep + str(tmp_path)
    done = study.run()
    assert done.returncode == 1 and "broken failed: no such matrix" in done.stderr, done.stderr
    assert "| adam | 2 |" in done.stdout and {line["method"] for line in study.lines(TRIALS)} == {"adam"}


@pytest.mark.filterwarnings("ignore")
def test_the_first_trial_begins_where_the_study_says(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tune"])
    own = {"config": METHODS["foof"], "set": {"model.lambda_a": 7.0}, "space": {"model.lambda_a": {"uniform": [1, 9]}}}
    study = Command(tmp_path / "s", methods={"foof": own})
    loaded = load(study.folder / "s.yaml", [])
    job = Entry(loaded.methods["foof"], loaded, Store(study.out)).next()
    assert job.line["values"] == {"model.lambda_a": 7.0} and job.settings["model.lambda_a"] == 7.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "sgd"], "--only sgd: is none of the methods adam, foof"),
        (["--add", "no.yaml"], "--add no.yaml: there is no such file"),
        (["--gpus-per-run", "-1"], "-1: a run has one device; take a number from 0 to 1"),
        (["--concurrent", "-1"], "must be at least 0"),
    ],
)
def test_refusals(tmp_path, arguments, message):
    study = Command(tmp_path / "s")
    with pytest.raises(UserError, match=message):
        command([str(study.folder / "s.yaml"), "--out", str(study.out), *arguments])


def test_one_process_has_the_folder(tmp_path):
    with alone(tmp_path), pytest.raises(UserError, match="another process runs the study there"), alone(tmp_path):
        pass


def test_a_report_of_nothing_is_refused(tmp_path):
    study = Command(tmp_path / "s")
    with pytest.raises(UserError, match="holds nothing of this study yet; run it without --report first, or name its"):
        command([str(study.folder / "s.yaml"), "--out", str(study.out), "--report"])


def test_a_run_that_needs_more_than_there_is(monkeypatch):
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 4.0, "GPU": 1.0})
    assert Resources(1, 0, 0).slots == 4 and Resources(1, 0.5, 0).slots == 2 and Resources(1, 0, 3).slots == 3
    with pytest.raises(UserError, match="a run with 8 threads .* does not fit"):
        _ = Resources(8, 0, 0).slots
