"""What Lightning offers a run: it works with both modules, or is refused in one sentence."""

import math

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    BatchSizeFinder,
    DeviceStatsMonitor,
    EarlyStopping,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
    ModelPruning,
    ModelSummary,
    RichModelSummary,
    RichProgressBar,
    StochasticWeightAveraging,
    Timer,
)
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from locoprop_lightning import BackpropModule, LocoPropModule
from locoprop_lightning.cli import main
from locoprop_lightning.data import Digits
from locoprop_lightning.errors import UserError
from locoprop_lightning.networks import MLP
from locoprop_lightning.optimizers import LinearDecay
from locoprop_lightning.oracles import RMSOracle
from locoprop_lightning.solvers import ClosedForm
from locoprop_lightning.tasks import Classification

QUIET = dict(accelerator="cpu", enable_progress_bar=False, enable_model_summary=False, logger=False)
STEPS = 5  # of an epoch, of batches of 300
pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")


class Unfreeze(BaseFinetuning):
    """Freezes the hidden layer for an epoch."""

    def freeze_before_training(self, pl_module):
        self.freeze(pl_module.network[1])

    def finetune_function(self, pl_module, epoch, optimizer):
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.network[1], optimizer)


def module(kind):
    seed_everything(0, verbose=False)
    network = MLP(64, 16, 1)
    if kind == "backprop":
        return BackpropModule(network, Classification(), lambda p: torch.optim.Adam(p, lr=0.01), LinearDecay)
    settings = dict(objective="squared", damping="relative", lr_scheduler=LinearDecay)
    return LocoPropModule(network, Classification(), ClosedForm(), 0.1, 0.1, oracle=RMSOracle(), **settings)


def fit(kind, folder, options):
    options = options(folder) if callable(options) else options
    made = module(kind)
    defaults = QUIET | dict(enable_checkpointing=False, max_epochs=2, default_root_dir=folder, log_every_n_steps=1)
    trainer = Trainer(**{k: v for k, v in (defaults | options).items() if v is not None})
    trainer.fit(made, datamodule=Digits(batch_size=300))
    return made, trainer


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return {kind: fit(kind, tmp_path_factory.mktemp(kind), {})[0] for kind in ("locoprop", "backprop")}


CASES = {  # options, and how many steps are taken; None where the weights are those of a plain run
    "fast_dev_run": (dict(fast_dev_run=True), 1),
    "overfit_batches": (dict(overfit_batches=2), 4),
    "limit_train_batches": (dict(limit_train_batches=0.5), 4),
    "limit_val_batches": (dict(limit_val_batches=1), None),
    "val_check_interval": (dict(val_check_interval=2), None),
    "check_val_every_n_epoch": (dict(check_val_every_n_epoch=2), None),
    "max_steps": (dict(max_steps=3, max_epochs=-1), 3),
    "max_time": (dict(max_time="00:01:00:00"), None),
    "num_sanity_val_steps": (dict(num_sanity_val_steps=-1), None),
    "deterministic": (dict(deterministic=True), None),
    "detect_anomaly": (dict(detect_anomaly=True), None),
    "inference_mode": (dict(inference_mode=False), None),
    "reload_dataloaders": (dict(reload_dataloaders_every_n_epochs=1), None),
    "profiler_simple": (dict(profiler="simple"), None),
    "profiler_advanced": (dict(profiler="advanced"), None),
    "csv": (lambda folder: dict(logger=CSVLogger(folder), callbacks=[LearningRateMonitor()]), None),
    "tensorboard": (lambda folder: dict(logger=TensorBoardLogger(folder)), None),
    "two_loggers": (lambda folder: dict(logger=[CSVLogger(folder), TensorBoardLogger(folder)]), None),
    "device_stats": (lambda folder: dict(logger=CSVLogger(folder), callbacks=[DeviceStatsMonitor(True)]), None),
    "early_stopping": (
        lambda _: dict(callbacks=[EarlyStopping("val/loss", min_delta=9.0, patience=1)], max_epochs=9),
        10,
    ),
    "checkpoint": (
        lambda folder: dict(callbacks=[ModelCheckpoint(folder, monitor="val/loss")], enable_checkpointing=True),
        None,
    ),
    "ema": (lambda _: dict(callbacks=[EMAWeightAveraging(decay=0.5)]), 10),
    "batch_size_finder": (lambda _: dict(callbacks=[BatchSizeFinder(init_val=64, max_trials=1)]), 2 * 24),
    "pruning": (lambda _: dict(callbacks=[ModelPruning("l1_unstructured", amount=0.3)]), 10),
    "finetuning": (lambda _: dict(callbacks=[Unfreeze()]), 10),
    "timer": (lambda _: dict(callbacks=[Timer("00:01:00:00")]), None),
    "summaries": (lambda _: dict(callbacks=[ModelSummary(), RichModelSummary()], enable_model_summary=True), None),
    "rich_bar": (lambda _: dict(callbacks=[RichProgressBar()], enable_progress_bar=True), None),
    "barebones": (
        dict(barebones=True, log_every_n_steps=None, logger=None, enable_progress_bar=None, enable_model_summary=None),
        None,
    ),
    "true_double": (dict(precision="64-true"), 10),
}


@pytest.mark.filterwarnings("ignore:Found keys that are not in the model state dict")
@pytest.mark.filterwarnings("ignore:The provided params to be frozen already exist within another group")
@pytest.mark.filterwarnings("ignore:.*`Trainer\\(barebones=True\\)` is configured")
@pytest.mark.parametrize("kind", ["locoprop", "backprop"])
@pytest.mark.parametrize("case", CASES)
def test_it_works(case, kind, plain, tmp_path):
    options, steps = CASES[case]
    made, trainer = fit(kind, tmp_path, options)
    assert trainer.global_step == (2 * STEPS if steps is None else steps)
    for name, value in plain[kind].network.named_parameters():
        if case == "pruning":
            continue
        own = made.network.get_parameter(name)
        assert own.isfinite().all()
        assert torch.equal(own, value) == (steps is None), name
    if not trainer.fast_dev_run and not trainer.barebones:
        assert math.isfinite(trainer.callback_metrics["train/loss"])
    if case == "batch_size_finder":  # which comes after the schedules are made
        assert trainer.lr_scheduler_configs[0].scheduler.total_steps == trainer.global_step
    if case in ("pruning", "finetuning"):
        start = module(kind).network
        assert not torch.allclose(made.network[1].weight, start[1].weight * (made.network[1].weight != 0))


def test_weights_that_were_averaged_are_those_of_the_module(tmp_path):
    averages = [fit("locoprop", tmp_path, dict(callbacks=[EMAWeightAveraging(decay=d)]))[0] for d in (0.0, 0.9)]
    plain, _ = fit("locoprop", tmp_path, {})
    for own, other, value in zip(*(m.network.parameters() for m in [*averages, plain]), strict=True):
        torch.testing.assert_close(own, value)
        assert not torch.allclose(other, value)


@pytest.mark.parametrize("name", ["foof", "locoprop_s_inner_rmsprop", "muon"])
def test_a_command_averages_weights(name, folder):
    """A copy of the module shares what the command's parser has made for it."""
    short = ["--trainer.max_steps=2", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    main(["fit", "--config", f"digits/{name}", "--trainer.callbacks=EMAWeightAveraging", *short])
    (path,) = folder.glob("runs/digits/*/version_0/checkpoints/step=2.ckpt")
    assert torch.load(path, weights_only=True)["averaging_state"]


REFUSED = {
    "StochasticWeightAveraging": ("locoprop", lambda: StochasticWeightAveraging(0.01), "EMAWeightAveraging"),
    "GradientAccumulationScheduler": (
        "locoprop",
        lambda: GradientAccumulationScheduler({1: 2}),
        "set model.accumulate",
    ),
    "LearningRateFinder": ("backprop", lambda: LearningRateFinder(), "locoprop-tune"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_it_is_refused_with_the_way_out(case, tmp_path):
    kind, callback, way = REFUSED[case]
    with pytest.raises(UserError, match=way):
        fit(kind, tmp_path, dict(callbacks=[callback()]))
