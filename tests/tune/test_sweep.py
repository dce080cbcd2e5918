"""Sweeps with real Ray processes."""

import contextlib
import csv
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from ray.cluster_utils import Cluster

from locoprop_lightning import load_run
from locoprop_lightning.errors import UserError
from locoprop_lightning.results.logs import read_runs
from locoprop_lightning.results.methods import by_method
from tests.support import ROOT, close, quiet_trainer

DIGITS = ROOT / "configs" / "digits"
LAMBDAS = {"model.lambda_a": {"loguniform": [1, 1000]}, "model.lambda_r": {"loguniform": [1, 1000]}}


@pytest.fixture
def sweep(tmp_path):
    """Runs `locoprop-tune` in the folder of the test."""
    return Sweep(tmp_path)


class Sweep:
    def __init__(self, folder):
        self.folder = folder
        self.environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def config(self, name, **trainer):
        settings = yaml.safe_load((DIGITS / f"{name}.yaml").read_text())
        settings["trainer"] |= trainer
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(settings))
        return path

    def space(self, **dimensions):
        path = self.folder / "space.yaml"
        path.write_text(yaml.safe_dump(dimensions, sort_keys=False))
        return path

    def command(self, *arguments):
        return [
            sys.executable,
            "-m",
            "locoprop_lightning.tune",
            "--storage",
            "sweeps",
            "--name",
            "s",
            "--quiet",
            *map(str, arguments),
        ]

    def start(self, *arguments):
        with (self.folder / "log.txt").open("w") as log:
            return subprocess.Popen(
                self.command(*arguments), cwd=self.folder, env=self.environment, stdout=log, stderr=subprocess.STDOUT
            )

    def begin(self, epoch, *arguments, **trainer):
        """Starts a sweep of FOOF; gives its process, and those that this has started, once so many epochs are over."""
        space, config = self.space(**LAMBDAS), self.config("foof", **trainer)
        process = self.start("--config", config, "--space", space, *arguments)
        self.wait_for(epoch)
        return process, psutil.Process(process.pid).children(recursive=True)

    def run(self, *arguments):
        done = subprocess.run(
            self.command(*arguments), cwd=self.folder, env=self.environment, capture_output=True, text=True
        )
        return done.returncode, done.stdout, done.stderr

    @property
    def trials(self):
        with (self.folder / "sweeps/s/results.csv").open(newline="") as stream:
            return list(csv.DictReader(stream))

    def checkpoints(self):
        """Checkpoints of the trials in training."""
        return list(self.folder.glob("sweeps/s/*/progress/epoch_*.ckpt"))

    def epoch(self, trials=1):
        """Epochs that so many trials in training have finished."""
        epochs = {}
        for path in self.checkpoints():
            epochs[path.parents[1]] = max(epochs.get(path.parents[1], 0), int(path.stem.rpartition("_")[2]))
        return sorted(epochs.values())[-trials] if len(epochs) >= trials else 0

    def wait_for(self, epoch, trials=1, patience=120):
        end = time.monotonic() + patience
        while self.epoch(trials) < epoch:
            assert time.monotonic() < end, (self.folder / "log.txt").read_text()
            time.sleep(0.1)


def fit(config, folder):
    """Validation accuracies of `locoprop fit`, by step."""
    command = [sys.executable, "-m", "locoprop_lightning", "fit", "--config", str(config)]
    subprocess.run(
        [*command, "--trainer.logger.save_dir=again"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
    )
    (run,) = read_runs([str(folder / "again")], "val/accuracy")
    return run.values("val/accuracy")


def starts(folder, tmp_path):
    """First step of each attempt at a run."""
    for path in folder.glob("events.out.tfevents.*"):
        alone = tmp_path / "alone"
        alone.mkdir()
        shutil.copy(path, alone)
        yield read_runs([str(alone)], "train/loss")[0].steps("train/loss")[0]
        shutil.rmtree(alone)


def weights(config, folder, *arguments):
    """Weights that `locoprop fit` ends with, and the losses and accuracies of its summary."""
    command = [sys.executable, "-m", "locoprop_lightning", "fit", "--config", str(config), *arguments]
    done = subprocess.run(
        [*command, f"--trainer.logger.save_dir={folder}"],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    path = max(folder.rglob("step=*.ckpt"), key=lambda path: int(path.stem.partition("step=")[2]))
    said = "".join(line for line in done.stdout.splitlines() if re.match(r"  \w+ (loss|accuracy)  ", line))
    return torch.load(path, weights_only=True)["state_dict"], said


def listening(processes):
    """Addresses at which processes listen; those that have ended by now have none."""
    found = set()
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            sockets = process.net_connections("inet")
            found |= {c.laddr.ip.removeprefix("::ffff:") for c in sockets if c.status == psutil.CONN_LISTEN}
    return found


@pytest.mark.processes
def test_bayesian_search_with_early_stopping(sweep, tmp_path):
    space = sweep.space(**LAMBDAS)
    config = sweep.config("foof", max_epochs=9)
    status, output, errors = sweep.run(
        *("--config", config, "--space", space, "--samples", 8, "--search", "gp", "--scheduler", "asha"),
        *("--set", "data.validation=200"),
    )
    assert status == 0, errors
    trials = sweep.trials
    assert len(trials) == 8 and trials[0]["status"] == "done" and trials[0]["epoch"] == "9"
    assert "stopped early" in {trial["status"] for trial in trials}
    shipped = yaml.safe_load(config.read_text())["model"]["init_args"]
    assert any(all(float(t[f"model.{n}"]) == shipped[n] for n in ("lambda_a", "lambda_r")) for t in trials)
    folder = tmp_path / "sweeps/s"
    for name in ("parallel.png", "slices.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    assert (
        "importance: model.lambda_" in output
        and f"train the best: locoprop fit --config {folder / 'best.yaml'}" in output
    )
    assert yaml.safe_load((folder / "best.yaml").read_text())["data"]["init_args"]["validation"] == 200
    # the weights of the best are kept, and of no other
    (kept,) = folder.glob("*/seed_*/checkpoints/*.ckpt")
    assert kept.parts[-4] == trials[0]["trial"] and f"load_run({str(kept.parents[1])!r})" in output
    run = load_run(kept.parents[1])
    (again,) = quiet_trainer().validate(run.module, run.data(), verbose=False)
    assert again["val/accuracy"] == pytest.approx(float(trials[0]["val/accuracy"]))
    # the best again, on its own
    assert fit(folder / "best.yaml", tmp_path)[-1] == pytest.approx(float(trials[0]["val/accuracy"]), abs=0)
    shutil.rmtree(tmp_path / "again")
    stopped = next(trial for trial in trials if trial["status"] == "stopped early")
    replayed = fit(stopped["replay"].rpartition(" ")[2], tmp_path)
    assert replayed[int(stopped["epoch"]) - 1] == pytest.approx(float(stopped["val/accuracy"]), abs=0)
    # every trial is one run with its local losses, named by its number in the sweep
    runs = read_runs([str(folder)], "local_loss/1/last")
    assert {*by_method(runs, "local_loss/1/last")} == {f"s, trial {number}" for number in range(8)}
    first = next(run for run in runs if run.folder.parent.name.endswith("_00000"))
    assert first.settings["model.lambda_a"] == shipped["lambda_a"]  # the configuration's own values
    assert len(runs) == 8 and all(run.seed == 0 and run.settings["threads"] == 1 for run in runs)


@pytest.mark.processes
def test_killed_workers_and_drivers_lose_no_epoch(sweep, tmp_path):
    process, ours = sweep.begin(4, "--samples", 3, "--concurrent", 1, max_epochs=40)
    assert listening(ours) == {"127.0.0.1"}
    (worker,) = (p for p in ours if "ImplicitFunc" in p.name())
    worker.kill()
    before = sweep.epoch()
    sweep.wait_for(before + 4)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    status, _, errors = sweep.run("--resume")
    assert status == 0, errors
    trials = sweep.trials
    assert len(trials) == 3 and all(trial["status"] == "done" and trial["epoch"] == "40" for trial in trials)
    runs = read_runs([str(tmp_path / "sweeps/s")], "train/loss")
    assert len(runs) == 3 and all(run.steps("train/loss").tolist() == list(range(480)) for run in runs)
    first = sorted(start for run in runs for start in starts(run.folder, tmp_path))
    assert first[:3] == [0, 0, 0]  # none began anew
    assert len(first) == 5 and all(start >= 4 * 12 and start % 12 == 0 for start in first[3:])
    assert not list(tmp_path.glob("sweeps/s/*/progress/*.ckpt"))
    undisturbed = fit(trials[0]["replay"].rpartition(" ")[2], tmp_path)
    assert undisturbed[-1] == pytest.approx(float(trials[0]["val/accuracy"]), abs=0)


@pytest.mark.processes
def test_two_trials_share_a_gpu_and_outlive_their_node(sweep, tmp_path, monkeypatch):
    """The driver's node has no GPU; that of the other one is shared, until the node dies and a third one joins."""
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # loopback alone
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 0, "include_dashboard": False})
    try:
        node = cluster.add_node(num_cpus=2, num_gpus=1)
        space, config = sweep.space(**LAMBDAS), sweep.config("foof", max_epochs=150)
        process = sweep.start(
            *("--config", config, "--space", space, "--samples", 2, "--address", cluster.address),
            *("--gpus-per-trial", 0.5, "--cpus-per-trial", 1),
        )
        sweep.wait_for(1, trials=2)  # both are training on the one GPU
        cluster.remove_node(node, allow_graceful=False)
        cluster.add_node(num_cpus=2, num_gpus=1)
        assert process.wait(200) == 0, (tmp_path / "log.txt").read_text()
    finally:
        cluster.shutdown()
    trials = sweep.trials
    assert [(trial["status"], trial["epoch"]) for trial in trials] == [("done", "150")] * 2
    runs = read_runs([str(tmp_path / "sweeps/s")], "train/loss")
    assert len(runs) == 2 and all(run.steps("train/loss").tolist() == list(range(1800)) for run in runs)
    for run in runs:
        first, second = sorted(starts(run.folder, tmp_path))
        assert first == 0 and second >= 12 and second % 12 == 0  # it went on from an epoch's end


@pytest.mark.processes
def test_a_terminated_sweep_says_so_leaves_no_process_and_goes_on(sweep, tmp_path):
    process, ours = sweep.begin(2, "--samples", 2, "--concurrent", 1, max_epochs=40)
    process.terminate()
    assert process.wait(60) == 128 + signal.SIGTERM
    said = (tmp_path / "log.txt").read_text()
    assert "tune: terminated; a sweep goes on with --resume, a study with the same command." in said
    assert "SIGTERM received" not in said and "Traceback" not in said  # Ray's stack, and Python's
    _, alive = psutil.wait_procs(ours, timeout=30)
    assert not alive
    status, _, errors = sweep.run("--resume")
    assert status == 0, errors
    assert [(trial["status"], trial["epoch"]) for trial in sweep.trials] == [("done", "40")] * 2


@pytest.mark.timeout(600)
@pytest.mark.processes
def test_a_trial_of_two_workers_is_one_of_one_with_their_batches(sweep, tmp_path):
    process, ours = sweep.begin(
        *(3, "--samples", 1, "--set", "data.batch_size=64", "--workers-per-trial", 2, "--cpus-per-trial", 2),
        *("--metric", "val/loss"),
        **{"max_epochs": 12, "accelerator": "cpu"},
    )
    assert listening(ours) == {"127.0.0.1"}
    next(p for p in ours if "TrainWor" in p.name()).kill()
    assert process.wait(240) == 0, (tmp_path / "log.txt").read_text()
    trials = sweep.trials
    assert [(trial["status"], trial["epoch"]) for trial in trials] == [("done", "12")]
    runs = read_runs([str(tmp_path / "sweeps/s")], "train/loss")
    assert [run.steps("train/loss").tolist() for run in runs] == [list(range(144))]
    first, second = sorted(starts(runs[0].folder, tmp_path))
    assert (
        first == 0 and second >= 24 and second % 12 == 0
    )  # from an epoch's end; the last one may not have been stored
    best = tmp_path / "sweeps/s/best.yaml"
    together, said = weights(best, tmp_path / "two")
    alone, expected = weights(best, tmp_path / "one", "--trainer.devices=1", "--data.batch_size=128")
    assert said == expected and said.count("train loss") == 1
    for name, weight in alone.items():
        close(together[name], weight, 1e-5)
    (run,) = read_runs([str(tmp_path / "two")], "val/loss")
    assert run.values("val/loss")[-1] == pytest.approx(float(trials[0]["val/loss"]), abs=0)


@pytest.mark.processes
def test_losses_that_are_not_finite_trials_that_fail_and_several_seeds(sweep, tmp_path):
    space = sweep.space(
        **{
            "model.optimizer.lr": {"choice": [0.001, 1e36, 0.002]},
            "model.network.in_features": {"choice": [65], "when": {"model.optimizer.lr": 0.002}},
        }
    )
    status, output, errors = sweep.run(
        *("--config", sweep.config("adam", max_epochs=2), "--space", space, "--samples", 6, "--search", "random"),
        *("--metric", "val/loss", "--seeds", 3, "--max-failures", 0),
    )
    by_status = {}
    for trial in sweep.trials:
        by_status.setdefault(trial["status"], []).append(trial)
    assert status == 1 and len(by_status["failed"]) >= 1
    for trial in by_status["failed"]:
        assert trial["model.network.in_features"] == "65" and trial["error"].startswith("MLP(in_features=65)")
        assert f"trial {int(trial['trial'].rpartition('_')[2])} failed for good: " in errors
    rates = {float(trial["model.optimizer.lr"]): trial for trial in by_status["done"]}
    assert float(rates[1e36]["val/loss"]) == math.inf and rates[0.001]["epoch"] == "6"
    folder = tmp_path / "sweeps/s" / rates[0.001]["trial"]
    losses = sorted(run.values("val/loss")[-1] for run in read_runs([str(folder)], "val/loss"))
    assert len(losses) == 3 and float(rates[0.001]["val/loss"]) == pytest.approx(losses[1], abs=1e-6)
    assert "best: val/loss" in output and "lr=0.001" in output


def test_a_trial_whose_end_tune_has_not_heard_of_says_it_again(tmp_path, monkeypatch):
    from locoprop_lightning.tune import trial

    said = {"val/loss": 0.5, "epoch": 6, "seeds_done": 2}
    state = {"done": [{"val/loss": 0.25}, {"val/loss": 0.75}], "said": said, "weights": None}
    (tmp_path / trial.STATE).write_text(json.dumps(state))
    heard = []
    monkeypatch.setattr(trial.tune, "report", lambda metrics, checkpoint: heard.append((metrics, checkpoint)))
    work = trial.Work("none.yaml", [0, 1], 1, str(tmp_path), "val/loss", math.inf, False, 1, 1, 0)
    trial.run_seeds({}, work, tmp_path, trial.Progress(tmp_path))
    assert heard == [(said, None)]


@pytest.mark.parametrize(
    ("statuses", "options", "expected"),
    [
        (["done", "done"], [], False),
        (["done"], [], True),
        (["done", "stopped early"], [], True),
        (["done", "stopped early"], ["--scheduler", "asha"], False),
        (["done"], ["--time-budget", "9"], False),
    ],
)
def test_an_interrupted_sweep_says_so(statuses, options, expected):
    from locoprop_lightning.tune.__main__ import make_parser, unfinished

    assert unfinished(statuses, make_parser().parse_args(["--samples", "2", *options])) is expected


def test_what_a_resumed_sweep_refuses(tmp_path):
    from locoprop_lightning.tune.__main__ import kept, make_parser

    folder = tmp_path / "s"
    folder.mkdir()
    (folder / "options.json").write_text('{"samples": 5, "name": "s"}')
    arguments = ["--storage", str(tmp_path), "--name", "s", "--resume"]
    with pytest.raises(UserError, match="never began; start it again without --resume"):
        kept(make_parser().parse_args(arguments))
    (folder / "tuner.pkl").touch()
    with pytest.raises(UserError, match="leave out --time-budget"):
        kept(make_parser().parse_args([*arguments, "--time-budget", "9"]))


def test_a_sweep_of_an_older_version_resumes_with_the_defaults_of_new_options(tmp_path):
    from locoprop_lightning.tune.__main__ import kept, make_parser

    (tmp_path / "old").mkdir()
    (tmp_path / "old/tuner.pkl").touch()
    (tmp_path / "old/options.json").write_text('{"samples": 5, "name": "old"}')
    options = kept(make_parser().parse_args(["--storage", str(tmp_path), "--name", "old", "--resume"]))
    assert (options.samples, options.workers_per_trial, options.resume) == (5, 1, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--metric", "val/acuracy"], "--metric val/acuracy: is not logged after an epoch"),
        (["--set", "a"], "--set a: must be KEY=VALUE, such as data.validation=5000."),
        (
            ["--set", "model.lambda_a=1"],
            "--set model.lambda_a=1: is searched by the space; take it out of one of the two.",
        ),
        (["--samples", "0"], "samples=0: must be at least 1."),
        (["--set", "trainer.check_val_every_n_epoch=2"], "trainer.check_val_every_n_epoch=2: val/accuracy is judged"),
        (["--workers-per-trial", "2", "--scheduler", "pbt"], "--scheduler pbt: hands checkpoints from trial to trial"),
        (
            ["--workers-per-trial", "2", "--gpus-per-trial", "1"],
            "--gpus-per-trial 1: each of the 2 workers needs whole",
        ),
        (
            ["--workers-per-trial", "2", "--set", "trainer.strategy=ddp_spawn"],
            "trainer.strategy=ddp_spawn: trials of several workers take 'ddp' alone.",
        ),
        (["--config", "none.yaml"], "--config none.yaml: there is no such file"),
        (["--resume"], "holds no sweep; look at --storage and --name."),
        (["--scheduler", "pbt", "--space", "when.yaml"], "--scheduler pbt: changes all settings at any time"),
    ],
)
def test_mistakes_end_before_anything_starts(tmp_path, monkeypatch, capsys, arguments, message):
    from locoprop_lightning.tune.__main__ import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["tune"])
    Path("space.yaml").write_text(yaml.safe_dump(LAMBDAS))
    conditional = {
        "model.lambda_a": LAMBDAS["model.lambda_a"],
        "model.lambda_r": {"choice": [1], "when": {"model.lambda_a": 1}},
    }
    Path("when.yaml").write_text(yaml.safe_dump(conditional))
    started = []
    monkeypatch.setattr("ray.init", lambda **options: started.append(options))
    with pytest.raises(SystemExit) as stopped:
        main(
            [
                "--config",
                str(DIGITS / "foof.yaml"),
                "--space",
                "space.yaml",
                "--storage",
                "s",
                "--name",
                "n",
                *arguments,
            ]
        )
    assert stopped.value.code == 2 and not started
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "values", "message"),
    [
        ("model.lamda_a", {"uniform": [1, 2]}, "has no setting 'lamda_a'; "),
        ("model.lambda_a", {"uniform": [-1, 2]}, "space: model.lambda_a=-1.0: lambda_a=-1.0: must be above 0."),
        ("model.objective", {"choice": ["squared", "cubed"]}, "must be one of 'matching', 'squared', not cubed"),
        ("data.batch_sise", {"integers": [1, 2]}, "near names are data.batch_size"),
    ],
)
def test_spaces_are_held_against_the_configuration(tmp_path, monkeypatch, capsys, key, values, message):
    from locoprop_lightning.tune.__main__ import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["tune"])
    Path("space.yaml").write_text(yaml.safe_dump({key: values}))
    with pytest.raises(SystemExit) as stopped:
        main(["--config", str(DIGITS / "foof.yaml"), "--space", "space.yaml", "--storage", "s"])
    assert stopped.value.code == 2
    errors = capsys.readouterr().err
    assert message in errors and ("lamda" not in key or "near names are model.lambda_a" in errors)
    assert not Path("s").exists()


METHODS = sorted(path.stem for path in (ROOT / "configs" / "fashion_mnist").glob("*.yaml"))


def test_every_method_has_a_space():
    assert sorted(path.stem for path in (ROOT / "tune" / "spaces").glob("*.yaml")) == METHODS


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_spaces_fit_their_methods(method, monkeypatch, fashion_mnist):
    from locoprop_lightning.tune.check import check, epochs_of
    from locoprop_lightning.tune.space import Space

    monkeypatch.setattr("sys.argv", ["tune"])
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # Lightning calls a deprecated method of its
    space = Space.load(ROOT / "tune" / "spaces" / f"{method}.yaml")
    config = ROOT / "configs" / "fashion_mnist" / f"{method}.yaml"
    settings = check(config, space, "val/accuracy", {"data.validation": 5000}, 1)
    assert epochs_of(settings) == 15 and settings["data.validation"] == 5000
    assert space.start(settings).keys() == space.dimensions.keys()  # the shipped values are tried first
