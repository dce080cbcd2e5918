"""A run that was stopped and goes on ends as one that was not, bit for bit."""

import os

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.loggers import Logger
from torch.utils._pytree import tree_flatten

from locoprop_lightning import BackpropModule
from locoprop_lightning.callbacks import RunCheckpoints
from locoprop_lightning.data import Digits
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
        import random

        import numpy as np

        scale = 1 + 0.1 * random.gauss(0, 1) + 0.1 * np.random.standard_normal() + 0.1 * random.random()
        return super().training_step((batch[0] * scale, batch[1]), batch_idx)


class SignalAt(Callback):
    """Sends this process a signal within a step."""

    def __init__(self, number, step):
        self.number, self.step = number, step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), self.number)


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
