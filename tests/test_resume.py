"""A run that was stopped and goes on ends as one that was not, bit for bit."""

import os
import random
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.loggers import Logger
from torch.utils._pytree import tree_flatten

from locoprop_lightning import BackpropModule
from locoprop_lightning.callbacks import RunCheckpoints
from locoprop_lightning.checkpoint_files import checked, last_of
from locoprop_lightning.cli import main
from locoprop_lightning.data import Digits
from locoprop_lightning.errors import UserError
from locoprop_lightning.networks import MLP
from locoprop_lightning.tasks import Classification
from tests.support import ROOT, same

DIGITS = sorted((ROOT / "configs" / "digits").glob("*.yaml"))
RESUMABLE = [path for path in DIGITS if path.stem != "shampoo"]  # whose state torch does not read back safely
PARTS = ("state_dict", "optimizer_states", "lr_schedulers", "local_layers", "random_state")
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


def noisy():
    torch.manual_seed(3)
    network = MLP(64, 16, 1)
    network.append(torch.nn.Dropout(0.2))
    return Noisy(network, Classification(), lambda p: torch.optim.Adam(p))


def fit(folder, callbacks, checkpoint=None, module=None, **settings):
    """A fit of five steps an epoch; gives its module and what was logged."""
    logger, module = Memory(folder), module or noisy()
    trainer = Trainer(logger=logger, callbacks=callbacks, log_every_n_steps=1, **QUIET, **settings)
    seed_everything(5, verbose=False)
    trainer.fit(module, Digits(batch_size=300, seed=0), ckpt_path=checkpoint, weights_only=True)
    return module, logger.rows


def alike(a, b):
    """Whether two parts of checkpoints are the same, bit for bit."""
    (own, shape), (others, other_shape) = tree_flatten(a), tree_flatten(b)
    equal = (torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in zip(own, others, strict=False))
    return shape == other_shape and all(equal)


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
        assert rows == {key: rows.get(key) and value for key, value in logged.items() if key in rows}, step
        assert {key for key in logged if key[0] >= step} <= rows.keys(), step
        assert steps(folder) == list(range(step + 1, last + 1))
        for other in range(step + 1, last + 1):  # a second resume starts from the same as the first
            a, b = (
                torch.load(next(f.rglob(f"step={other}.ckpt")), weights_only=True) for f in (folder, tmp_path / "whole")
            )
            assert all(alike(a[part], b[part]) for part in PARTS if part in a), (step, other)
            assert a["loops"] == b["loops"] or settings["max_epochs"] == -1


def command(config, folder, *more):
    """Arguments of a fit on the digits that writes into a folder."""
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.limit_val_batches=0", "--trainer.accelerator=cpu"]
    name = ["--trainer.logger.name=run", f"--trainer.logger.save_dir={folder}"]
    return ["fit", "--config", str(ROOT / f"configs/digits/{config}.yaml"), *quiet, *name, *map(str, more)]


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("config", [path.stem for path in RESUMABLE])
def test_every_method_goes_on_within_an_epoch(tmp_path, config):
    settings = ["--trainer.max_steps=6", "--checkpoints.every_n_steps=3", "--trainer.log_every_n_steps=1"]
    main(command(config, tmp_path / "whole", *settings))
    middle, end = sorted((tmp_path / "whole").rglob("*.ckpt"))
    assert (middle.name, end.name) == ("step=3.ckpt", "step=6.ckpt")
    main(command(config, tmp_path / "resumed", *settings, "--ckpt_path", middle))
    (again,) = (tmp_path / "resumed").rglob("*.ckpt")
    a, b = (torch.load(path, weights_only=True) for path in (again, end))
    assert all(alike(a[part], b[part]) for part in PARTS if part in b)


@pytest.mark.usefixtures("folder")
def test_state_that_torch_does_not_read_safely_is_not_gone_on_from(tmp_path, capsys):
    main(command("shampoo", tmp_path, "--trainer.max_steps=25"))
    assert "ScalableShampoo keeps objects in its state" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(
            command("shampoo", tmp_path, "--trainer.max_steps=26", "--ckpt_path", next(tmp_path.rglob("step=25.ckpt")))
        )
    assert "holds weights alone, from which no fit can go on" in capsys.readouterr().err


@pytest.fixture
def checkpoints(tmp_path):
    """Two checkpoints, the older one first."""
    paths = [tmp_path / f"checkpoints/step={step}.ckpt" for step in (1, 2)]
    paths[0].parent.mkdir()
    for age, path in enumerate(paths):
        torch.save({"state_dict": {"w": torch.ones(300)}, "global_step": age, "optimizer_states": []}, path)
        os.utime(path, (age, age))
    return paths


def truncate(path):
    path.write_bytes(path.read_bytes()[:-200])


def flip(path):
    content = bytearray(path.read_bytes())
    at = content.index(torch.ones(3).numpy().tobytes())
    content[at] ^= 1
    path.write_bytes(content)


def foreign(path):
    torch.save({"state_dict": {}}, path)


def objects(path):
    torch.save({"state_dict": {}, "global_step": 1, "optimizer_states": [Memory]}, path)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (truncate, "is not a checkpoint that torch has saved"),
        (flip, "is damaged (the checksum of its part"),
        (foreign, "is no checkpoint of a run: it has no state_dict and global_step"),
        (objects, "holds what torch does not read safely, such as objects"),
    ],
)
def test_what_is_no_whole_checkpoint_is_refused_and_the_last_whole_one_named(checkpoints, damage, reason):
    older, newer = checkpoints
    assert last_of(older.parent, "*.ckpt") == (newer, []) and checked(newer, resume=True) == newer
    when = newer.stat()
    damage(newer)
    os.utime(newer, (when.st_atime, when.st_mtime))
    with pytest.raises(UserError, match=re.escape(f"ckpt_path={newer}: {reason}")) as refused:
        checked(newer, resume=True)
    assert str(refused.value).endswith(f"; the last whole one beside it is {older}.")
    path, (passed,) = last_of(older.parent, "*.ckpt")
    assert path == older and passed.startswith(f"{newer} {reason}")


@pytest.mark.usefixtures("folder")
def test_the_last_checkpoint_is_found_or_missed_in_a_sentence(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(command("foof", tmp_path, "--ckpt_path=last"))
    assert stopped.value.code == 2 and not list(tmp_path.iterdir())
    assert "ckpt_path=last: there is no whole checkpoint at " in capsys.readouterr().err
    main(command("foof", tmp_path, "--trainer.max_steps=2"))
    main(command("foof", tmp_path, "--trainer.max_steps=4", "--ckpt_path=last"))
    assert sorted(path.name for path in tmp_path.rglob("version_1/checkpoints/*")) == ["step=4.ckpt"]
    main(command("foof", tmp_path, "--trainer.max_steps=1"))
    assert "--ckpt_path last would go on from " in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(command("foof", tmp_path, "--trainer.max_steps=3", "--trainer.logger.version=1"))
    assert "holds a run already; go on with it by --ckpt_path last, or name another folder" in capsys.readouterr().err


def start(arguments):
    """A fit in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "locoprop_lightning", *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(folder, step, process):
    """Waits for a checkpoint of a step, or a later one."""
    end = time.monotonic() + 120
    while max(steps(folder), default=-1) < step:
        assert time.monotonic() < end and process.poll() is None, process.communicate()
        time.sleep(0.01)


@pytest.mark.usefixtures("folder")
@pytest.mark.slow
def test_a_run_that_is_killed_three_times_ends_as_an_undisturbed_one(tmp_path):
    settings = ["--trainer.max_steps=120", "--trainer.max_epochs=-1", "--checkpoints.every_n_steps=1"]
    main(command("locoprop_s_whitened", tmp_path / "whole", *settings))
    for kills, step in enumerate((3, 29, 76)):
        more = ["--ckpt_path=last"] if kills else []
        process = start(command("locoprop_s_whitened", tmp_path / "killed", *settings, *more))
        wait_for(tmp_path / "killed", step, process)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    main(command("locoprop_s_whitened", tmp_path / "killed", *settings, "--ckpt_path=last"))
    a, b = (
        torch.load(next(tmp_path.rglob(f"{run}/**/step=120.ckpt")), weights_only=True) for run in ("whole", "killed")
    )
    assert all(alike(a[part], b[part]) for part in PARTS if part in a)


@pytest.mark.slow
def test_a_terminated_fit_leaves_its_checkpoint_and_says_how_to_go_on(tmp_path):
    settings = ["--trainer.max_steps=100000", "--trainer.max_epochs=-1"]
    process = start(command("foof_rms", tmp_path, *settings))
    wait_for(tmp_path, 0, process)
    process.send_signal(signal.SIGUSR1)  # asks for one and goes on
    wait_for(tmp_path, 1, process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    path = max(tmp_path.rglob("*.ckpt"), key=lambda path: int(path.stem[5:]))
    assert process.returncode == 143 and "Summary" in output and "Traceback" not in output
    assert f"--ckpt_path {path}" in output and "go on with" in output
