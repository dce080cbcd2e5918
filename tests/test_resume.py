"""A run that was stopped and goes on ends as one that was not, bit for bit."""

import gc
import os
import pty
import random
import re
import signal
import sys
import weakref

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger

from locoprop_lightning import BackpropModule
from locoprop_lightning.callbacks import FitSummary, RunCheckpoints
from locoprop_lightning.cli import LocoPropCLI, main
from locoprop_lightning.data import Digits
from locoprop_lightning.errors import UserError
from locoprop_lightning.networks import MLP
from locoprop_lightning.tasks import Classification
from tests.resuming import differences, read
from tests.support import ROOT, flat, same

DIGITS = sorted((ROOT / "configs" / "digits").glob("*.yaml"))
QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}


class Memory(Logger):
    """Keeps what is logged, by step and name."""

    name, version = "run", 0

    def __init__(self, folder):
        super().__init__()
        self.folder, self.rows = folder, {}

    @property
    def save_dir(self):
        return str(self.folder)

    def log_metrics(self, metrics, step=None):
        for name, value in metrics.items():
            self.rows.setdefault((step, name), []).append(value)

    def log_hyperparams(self, *arguments, **settings):
        pass


class KeepAll(RunCheckpoints):
    """Writes a checkpoint at every step, and removes none."""

    def __init__(self):
        super().__init__(None, 1)

    def _save(self, trainer):
        self._before = self.last = None
        return super()._save(trainer)


class Noisy(BackpropModule):
    """Draws from every generator in each step."""

    def training_step(self, batch, batch_idx):
        scale = 1 + 0.1 * random.gauss(0, 1) + 0.1 * np.random.standard_normal() + 0.1 * random.random()
        return super().training_step((batch[0] * scale, batch[1]), batch_idx)


class SignalAt(Callback):
    """Sends this process a signal within a step."""

    def __init__(self, number, step):
        self.number, self.step = number, step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), self.number)


def seed_all(seed):
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def noisy():
    torch.manual_seed(3)
    network = MLP(64, 16, 1)
    network.append(torch.nn.Dropout(0.2))
    return Noisy(network, Classification(), lambda p: torch.optim.Adam(p))


def fit(folder, callbacks, checkpoint=None, module=None, **settings):
    """A fit of five steps an epoch; gives its module and what was logged."""
    logger, module = Memory(folder), module or noisy()
    trainer = Trainer(logger=logger, callbacks=callbacks, log_every_n_steps=1, **QUIET, **settings)
    seed_all(5 if checkpoint is None else 6)
    trainer.fit(module, Digits(batch_size=300, seed=0), ckpt_path=checkpoint, weights_only=True)
    return module, logger.rows


def steps(folder):
    return sorted(int(path.stem[5:]) for path in folder.rglob("*.ckpt"))


@pytest.mark.parametrize(
    "settings",
    [
        {"max_epochs": 3},
        {"max_epochs": 3, "limit_val_batches": 0},
        {"max_epochs": 3, "val_check_interval": 2},
        {"max_epochs": -1, "max_steps": 13},
        {"max_epochs": -1, "max_steps": 13, "limit_val_batches": 0},
        {"max_epochs": -1, "max_steps": 10, "val_check_interval": 2},
        {"max_epochs": -1, "max_steps": 8, "limit_train_batches": 3},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_from_every_step_weights_and_logs_are_those_of_the_undisturbed_run(tmp_path, settings, capsys):
    whole, logged = fit(tmp_path / "whole", [KeepAll()], **settings)
    last = max(steps(tmp_path / "whole"))
    assert steps(tmp_path / "whole") == list(range(last + 1))
    plain, _ = fit(tmp_path / "plain", [], enable_checkpointing=False, **settings)
    assert same(plain.network.state_dict(), whole.network.state_dict())
    for step in range(last):
        folder = tmp_path / f"from{step}"
        path = next((tmp_path / "whole").rglob(f"step={step}.ckpt"))
        resumed, rows = fit(folder, [KeepAll()], path, **settings)
        assert same(resumed.network.state_dict(), whole.network.state_dict()), step
        assert rows == {key: value for key, value in logged.items() if key in rows}, step
        assert {key for key in logged if key[0] >= step} <= rows.keys(), step
        assert steps(folder) == list(range(step + 1, last + 1))
        for other in steps(folder):  # what a second resume would start from
            a, b = (read(next(of.rglob(f"step={other}.ckpt"))) for of in (folder, tmp_path / "whole"))
            assert same(a, b), (step, other)


@pytest.mark.parametrize("path", DIGITS, ids=lambda path: path.stem)
def test_every_configuration_goes_on_within_an_epoch(path, folder):
    def run(name, checkpoint=None):
        settings = {
            "trainer.max_epochs": "3",
            "trainer.limit_train_batches": "4",
            "trainer.limit_val_batches": "0",
            "trainer.logger": "false",
            "trainer.accelerator": "cpu",
            "trainer.enable_model_summary": "false",
            "trainer.default_root_dir": str(folder / name),
        }
        cli = LocoPropCLI.build(path, settings, without=(FitSummary,))
        cli.trainer.callbacks.append(RunCheckpoints(minutes=None, every_n_steps=5))
        cli.trainer.fit(cli.model, cli.datamodule, ckpt_path=checkpoint, weights_only=True)

    run("whole")
    assert steps(folder / "whole") == [10, 12]  # the last two are kept
    run("resumed", next((folder / "whole").rglob("step=10.ckpt")))
    whole, resumed = (flat(read(next((folder / name).rglob("step=12.ckpt")))) for name in ("whole", "resumed"))
    assert whole.keys() == resumed.keys()
    assert [name for name, value in whole.items() if not torch.equal(value, resumed[name])] == []


def options(*more):
    network = {"in_features": 64, "hidden_features": 16, "hidden_layers": 1}
    of_network = [x for name, value in network.items() for x in (f"--model.network.{name}", str(value))]
    return [
        *("fit", "--model", "BackpropModule", "--model.network", "locoprop_lightning.networks.MLP", *of_network),
        *("--model.task", "Classification", "--model.optimizer", "Adam", "--data", "Digits"),
        *("--data.batch_size", "300", "--trainer.max_epochs", "3", "--trainer.accelerator", "cpu"),
        *("--trainer.enable_progress_bar", "false", "--trainer.log_every_n_steps", "5", *more),
    ]


def at(number, step):
    name = "--trainer.callbacks"
    return [f"{name}+=tests.test_resume.SignalAt", f"{name}.number={number}", f"{name}.step={step}"]


@pytest.fixture
def in_a_terminal():
    """As a fit is that nohup has not started, whatever started the tests."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("in_a_terminal")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_batch_and_the_summary_says_how_to_go_on(folder, capsys, number, status):
    main(options("--trainer.logger.class_path=TensorBoardLogger", "--trainer.logger.save_dir=whole"))
    logs = ["--trainer.logger.class_path=TensorBoardLogger", "--trainer.logger.save_dir=runs"]
    capsys.readouterr()
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as stopped:
        main(options(*logs, *at(int(number), 6)))
    assert stopped.value.code == status and signal.getsignal(number) == before
    said = capsys.readouterr().out
    path = next((folder / "runs").rglob("step=7.ckpt")).relative_to(folder)
    assert f"  checkpoint           {path}\n" in said and f" --ckpt_path {path}\n" in said and "train loss" in said
    assert "  go on                locoprop fit --model BackpropModule " in said
    main(options(*logs, "--ckpt_path", "last"))
    whole, resumed = (read(next((folder / name).rglob("step=15.ckpt"))) for name in ("whole", "runs"))
    assert same(whole, resumed)


@pytest.mark.usefixtures("in_a_terminal")
def test_a_closed_terminal_leaves_a_checkpoint(folder):
    """What a fit says on the way to it can no longer be written there."""
    arguments = options("--trainer.logger=false", "--trainer.max_epochs=100000", "--trainer.enable_progress_bar=true")
    process, terminal = pty.fork()
    if process == 0:
        os.execv(sys.executable, [sys.executable, "-m", "locoprop_lightning", *arguments])
    said = b""
    while b"Epoch" not in said:  # with the bar, whose row is drawn again and again
        said += os.read(terminal, 1000)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 143
    assert max(int(path.stem.removeprefix("step=")) for path in folder.rglob("step=*.ckpt")) > 0


def test_a_run_under_nohup_outlives_its_terminal(tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        fit(tmp_path, [RunCheckpoints(None), SignalAt(signal.SIGHUP, 1)], max_epochs=1)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert steps(tmp_path) == [0, 5]


def test_sigusr1_asks_for_a_checkpoint_and_the_run_goes_on(tmp_path):
    fit(tmp_path, [RunCheckpoints(None), SignalAt(signal.SIGUSR1, 6)], max_epochs=3)
    assert steps(tmp_path) == [7, 15]
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL


def test_a_run_that_has_ended_is_held_by_nothing(tmp_path):
    before = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGINT)}
    module, _ = fit(tmp_path, [RunCheckpoints()], max_epochs=1)
    assert {one: signal.getsignal(one) for one in before} == before
    held = weakref.ref(module)
    del module
    gc.collect()
    assert held() is None


def test_the_first_checkpoint_is_written_before_the_first_step(tmp_path):
    with pytest.raises(ValueError, match="first"):
        fit(tmp_path, [RunCheckpoints(), Failing()], max_epochs=1)
    assert steps(tmp_path) == [0]


class Failing(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        raise ValueError("the first batch")


def test_a_checkpoint_within_an_epoch_is_refused_with_another_order(tmp_path):
    fit(tmp_path, [KeepAll()], max_epochs=1)
    within, ended = (next(tmp_path.rglob(f"step={step}.ckpt")) for step in (3, 5))
    for settings, said in (
        ({"batch_size": 200}, "batch_size=300, but it is 200"),
        ({"seed": 1}, "seed=0, but it is 1"),
    ):
        data = Digits(**({"batch_size": 300, "seed": 0} | settings))
        trainer = Trainer(logger=False, enable_checkpointing=False, max_epochs=2, **QUIET)
        with pytest.raises(UserError, match=f"within an epoch with data.{said} now; resume with"):
            trainer.fit(noisy(), data, ckpt_path=within, weights_only=True)
        trainer = Trainer(logger=False, enable_checkpointing=False, max_epochs=2, **QUIET)
        trainer.fit(noisy(), data, ckpt_path=ended, weights_only=True)


@pytest.mark.parametrize("few", [{"max_epochs": 2}, {"max_epochs": -1, "max_steps": 7}], ids=str)
def test_a_run_that_has_ended_goes_on_with_more_epochs_or_steps(tmp_path, few):
    many = {name: value if value == -1 else value + 6 for name, value in few.items()}
    whole, _ = fit(tmp_path / "whole", [], enable_checkpointing=False, **many)
    fit(tmp_path / "short", [RunCheckpoints(None)], **few)
    last = max(tmp_path.rglob("*.ckpt"), key=os.path.getmtime)
    longer, _ = fit(tmp_path / "long", [RunCheckpoints(None)], last, **many)
    assert same(whole.network.state_dict(), longer.network.state_dict())


@pytest.mark.parametrize("step", [10, 15])
def test_a_disk_that_fills_up_costs_a_checkpoint_and_not_the_run(tmp_path, monkeypatch, capsys, step):
    """From Python the trained module is at hand: the last one is told of as well, once, and `lost` says it."""
    full = RunCheckpoints(None, 5)
    save = Trainer.save_checkpoint

    def refuse(trainer, path, weights_only=None):
        if trainer.global_step == step:
            path.write_text("half")
            raise OSError(28, "No space left on device")
        save(trainer, path, weights_only)

    monkeypatch.setattr(Trainer, "save_checkpoint", refuse)
    fit(tmp_path, [full], max_epochs=3)
    said = capsys.readouterr().err
    text = rf"checkpoints: (\S*step={step}.ckpt cannot be written \(No space left on device\); the last whole one.*)\n"
    (told,) = re.findall(text, said)
    assert full.lost == (told if step == 15 else None)
    assert steps(tmp_path) == sorted({5, 10, 15} - {step}) and not list(tmp_path.rglob("*.new"))


def test_a_state_that_torch_does_not_read_back_leaves_weights_alone(tmp_path, capsys):
    class Kept(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            self.state[self.param_groups[0]["params"][0]]["kept"] = object()

    module = BackpropModule(MLP(64, 16, 1), Classification(), lambda p: Kept(p, lr=0.1))
    fit(tmp_path, [RunCheckpoints(None, 5)], module=module, max_epochs=1)
    assert capsys.readouterr().err.count("Kept keeps objects in its state") == 1
    content = torch.load(next(tmp_path.rglob("step=5.ckpt")), weights_only=True)
    assert "optimizer_states" not in content


@pytest.mark.processes
def test_killed_three_times_it_ends_as_if_nothing_had_been(tmp_path):
    """`tests/soak/test_killed.py` has all configurations, on one process and on two."""
    more = ["--trainer.max_epochs=30", "--checkpoints.every_n_steps=3"]
    other, _ = differences("configs/digits/locoprop_s_whitened.yaml", tmp_path, more, 1)
    assert other == []
