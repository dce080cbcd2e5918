import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from locoprop_lightning import BackpropModule, LocoPropModule
from locoprop_lightning.data import Digits
from locoprop_lightning.errors import UserError
from locoprop_lightning.networks import MLP
from locoprop_lightning.solvers import AndersonAcceleration, ClosedForm, FixedPointIteration
from locoprop_lightning.tasks import Classification

STEPS = 3  # in an epoch: 1,500 digits by 500


def trainer(tmp_path, callbacks=(), **arguments):
    options = dict(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        limit_val_batches=1,
        num_sanity_val_steps=0,
    )
    return Trainer(callbacks=list(callbacks), **(options | arguments))


def network():
    torch.manual_seed(3)
    return MLP(64, 16, 1)


def locoprop(solver=None, net=None, **arguments):
    options = dict(lambda_a=100.0, lambda_r=1000.0) | arguments
    solver = FixedPointIteration(2) if solver is None else solver
    return LocoPropModule(network() if net is None else net, Classification(), solver, **options)


def weights(module):
    return {name: p.detach().clone() for name, p in module.network.state_dict().items()}


def equal(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def digits():
    return Digits(batch_size=500, seed=0)


METHODS = {
    "closed_form": lambda: locoprop(ClosedForm(average=0.9, refresh_every=3), objective="squared"),
    "anderson": lambda: locoprop(AndersonAcceleration(4)),
    "adam": lambda: BackpropModule(network(), Classification(), lambda p: torch.optim.Adam(p)),
}
every_method = pytest.mark.parametrize("make", METHODS.values(), ids=METHODS)


@every_method
def test_steps_and_checkpoint(tmp_path, make):
    module = make()
    start = weights(module)
    checkpoint = ModelCheckpoint(tmp_path, save_last=True)
    fit = trainer(tmp_path, [checkpoint], max_epochs=2)
    fit.fit(module, digits())
    assert fit.global_step == 2 * STEPS
    assert not any(torch.equal(start[name], w) for name, w in weights(module).items())
    saved = torch.load(checkpoint.last_model_path, weights_only=True)
    assert saved["global_step"] == 2 * STEPS
    assert equal({f"network.{name}": w for name, w in weights(module).items()}, saved["state_dict"])


@every_method
def test_max_steps(tmp_path, make):
    fit = trainer(tmp_path, max_epochs=-1, max_steps=4)
    fit.fit(make(), digits())
    assert fit.global_step == 4


@every_method
@pytest.mark.filterwarnings("ignore:The dirpath has changed from")
def test_resume_is_exact(tmp_path, make):
    class Interrupt(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 2:
                raise RuntimeError("interrupted")

    whole = make()
    trainer(tmp_path, max_epochs=4).fit(whole, digits())
    checkpoint = ModelCheckpoint(tmp_path, save_last=True)
    with pytest.raises(RuntimeError, match="interrupted"):
        trainer(tmp_path, [checkpoint, Interrupt()], max_epochs=4).fit(make(), digits())
    resumed = make()
    fit = trainer(tmp_path, [ModelCheckpoint(tmp_path / "resumed", save_last=True)], max_epochs=4)
    fit.fit(resumed, digits(), ckpt_path=checkpoint.last_model_path, weights_only=True)
    assert fit.global_step == 4 * STEPS
    assert equal(weights(whole), weights(resumed))


def test_rest_parameters_are_trained(tmp_path):
    def mixed():
        torch.manual_seed(3)
        return nn.Sequential(
            nn.Flatten(),
            nn.Linear(64, 16),
            nn.BatchNorm1d(16),
            nn.Tanh(),
            nn.Linear(16, 16),
            nn.Tanh(),
            nn.Linear(16, 10),
        )

    module = locoprop(net=mixed(), skip=["4"], rest_optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
    reference = mixed()
    data = digits()
    data.setup("fit")
    x, y = next(iter(data.train_dataloader()))
    nn.functional.cross_entropy(reference(x), y).backward()
    torch.optim.SGD(reference.parameters(), lr=0.1).step()
    fit = trainer(tmp_path, max_steps=1)
    fit.fit(module, digits())
    assert fit.global_step == 1
    for name in ("2.weight", "2.bias", "4.weight", "4.bias"):  # their true gradient
        torch.testing.assert_close(weights(module)[name], reference.state_dict()[name])
    start = mixed().state_dict()
    for name in ("1.weight", "6.weight"):
        assert not torch.equal(weights(module)[name], start[name])
    fit = trainer(tmp_path, max_epochs=2)
    fit.fit(module, digits())
    assert fit.global_step == 2 * STEPS


@pytest.mark.parametrize("guard", [True, False])
def test_refused_layer_keeps_its_weights(tmp_path, guard):
    module = locoprop(
        FixedPointIteration(5),
        objective="squared",
        lambda_a=1.0,
        guard=guard,
        overrides={"1": {"lambda_r": 1.0}},  # far below lambda_max(C)
        optimizer=lambda p: torch.optim.SGD(p, lr=1.0, momentum=0.9, weight_decay=0.1),
    )
    start = weights(module)
    trainer(tmp_path, max_steps=1).fit(module, digits())
    end = weights(module)
    assert module.solver.counts == {"1": {"diverged": 1}}
    assert torch.equal(start["1.weight"], end["1.weight"]) == guard
    assert not torch.equal(start["3.weight"], end["3.weight"])


def test_schedule(tmp_path):
    module = locoprop(
        skip=["3"],
        optimizer=lambda p: torch.optim.SGD(p, lr=2.0),
        rest_optimizer=lambda p: torch.optim.SGD(p, lr=0.5),
        lr_scheduler=lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.5),
    )
    fit = trainer(tmp_path)
    fit.fit(module, digits())
    outer, rest = (o.param_groups[0]["lr"] for o in fit.optimizers)
    assert outer == pytest.approx(2.0 * 0.5**STEPS) and rest == pytest.approx(0.5 * 0.5**STEPS)


def test_schedule_of_back_propagation(tmp_path):
    module = BackpropModule(
        network(),
        Classification(),
        lambda p: torch.optim.SGD(p, lr=1.0),
        lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.5),
    )
    fit = trainer(tmp_path)
    fit.fit(module, digits())
    assert fit.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.5**STEPS)


def test_loss_scaling_is_refused(monkeypatch):
    class Stub:
        world_size, precision = 1, "16-mixed"

    module = locoprop()
    module._trainer = Stub()
    monkeypatch.setattr(LocoPropModule, "trainer", Stub())
    with pytest.raises(UserError, match="16-mixed.*bf16-mixed"):
        module.on_fit_start()
    monkeypatch.setattr(Stub, "precision", "32-true")
    monkeypatch.setattr(Stub, "world_size", 2)
    with pytest.raises(UserError, match="set trainer.devices to 1"):
        module.on_fit_start()


def test_bfloat16(tmp_path):
    module = locoprop()
    trainer(tmp_path, precision="bf16-mixed", max_steps=2).fit(module, digits())
    assert all(w.dtype == torch.float32 and w.isfinite().all() for w in weights(module).values())


def test_closed_form_refuses_the_matching_loss(tmp_path):
    with pytest.raises(UserError, match="set objective to 'squared'"):
        trainer(tmp_path).fit(locoprop(ClosedForm()), digits())


def test_relative_damping(tmp_path):
    class Look(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            for problem in pl_module.problems.values():
                expected = 0.5 * problem.map.trace() / problem.map.width
                torch.testing.assert_close(problem.lambda_r, expected)

    trainer(tmp_path, [Look()], max_steps=1).fit(locoprop(damping="relative", lambda_r=0.5), digits())


def test_arguments():
    cases = [
        (dict(lambda_a=0.0), r"lambda_a=0.0: must be above 0"),
        (dict(lambda_r=-1.0), r"lambda_r=-1.0: must be above 0"),
        (dict(objective="square"), r"objective='square': take one of matching, squared"),
        (dict(damping="none"), r"damping='none'"),
        (dict(output_transfer="softmax"), r"output_transfer='softmax'"),
        (dict(skip=["frist"]), r"skip: 'frist' matches no layer; the layers are 1, 3"),
        (dict(overrides={"5": {"lambda_r": 1.0}}), r"overrides: '5' matches no layer"),
        (dict(overrides={"1": {"lambda": 1.0}}), r"'lambda': take one of lambda_a, lambda_r"),
        (dict(skip=["*"]), r"no linear layer"),
    ]
    for arguments, message in cases:
        with pytest.raises(UserError, match=message):
            locoprop(**arguments)


def test_a_layer_read_elsewhere_is_trained_by_its_gradient_alone(tmp_path):
    """The outer optimizer, of rate 1, knows the layer but must not step it; the rest optimizer does, once."""

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.read = nn.Linear(64, 8, bias=False)
            self.head = nn.Linear(8, 10)

        def forward(self, x):
            x = x.flatten(1)
            return self.head(self.read(x) + nn.functional.linear(x, self.read.weight))

    net = Twice()
    before = net.read.weight.detach().clone()
    module = LocoPropModule(
        net,
        Classification(),
        FixedPointIteration(1),
        lambda_a=1.0,
        lambda_r=1.0,
        rest_optimizer=lambda p: torch.optim.SGD(p, lr=0.01),
    )
    data = Digits(batch_size=100, seed=0)
    data.setup("fit")
    x, y = next(iter(data.train_dataloader()))
    weight = before.clone().requires_grad_()
    output = net.head(2 * nn.functional.linear(x.flatten(1), weight))
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(output, y), weight)
    fit = trainer(tmp_path, max_steps=1, limit_val_batches=0)
    fit.fit(module, data)
    assert fit.global_step == 1
    torch.testing.assert_close(net.read.weight, before - 0.01 * gradient, rtol=1e-5, atol=1e-7)
