"""The schedule that knows the length of the run."""

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR, LinearLR, SequentialLR

from locoprop_lightning import BackpropModule, LocoPropModule
from locoprop_lightning.data import Digits
from locoprop_lightning.errors import UserError
from locoprop_lightning.networks import MLP
from locoprop_lightning.optimizers import LinearDecay
from locoprop_lightning.solvers import ClosedForm
from locoprop_lightning.tasks import Classification
from tests.support import quiet_trainer


def optimizer():
    return SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)


def test_equals_torch_linear_schedule():
    ours, theirs = optimizer(), optimizer()
    schedule, reference = LinearDecay(ours, 0.1, total_steps=7), LinearLR(theirs, 1.0, 0.1, 7)
    for _ in range(10):
        assert ours.param_groups[0]["lr"] == pytest.approx(theirs.param_groups[0]["lr"], rel=1e-12)
        for stepped in (ours, theirs, schedule, reference):
            stepped.step()


def test_warmup_equals_torch_schedules_in_sequence():
    ours, theirs = optimizer(), optimizer()
    schedule = LinearDecay(ours, 0.0, total_steps=20, warmup=0.25)
    rise = LambdaLR(theirs, lambda k: k / 5)
    reference = SequentialLR(theirs, [rise, LambdaLR(theirs, lambda k: 1 - k / 15)], [5])
    for _ in range(20):
        assert ours.param_groups[0]["lr"] == pytest.approx(theirs.param_groups[0]["lr"], rel=1e-12)
        for stepped in (ours, theirs, schedule, reference):
            stepped.step()
    assert ours.param_groups[0]["lr"] == pytest.approx(0, abs=1e-15)
    with pytest.raises(UserError, match=r"warmup=1.0\): must be in \[0, 1\)"):
        LinearDecay(ours, warmup=1.0)
    with pytest.raises(UserError, match=r"end_factor=-1\): must be in \[0, 1\]"):
        LinearDecay(ours, end_factor=-1)
    with pytest.raises(UserError, match=r"total_steps=0\): must be at least 1"):
        LinearDecay(ours, total_steps=0)


def test_a_rate_an_epoch():
    """As Amid et al. (2022): of 100 epochs, five rise from 0, and the others fall to 0."""
    schedule = LinearDecay(optimizer(), 0.0, total_steps=300, warmup=0.05, by_epoch=True)
    schedule.steps_per_epoch = 3
    for step in range(300):
        epoch = step // 3
        factor = epoch / 5 if epoch < 5 else (100 - epoch) / 95
        assert schedule.optimizer.param_groups[0]["lr"] == pytest.approx(0.3 * factor, rel=1e-12, abs=1e-15)
        schedule.optimizer.step()
        schedule.step()


def test_an_edited_length_holds_on_resume():
    schedule = LinearDecay(optimizer(), total_steps=10)
    schedule.optimizer.step()
    schedule.step()
    resumed = LinearDecay(optimizer(), total_steps=20)
    resumed.optimizer.load_state_dict(schedule.optimizer.state_dict())  # with the rates of before
    resumed.base_lrs = [0.6]  # as an edited rate makes it
    resumed.load_state_dict(schedule.state_dict())
    assert (resumed.last_epoch, resumed.total_steps) == (1, 20)
    assert resumed.optimizer.param_groups[0]["lr"] == pytest.approx(0.6 * (1 - 0.98 / 20))
    assert resumed.get_last_lr() == [resumed.optimizer.param_groups[0]["lr"]]


@pytest.mark.parametrize("local", [True, False])
def test_modules_tell_it_the_length_of_the_run(local, tmp_path):
    network, task = MLP(in_features=64, hidden_features=8, hidden_layers=1), Classification()
    if local:
        module = LocoPropModule(
            network, task, ClosedForm(), lambda_a=1, lambda_r=1, objective="squared", lr_scheduler=LinearDecay
        )
    else:
        module = BackpropModule(network, task, lambda p: SGD(p, lr=0.1), lr_scheduler=LinearDecay)
    trainer = quiet_trainer(max_epochs=1, default_root_dir=tmp_path)
    trainer.fit(module, Digits(batch_size=256))
    start = 1.0 if local else 0.1
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.02 * start)


def test_modules_tell_it_the_length_of_an_epoch(tmp_path):
    """Also where the run is as long as its steps: 1,500 digits by 300, in epochs of 5 steps."""
    seen = []

    class Rates(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen.append(trainer.optimizers[0].param_groups[0]["lr"])

    module = BackpropModule(
        MLP(in_features=64, hidden_features=8, hidden_layers=1),
        Classification(),
        lambda p: SGD(p, lr=1.0),
        lr_scheduler=lambda o: LinearDecay(o, 0.0, by_epoch=True),
    )
    trainer = quiet_trainer(max_steps=10, callbacks=[Rates()])
    trainer.fit(module, Digits(batch_size=300))
    assert seen == pytest.approx([1.0] * 5 + [0.5] * 5)
    endless = quiet_trainer(max_epochs=-1, default_root_dir=tmp_path)
    with pytest.raises(UserError, match="max_epochs"):
        endless.fit(module, Digits(batch_size=256))


def test_a_refused_optimizer_is_named(tmp_path):
    module = BackpropModule(
        MLP(in_features=64, hidden_features=8, hidden_layers=1), Classification(), lambda p: torch.optim.Muon(p)
    )
    trainer = Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(UserError, match="optimizer: .*SplitOptimizer"):
        trainer.fit(module, Digits(batch_size=256))
