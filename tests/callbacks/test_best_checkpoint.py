"""The best weights are those of the validation that was best, over a resume too."""

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from locoprop_lightning import BackpropModule, UserError
from locoprop_lightning.callbacks import BestCheckpoint, RunCheckpoints
from locoprop_lightning.data import Digits
from locoprop_lightning.networks import MLP
from locoprop_lightning.tasks import Classification, Reconstruction

QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False, "logger": False}


class Says(BackpropModule):
    """Validates to given values, one an epoch."""

    def __init__(self, values, name="val/accuracy", task=None):
        network = MLP(64, 8, 1, 64 if task else 10)
        super().__init__(network, task or Classification(), lambda p: torch.optim.SGD(p, lr=0.1))
        self.values, self.told = values, name

    def validation_step(self, batch, batch_idx):
        pass

    def on_validation_epoch_end(self):
        self.log(self.told, self.values[self.current_epoch])


class Stop(Callback):
    """Ends a fit after an epoch as an error would."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch == self.epoch:
            raise KeyboardInterrupt


def fit(folder, module, *callbacks, best=None, checkpoint=None, **settings):
    best = BestCheckpoint() if best is None else best
    made = Trainer(
        default_root_dir=folder,
        callbacks=[best, RunCheckpoints(None, 1), *callbacks],
        **QUIET | {"max_epochs": 4, **settings},
    )
    made.fit(module, Digits(batch_size=750), ckpt_path=checkpoint, weights_only=True)
    return best


def kept(folder):
    return torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)


@pytest.mark.parametrize(
    ("name", "values", "epoch"),
    [
        ("val/accuracy", [0.5, 0.7, 0.6, 0.7], 2),
        ("val/loss", [0.5, 0.7, 0.4, 0.6], 3),
        ("val/loss", [float("nan"), float("inf"), 0.9, 1.0], 3),
        ("val/loss", [-3.0, float("-inf"), 0.9, 1.0], 1),
    ],
)
def test_the_best_is_that_of_the_best_validation(tmp_path, name, values, epoch, capsys):
    best = fit(tmp_path, Says(values, name))
    state = kept(tmp_path)
    assert state["global_step"] == best.step == 2 * epoch and "optimizer_states" not in state
    assert [path.name for path in (tmp_path / "checkpoints").glob("best*")] == ["best.ckpt"]
    assert f"({name} {values[epoch - 1]:.4f} at step {2 * epoch})" in capsys.readouterr().out


def test_a_loss_is_best_where_it_is_lowest_and_an_error_too(tmp_path):
    best = fit(tmp_path, Says([0.5, 0.3, 0.4, 0.6], "val/error"), best=BestCheckpoint("val/error"))
    assert best.step == 4
    module = Says([0.5, 0.3, 0.4, 0.6], "val/loss", Reconstruction())
    assert fit(tmp_path / "other", module).step == 4


def test_nothing_is_kept_where_nothing_is_asked_for(tmp_path):
    assert fit(tmp_path / "a", Says([1.0] * 4), best=BestCheckpoint(None)).path is None
    assert fit(tmp_path / "b", Says([1.0] * 4), limit_val_batches=0).path is None
    assert fit(tmp_path / "c", Says([1.0] * 4), fast_dev_run=True).path is None
    assert not list(tmp_path.rglob("best.ckpt"))


def test_a_metric_that_is_not_logged_is_named_before_the_first_step(tmp_path):
    module = Says([1.0] * 4)
    with pytest.raises(
        UserError, match="best.monitor=val/f1: validation does not log it; take one of val/accuracy, or"
    ):
        fit(tmp_path, module, best=BestCheckpoint("val/f1"))
    assert module.trainer.global_step == 0


@pytest.mark.parametrize("same_folder", [True, False])
def test_a_resumed_run_knows_what_was_best(tmp_path, same_folder):
    values = [0.5, 0.9, 0.6, 0.7]
    with pytest.raises(SystemExit):  # as Lightning ends an interrupted fit
        fit(tmp_path, Says(values), Stop(2))
    assert kept(tmp_path)["global_step"] == 4
    checkpoint = max((tmp_path / "checkpoints").glob("step=*.ckpt"), key=lambda path: int(path.stem[5:]))
    folder = tmp_path if same_folder else tmp_path / "next"
    best = fit(folder, Says(values), checkpoint=str(checkpoint))
    assert (best.value, best.step) == (pytest.approx(0.9), 4) and kept(folder)["global_step"] == 4
    anew = fit(tmp_path / "anew", Says([0.1] * 4), best=best)
    assert anew.value == pytest.approx(0.1)


class Plain(LightningModule):
    """A module of somebody else."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(64, 10)

    def training_step(self, batch, batch_idx):
        return torch.nn.functional.cross_entropy(self.layer(batch[0].flatten(1)), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", 3.0 + self.current_epoch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_any_module_may_have_it(tmp_path):
    assert fit(tmp_path, Plain()).step == 2


def test_a_disk_that_is_full_costs_the_best_and_not_the_run(tmp_path, monkeypatch, capsys):
    save = Trainer.save_checkpoint

    def full(trainer, path, **arguments):
        if "best" in str(path):
            raise OSError(28, "No space left on device")
        save(trainer, path, **arguments)

    monkeypatch.setattr(Trainer, "save_checkpoint", full)
    best = fit(tmp_path, Says([0.5] * 4))
    assert best.path is None and not list(tmp_path.rglob("best*"))
    assert "best.ckpt cannot be written (No space left on device); make room there." in capsys.readouterr().err
