import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import FSDPStrategy
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from locoprop_lightning import BackpropModule, LocoPropModule
from locoprop_lightning.callbacks import FitSummary
from locoprop_lightning.data import Digits
from locoprop_lightning.distributed import Communicator
from locoprop_lightning.errors import UserError
from locoprop_lightning.local import MatrixOperator
from locoprop_lightning.networks import MLP
from locoprop_lightning.observer import SolveObserver
from locoprop_lightning.optimizers import LinearDecay, SplitOptimizer
from locoprop_lightning.oracles import Oracle, RMSOracle, WhitenedOracle
from locoprop_lightning.settings import check_trainer
from locoprop_lightning.solvers import (
    AndersonAcceleration,
    ClosedForm,
    ConjugateGradient,
    FixedPointIteration,
    GradientDescent,
    InnerOptimizer,
    Majorization,
    Recording,
)
from locoprop_lightning.tasks import Classification, Task
from tests.support import ROOT, flat, quiet_trainer, same

STEPS = 3  # in an epoch: 1,500 digits by 500


def trainer(tmp_path, callbacks=(), **arguments):
    options = dict(
        max_epochs=1,
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks),
        default_root_dir=tmp_path,
        limit_val_batches=1,
        num_sanity_val_steps=0,
    )
    return quiet_trainer(callbacks=list(callbacks), **(options | arguments))


def network():
    torch.manual_seed(3)
    return MLP(64, 16, 1)


def locoprop(solver=None, net=None, **arguments):
    options = dict(lambda_a=100.0, lambda_r=1000.0) | arguments
    solver = FixedPointIteration(2) if solver is None else solver
    return LocoPropModule(network() if net is None else net, Classification(), solver, **options)


def weights(module):
    return {name: p.detach().clone() for name, p in module.network.state_dict().items()}


def evolved(module):
    """What solver and oracle have learnt of each layer, and how solves ended."""
    return {name: layer.state_dict() for name, layer in module.engine.layers.items()}


def equal(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def digits():
    return Digits(batch_size=500, seed=0)


def rms(solver=None, **arguments):
    return locoprop(solver, **(dict(lambda_a=0.1, lambda_r=100.0, oracle=RMSOracle()) | arguments))


def kfac(solver=None, oracle=None, **arguments):
    oracle = WhitenedOracle(refresh_every=2, warmup=1) if oracle is None else oracle
    options = dict(lambda_a=0.01, lambda_r=100.0, objective="squared", oracle=oracle) | arguments
    return locoprop(ClosedForm(average=0.9, refresh_every=4, warmup=1) if solver is None else solver, **options)


METHODS = {
    "closed_form": lambda: locoprop(ClosedForm(average=0.9, refresh_every=3), objective="squared"),
    "anderson": lambda: locoprop(AndersonAcceleration(4)),
    "rms_majorization": lambda: rms(Majorization(3, average=0.9, refresh_every=4, warmup=1)),
    "rms_nesterov": lambda: rms(Majorization(3, "nesterov", refresh_every=2, warmup=0)),
    "rms_closed_form": lambda: rms(ClosedForm(average=0.9), oracle=RMSOracle(per="layer"), objective="squared"),
    "kfac": kfac,
    "empirical_kfac": lambda: kfac(oracle=WhitenedOracle(samples=0, refresh_every=4, warmup=0)),
    "whitened_conjugate_gradient": lambda: kfac(ConjugateGradient(3)),
    "inner_optimizer": lambda: locoprop(InnerOptimizer(lambda p: torch.optim.Adam(p, lr=1e-4), 4), lambda_a=500.0),
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
    if isinstance(whole, LocoPropModule):
        assert same(evolved(whole), evolved(resumed))


@pytest.mark.parametrize("make", [rms, kfac], ids=["rms", "kfac"])
def test_what_solver_and_oracle_have_learnt_is_saved(tmp_path, make):
    module, checkpoint = make(), ModelCheckpoint(tmp_path, save_last=True)
    trainer(tmp_path, [checkpoint]).fit(module, digits())
    saved = torch.load(checkpoint.last_model_path, weights_only=True)["local_layers"]["layers"]
    assert saved.keys() == {"1", "3"} and all(state["oracle"] for state in saved.values())
    assert same(saved, evolved(module))


def test_a_checkpoint_of_back_propagation_has_nothing_of_layers():
    module = rms()
    module.on_load_checkpoint({})
    assert not any(state["solver"] or state["oracle"] or state["counts"] for state in evolved(module).values())


@pytest.mark.parametrize("changed", ["solver", "oracle"])
def test_what_another_solver_or_oracle_has_kept_is_left_behind(tmp_path, changed):
    checkpoint = ModelCheckpoint(tmp_path, save_last=True)
    trainer(tmp_path, [checkpoint]).fit(kfac(), digits())
    other = kfac(Majorization(average=0.9)) if changed == "solver" else kfac(oracle=RMSOracle())
    other.on_load_checkpoint(torch.load(checkpoint.last_model_path, weights_only=True))
    for state in evolved(other).values():
        assert bool(state["solver"]) == (changed == "oracle") and bool(state["oracle"]) == (changed == "solver")


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


class Checkpointed(nn.Module):
    """Its first layer runs without gradients first, and again in the backward pass."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(64, 16), nn.Linear(16, 10)

    def forward(self, x):
        x = x.flatten(1).requires_grad_()
        return self.last(torch.tanh(checkpoint(self.first, x, use_reentrant=True)))


def test_a_layer_that_the_tape_cannot_see_is_trained_by_its_gradient(tmp_path):
    module = locoprop(net=Checkpointed())
    before = weights(module)
    trainer(tmp_path, max_steps=2).fit(module, digits())
    assert all(not torch.equal(before[name], after) for name, after in weights(module).items())


class Masked(nn.Module):
    """Takes samples and a matrix that has nothing to do with them."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x, mask):
        return self.layer(mask @ x).flatten(1)


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
def test_inputs_that_are_not_per_sample(tmp_path):
    for samples in (8, 6):  # other than the mask's rows, and as many
        batch = ((torch.randn(samples, 6, 4), torch.rand(6, 6)), torch.arange(samples))
        module = LocoPropModule(Masked(), Classification(18), ClosedForm(), 10.0, 10.0, "squared")
        before = weights(module)
        trainer(tmp_path, max_steps=1).fit(module, DataLoader([batch], batch_size=None))
        assert not torch.equal(before["layer.weight"], weights(module)["layer.weight"])


class Bag(nn.Module):
    """An expert that sees no rows, inputs of different lengths, a dictionary as the output."""

    def __init__(self):
        super().__init__()
        self.bag, self.expert, self.head, self.hidden = nn.EmbeddingBag(20, 5), *(nn.Linear(5, 3) for _ in range(3))

    def forward(self, tokens, offsets):
        x = self.bag(tokens, offsets)
        none = torch.arange(0)
        with torch.no_grad():
            self.hidden(x)
        return {"out": self.head(x).index_add(0, none, self.expert(x[none]))}


class Out(Classification):
    def loss(self, output, target):
        return super().loss(output["out"], target)

    def score(self, output):
        return super().score(output["out"])


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
@pytest.mark.parametrize(
    "solver", [ClosedForm(), Majorization(2), FixedPointIteration(2)], ids=lambda s: type(s).__name__
)
def test_a_network_of_another_kind(tmp_path, solver, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")  # for a column of notes
    batch = ((torch.randint(0, 20, (30,)), torch.arange(0, 30, 5)), torch.arange(6) % 3)
    module = LocoPropModule(
        Bag(), Out(3), solver, 0.1, 10.0, "squared", oracle=WhitenedOracle(samples=0), damping="relative"
    )
    before = weights(module)
    trainer(tmp_path, max_steps=2).fit(module, DataLoader([batch] * 2, batch_size=None))
    after = weights(module)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"bag.weight", "head.weight", "head.bias"} and module.engine.counts == {}
    rows = {line.split("│")[1].strip(): line for line in capsys.readouterr().out.splitlines() if "│" in line}
    assert all("no gradient" in rows[name] for name in ("expert", "hidden"))
    trainer(tmp_path, max_steps=1).fit(
        BackpropModule(Bag(), Out(3), torch.optim.Adam), DataLoader([batch], batch_size=None)
    )


def test_freezing_between_and_within_fits(tmp_path):
    class Freeze(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            pl_module.network[1].requires_grad_(batch_idx == 0)

    module = locoprop(ClosedForm(), skip=["5"], net=MLP(64, 16, 2), objective="squared")
    module.network[3].requires_grad_(False)
    for frozen, free in (("3", "1"), ("1", "3")):
        before = weights(module)
        trainer(tmp_path, max_steps=2).fit(module, digits())
        after = weights(module)
        assert torch.equal(before[f"{frozen}.weight"], after[f"{frozen}.weight"])
        assert not torch.equal(before[f"{free}.weight"], after[f"{free}.weight"])
        module.network[3].requires_grad_(True)
        module.network[1].requires_grad_(False)
    module = locoprop(ClosedForm(), net=MLP(64, 16, 2), objective="squared")
    before = weights(module)
    trainer(tmp_path, [Freeze()], max_steps=1).fit(module, digits())
    once = weights(module)
    module.load_state_dict({f"network.{name}": w for name, w in before.items()})
    trainer(tmp_path, [Freeze()], max_steps=3).fit(module, digits())
    assert torch.equal(once["1.weight"], weights(module)["1.weight"])  # moved in the first step alone


def test_the_link_needs_an_output_layer(tmp_path):
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Unflatten(1, (10, 1)), nn.Flatten())
    with pytest.raises(UserError, match="output_transfer='link' needs one layer .* there are 0: set transfers"):
        trainer(tmp_path, max_steps=1).fit(locoprop(net=net, output_transfer="link"), digits())


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
    assert module.engine.counts == {"1": {"diverged": 1}}
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


def test_a_schedule_that_begins_at_zero_holds_the_rest_too(tmp_path):
    module = locoprop(skip=["3"], lr_scheduler=lambda o: LinearDecay(o, warmup=0.5))
    start = weights(module)
    trainer(tmp_path, max_steps=1).fit(module, digits())
    assert all(torch.equal(start[name], after) for name, after in weights(module).items())


def test_a_schedule_of_the_inner_rate(tmp_path):
    """It leaves the outer rate as it is, moves the rest, and reaches solvers that have such a rate alone."""

    def exponential(optimizer):
        return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)

    module = locoprop(GradientDescent(2), skip=["3"], lr_scheduler=exponential, scheduled="inner")
    watch = Look(lambda problem: seen.append(problem.rate))
    seen = []
    fit = trainer(tmp_path, [watch])
    fit.fit(module, digits())
    assert seen == pytest.approx([0.5**step for step in range(STEPS)])
    outer, rest = (o.param_groups[0]["lr"] for o in fit.optimizers)
    assert outer == 1.0 and rest == pytest.approx(1e-3 * 0.5**STEPS)
    with pytest.raises(UserError, match="scheduled='inner': solver=FixedPointIteration has no rate of inner steps"):
        locoprop(scheduled="inner")
    with pytest.raises(UserError, match="scheduled='both': take one of outer, inner"):
        locoprop(scheduled="both")
    with pytest.raises(UserError, match="solver=FixedPointIteration has no rate"):
        module.solver = FixedPointIteration(2)


def test_an_outer_rate_of_zero(tmp_path):
    module = locoprop(skip=["3"], optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    start = weights(module)
    trainer(tmp_path, max_steps=1).fit(module, digits())
    end = weights(module)
    assert torch.equal(start["1.weight"], end["1.weight"]) and not torch.equal(start["3.weight"], end["3.weight"])


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
        world_size, precision, callbacks, gradient_clip_val, accumulate_grad_batches = 1, "16-mixed", [], None, 1
        lightning_module = locoprop()

    for precision in ("16-mixed", "16-true"):
        monkeypatch.setattr(Stub, "precision", precision)
        with pytest.raises(UserError, match=f"trainer.precision='{precision}'.*; take .*'bf16-mixed'"):
            check_trainer(Stub())
    monkeypatch.setattr(Stub, "precision", "32-true")
    monkeypatch.setattr(Stub, "world_size", 2)
    monkeypatch.setattr(Stub, "strategy", FSDPStrategy(), raising=False)
    with pytest.raises(UserError, match="trainer.strategy: .* 'ddp' alone, not over those of FSDPStrategy.* 2"):
        check_trainer(Stub())


def test_bfloat16(tmp_path):
    module = locoprop()
    trainer(tmp_path, precision="bf16-mixed", max_steps=2).fit(module, digits())
    assert all(w.dtype == torch.float32 and w.isfinite().all() for w in weights(module).values())


@pytest.mark.parametrize("solver", [ClosedForm, ConjugateGradient])
def test_a_solver_of_the_squared_loss_refuses_the_matching_loss_at_once(solver):
    with pytest.raises(UserError, match="set objective to 'squared'"):
        locoprop(solver())


def test_what_is_no_object_of_its_kind_is_refused():
    class Forgetful(FixedPointIteration):
        def __init__(self):
            pass

    for arguments, message in [
        (dict(solver=FixedPointIteration), r"solver=FixedPointIteration: give an object, FixedPointIteration\(...\)"),
        (dict(oracle=RMSOracle), "oracle=RMSOracle: give an object"),
        (dict(oracle="rms"), "oracle='rms': must be an oracle, such as RMSOracle"),
        (dict(net=MLP), r"network=MLP\): give an object"),
        (dict(solver=Forgetful()), r"solver=Forgetful: its __init__ must call super\(\).__init__\(\)"),
    ]:
        with pytest.raises(UserError, match=message):
            locoprop(**arguments)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_other_rules_and_schedules_on_resume(tmp_path):
    """The two rules of a SplitOptimizer, a schedule where there was none, and an outer rate of zero with one."""

    def split(matrix):
        return lambda p: SplitOptimizer(p, matrix, torch.optim.AdamW)

    saved = ModelCheckpoint(tmp_path, save_last=True)
    trainer(tmp_path, [saved]).fit(locoprop(skip=["3"], optimizer=split(torch.optim.Adam)), digits())
    resume = dict(ckpt_path=saved.last_model_path, weights_only=True)
    with pytest.raises(UserError, match="trained by Adam/AdamW .*, not by RMSprop/AdamW"):
        trainer(tmp_path, max_epochs=2).fit(
            locoprop(skip=["3"], optimizer=split(torch.optim.RMSprop)), digits(), **resume
        )
    scheduled = locoprop(skip=["3"], optimizer=split(torch.optim.Adam), lr_scheduler=LinearDecay)
    fit = trainer(tmp_path, max_epochs=2)
    fit.fit(scheduled, digits(), **resume)
    outer, rest = (optimizer.param_groups[0]["lr"] for optimizer in fit.optimizers)
    assert 0 < outer < 1e-3 and rest == pytest.approx(outer)  # both began at 1e-3
    still = locoprop(optimizer=lambda p: torch.optim.SGD(p, lr=0.0), lr_scheduler=LinearDecay)
    trainer(tmp_path, max_steps=1).fit(still, digits())


@pytest.mark.parametrize("setting", ["optimizer", "rest_optimizer"])
def test_lbfgs_is_refused(tmp_path, setting):
    module = locoprop(**{setting: lambda p: torch.optim.LBFGS(p)})
    with pytest.raises(UserError, match=f"^{setting}=LBFGS"):
        trainer(tmp_path, max_steps=1).fit(module, digits())


def test_an_oracle_that_only_gives_rows(tmp_path):
    """Such as the sign of the gradient, whose D^T Y no rule makes from G^T Y."""

    class Sign(Oracle):
        def direction(self, gradient, terms, state):
            return gradient.sign()

    def look(problem):
        y = torch.cat([problem.operator.rows, torch.ones_like(problem.operator.rows[:, :1])], 1)
        torch.testing.assert_close(problem.first_gradient(), problem.lambda_a * problem.direction.T @ y)
        assert set(problem.direction.unique().tolist()) <= {-1.0, 0.0, 1.0}

    module = locoprop(ClosedForm(), oracle=Sign(), objective="squared", lambda_a=0.01)
    watch = Look(look)
    trainer(tmp_path, [watch], precision="64-true", max_steps=2).fit(module, digits())
    assert watch.seen == ["1", "3"] * 2


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.filterwarnings("ignore:The dirpath has changed from")
def test_a_checkpoint_of_another_method_or_network_is_refused(tmp_path):
    saved = ModelCheckpoint(tmp_path, save_last=True)
    trainer(tmp_path, [saved]).fit(locoprop(skip=["3"], lr_scheduler=LinearDecay), digits())
    resume = dict(ckpt_path=saved.last_model_path, weights_only=True)
    adam = BackpropModule(network(), Classification(), lambda p: torch.optim.Adam(p))
    with pytest.raises(UserError, match=r"by SGD \(2 parameters\) and AdamW \(4 .*, not by Adam \(4 .*; resume with"):
        trainer(tmp_path, max_epochs=2).fit(adam, digits(), **resume)
    trainer(tmp_path).test(adam, digits(), verbose=False, **resume)  # its weights are welcome
    trainer(tmp_path).fit(adam, digits())
    with pytest.raises(UserError, match=r"another network: size mismatch for network.1.weight.* \(2 more do not fit\)"):
        trainer(tmp_path, max_epochs=2).fit(locoprop(net=MLP(64, 8, 1)), digits(), **resume)
    with pytest.raises(UserError, match=r"SGD \(2 parameters\) and AdamW .*, not by SGD \(4 parameters\)"):
        trainer(tmp_path, max_epochs=2).fit(locoprop(), digits(), **resume)
    longer = locoprop(skip=["3"], lr_scheduler=LinearDecay)

    class Rates(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            rates.append([o.param_groups[0]["lr"] for o in trainer.optimizers])

    rates = []
    trainer(tmp_path, [Rates()], max_epochs=2).fit(longer, digits(), **resume)
    assert rates[0] == pytest.approx([1 - 0.98 / 2, 1e-3 * (1 - 0.98 / 2)])  # half of the longer run


def test_relative_damping(tmp_path):
    def look(problem):
        torch.testing.assert_close(problem.lambda_r, 0.5 * problem.operator.trace() / problem.operator.width)

    watch = Look(look)
    trainer(tmp_path, [watch], max_steps=1).fit(locoprop(damping="relative", lambda_r=0.5), digits())
    assert watch.seen == ["1", "3"]


def test_arguments():
    cases = [
        (dict(lambda_a=0.0), r"lambda_a=0.0: must be above 0"),
        (dict(lambda_r=-1.0), r"lambda_r=-1.0: must be above 0"),
        (dict(objective="square"), r"objective='square': take one of matching, squared"),
        (dict(damping="none"), r"damping='none'"),
        (dict(output_transfer="softmax"), r"output_transfer='softmax'"),
        (dict(skip=["frist"]), r"skip: 'frist' matches no layer; the layers are 1, 3"),
        (dict(overrides={"5": {"lambda_r": 1.0}}), r"overrides: '5' matches no layer"),
        (
            dict(overrides={"1": {"lambda": 1.0}}),
            r"overrides\['1'\] has no setting 'lambda': take lambda_a, lambda_r or unit_groups",
        ),
        (dict(transfers={"1": "tahn"}), r"transfers\['1'\]: There is no transfer 'tahn'"),
        (dict(skip=["*"]), r"no layer to train locally"),
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


class Look(SolveObserver):
    """Calls a function of each problem of each step, and keeps the layers' names."""

    def __init__(self, function=lambda problem: None):
        self.function = function
        self.seen = []

    def recording(self, trainer):
        return Recording.ENDS

    def on_solved(self, trainer, problems, reports, counts):
        for name, problem in problems.items():
            self.function(problem)
            self.seen.append(name)


ORACLES = {
    "gradient": lambda: None,
    "rms": RMSOracle,
    "rms_layer": lambda: RMSOracle(per="layer"),
    "whitened": lambda: WhitenedOracle(refresh_every=2, warmup=0),
    "empirical": lambda: WhitenedOracle(samples=0),
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("oracle", ORACLES.values(), ids=ORACLES)
def test_first_gradient_from_back_propagation(tmp_path, monkeypatch, oracle, bias):
    """It equals lambda_a D^T Y, and no product over the rows is made for it, but for the checks at steps 1 and 2."""
    adjoint, products = MatrixOperator.adjoint, []
    monkeypatch.setattr(MatrixOperator, "adjoint", lambda self, r: products.append(self) or adjoint(self, r))

    def look(problem):
        y = problem.operator.rows
        y = torch.cat([y, torch.ones_like(y[:, :1])], 1) if bias else y
        expected = problem.lambda_a * problem.direction.T @ y
        torch.testing.assert_close(problem.first_gradient(), expected, rtol=1e-9, atol=1e-9)

    net = MLP(64, 16, 1, bias=bias)
    module = locoprop(FixedPointIteration(1), net, oracle=oracle(), lambda_a=0.01, lambda_r=1000.0)
    watch = Look(look)
    trainer(tmp_path, [watch], precision="64-true", max_steps=3).fit(module, digits())
    assert watch.seen == ["1", "3"] * 3 and len(products) == 2 * 2


class Drawing(Classification):
    """Keeps the labels that are drawn."""

    def __init__(self):
        super().__init__()
        self.drawn = []

    def sample_labels(self, output, generator):
        self.drawn.append(super().sample_labels(output, generator))
        return self.drawn[-1]


def drawing(task, **arguments):
    oracle = WhitenedOracle(**arguments)
    return LocoPropModule(
        network(), task, ClosedForm(), lambda_a=0.01, lambda_r=100.0, objective="squared", oracle=oracle
    )


def test_second_backward_passes_happen_at_refreshes_alone(tmp_path):
    class Steps(Callback):
        def __init__(self):
            self.steps = []

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.steps += [trainer.global_step - 1] * (len(task.drawn) - len(self.steps))

    task, steps = Drawing(), Steps()
    module = drawing(task, samples=2, refresh_every=4, warmup=3)
    trainer(tmp_path, [steps], max_epochs=4).fit(module, digits())
    assert steps.steps == [0, 0, 1, 1, 2, 2, 6, 6, 10, 10]
    assert all(labels.shape == (500,) for labels in task.drawn)
    task = Drawing()
    trainer(tmp_path).fit(drawing(task, samples=0), digits())
    assert not task.drawn


class Headed(nn.Module):
    """A network with a head that is called, and reaches no loss."""

    def __init__(self):
        super().__init__()
        self.body, self.extra = network(), nn.Linear(64, 3)

    def forward(self, x):
        self.extra(x.flatten(1))
        return self.body(x)


def test_a_layer_without_a_gradient_asks_for_no_draws(tmp_path):
    task = Drawing()
    module = drawing(task, refresh_every=4, warmup=0)
    module = LocoPropModule(
        Headed(), task, ClosedForm(), lambda_a=0.01, lambda_r=100.0, objective="squared", oracle=module.oracle
    )
    trainer(tmp_path, max_epochs=2).fit(module, digits())
    assert len(task.drawn) == 2 and not module.engine.layers["extra"].oracle_state  # 6 steps


def test_draws_depend_on_seed_and_step_alone(tmp_path, monkeypatch):
    class RandomState(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            self.before = torch.get_rng_state()

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            assert torch.equal(torch.get_rng_state(), self.before)

    def draw(seed, global_seed, **arguments):
        monkeypatch.setenv("PL_GLOBAL_SEED", str(seed))
        task = Drawing()
        module = drawing(task, **(dict(samples=1, warmup=100) | arguments))
        torch.manual_seed(global_seed)
        trainer(tmp_path, [RandomState()]).fit(module, digits())
        return task.drawn

    first, again, other = draw(1, 0), draw(1, 5), draw(2, 0)
    assert len(first) == STEPS
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])  # the same network and images
    two = draw(1, 0, samples=2)
    assert torch.equal(two[0], first[0]) and not torch.equal(two[0], two[1])


SPOILT = {
    "gradient": lambda: locoprop(Majorization()),
    "rms": lambda: rms(Majorization(average=0.9)),
    "empirical_kfac": lambda: kfac(oracle=WhitenedOracle(samples=0)),
    "kfac": lambda: kfac(oracle=WhitenedOracle(warmup=100)),
    "inner_optimizer": lambda: locoprop(InnerOptimizer(lambda p: torch.optim.Adam(p, lr=1e-4), 4), lambda_a=500.0),
}


@pytest.mark.parametrize("make", SPOILT.values(), ids=SPOILT)
@pytest.mark.parametrize("when", [0, 1])
def test_a_nonfinite_batch_is_counted_and_forgotten(tmp_path, make, when):
    """The layers stay, nothing enters a state, and the next batch trains."""

    class Spoil(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            self.before = weights(pl_module)
            if trainer.global_step == when:
                batch[0].fill_(torch.nan)

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            spoilt = trainer.global_step == when + 1
            assert all(torch.equal(w, self.before[name]) == spoilt for name, w in weights(pl_module).items())
            if spoilt:
                assert finite(evolved(pl_module))

    module = make()
    trainer(tmp_path, [Spoil()]).fit(module, digits())
    for counts in module.engine.counts.values():
        assert counts["nonfinite"] == 1 and "diverged" not in counts
    assert module.engine.counts.keys() == {"1", "3"}
    assert finite(evolved(module))


def finite(state):
    return all(x.isfinite().all() for x in flat(state).values())


class Experts(nn.Module):
    """Calls its second expert from the fourth step on, and its third one never."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(64, 8), nn.Linear(8, 10)
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.steps = 0

    def forward(self, x):
        self.steps += self.training
        return self.head(torch.relu(self.experts[self.steps > 3](self.first(x.flatten(1)))))


def test_a_layer_that_a_later_batch_calls_is_local_from_then_on(tmp_path, capsys):
    network, watch = Experts(), Look()
    start = {name: p.detach().clone() for name, p in network.named_parameters()}
    module = LocoPropModule(network, Classification(), ClosedForm(), 10.0, 100.0, objective="squared")
    options = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = Trainer(max_steps=6, accelerator="cpu", logger=False, callbacks=[watch, FitSummary()], **options)
    trainer.fit(module, Digits(batch_size=128, seed=0))
    both = {"first", "head"}
    steps = [set(watch.seen[k : k + 3]) for k in range(0, 18, 3)]
    assert steps == [both | {"experts.0"}] * 3 + [both | {"experts.1"}] * 3
    changed = {name for name, p in network.named_parameters() if not torch.equal(p, start[name])}
    assert changed == start.keys() - {"experts.2.weight", "experts.2.bias"}
    output = capsys.readouterr().out
    assert "never had a gradient experts.2.weight, experts.2.bias" in output and "ClosedForm" in output


def test_a_task_needs_its_loss_alone(tmp_path):
    class Scaled(Task):
        def loss(self, output, target):
            return nn.functional.cross_entropy(2 * output, target)

    options = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = Trainer(max_epochs=1, accelerator="cpu", logger=False, **options)
    module = LocoPropModule(MLP(64, 16, 1), Scaled(), ClosedForm(), 10.0, 100.0, objective="squared")
    trainer.fit(module, Digits(batch_size=128, seed=0))
    assert set(trainer.callback_metrics) == {"train/loss", "val/loss"}
    with pytest.raises(UserError, match=r"Task must override loss\(output, target\)"):
        Task().loss(torch.zeros(1), torch.zeros(1))


def test_a_loss_that_is_not_a_number_is_no_smaller_mean(tmp_path):
    class Broken(Classification):
        def loss(self, output, target):
            loss = super().loss(output, target)
            return loss * float("nan") if len(target) == 97 else loss

    module = LocoPropModule(network(), Broken(), ClosedForm(), 10.0, 100.0, objective="squared")
    fit = trainer(tmp_path, limit_val_batches=2)
    fit.fit(module, Digits(batch_size=500, eval_batch_size=200, seed=0))  # 297 test images
    assert fit.callback_metrics["val/loss"].isnan()


def test_an_oracle_that_knows_of_one_process(tmp_path):
    class Own(Oracle):
        def observe(self, gradient, sampled, terms, state):
            state["seen"] = state.get("seen", 0) + len(gradient)

        def direction(self, gradient, terms, state):
            return gradient

    module = locoprop(oracle=Own())
    trainer(tmp_path, max_steps=2).fit(module, digits())
    assert module.engine.layers["1"].oracle_state["seen"] == 1000


def test_a_trainer_that_does_not_count_the_process_group(tmp_path, monkeypatch):
    class Two(Communicator):
        size = 2

    monkeypatch.setattr("locoprop_lightning.supervised.connect", Two)
    with pytest.raises(UserError, match="one of 2 of torch.distributed, but the trainer counts 1"):
        trainer(tmp_path).fit(locoprop(), digits())


class Idle(torch.optim.SGD):
    """Never calls the closure that it is given."""

    def step(self, closure=None):
        return super().step()


def test_an_outer_optimizer_need_not_call_its_closure(tmp_path):
    """Displacements are there before it steps."""
    found = []
    for optimizer in (torch.optim.SGD, Idle):
        module = locoprop(ClosedForm(), objective="squared", optimizer=lambda p, make=optimizer: make(p, lr=1.0))
        start = weights(module)
        trainer(tmp_path).fit(module, digits())
        assert not any(torch.equal(start[name], w) for name, w in weights(module).items())
        found.append(weights(module))
    assert equal(*found)


def earlier(checkpoint, solver):
    """A checkpoint as it was before layers had their state together: flat, and by solver and oracle."""
    layers = checkpoint.pop("local_layers")["layers"]

    def flat_state(state):
        state = {**state, **state.get("preconditioner", {})}
        state.pop("preconditioner", None)
        average = state.pop("average", state.get("square", {}))
        if average:
            key = "square" if "square" in state else "mean"
            state |= {key: average["value"], "weight": average["weight"]}
        return state

    states = {name: flat_state(layer["solver"]) for name, layer in layers.items()}
    counts = {name: layer["counts"] for name, layer in layers.items() if layer["counts"]}
    checkpoint["callbacks"][solver] = {"state": states, "counts": counts}
    checkpoint["oracle_state"] = {name: flat_state(layer["oracle"]) for name, layer in layers.items()}


@pytest.mark.parametrize("make", [kfac, METHODS["inner_optimizer"], METHODS["rms_majorization"]])
def test_an_earlier_checkpoint_goes_on(tmp_path, make):
    saved = ModelCheckpoint(tmp_path, save_last=True)
    module = make()
    trainer(tmp_path, [saved]).fit(module, digits())
    checkpoint = torch.load(saved.last_model_path, weights_only=True)
    earlier(checkpoint, type(module.solver).__name__)
    assert "local_layers" not in checkpoint and any(checkpoint["callbacks"][type(module.solver).__name__].values())
    resumed = make()
    resumed.on_load_checkpoint(checkpoint)
    new = ("/held", "/outlier")  # which an earlier version did not write
    known, found = ({key: x for key, x in flat(evolved(m)).items() if not key.endswith(new)} for m in (module, resumed))
    assert same(known, found)


@pytest.mark.parametrize("part", ["solver", "oracle", "network", "lambda_a"])
def test_what_is_changed_between_fits_holds(tmp_path, part):
    """As a module made anew with it."""
    module = locoprop(lambda_r=1e4)
    trainer(tmp_path).fit(module, digits())
    other = {"solver": AndersonAcceleration(3), "oracle": RMSOracle(), "network": MLP(64, 8, 1), "lambda_a": 50.0}[part]
    if part == "lambda_a":
        module.engine.settings.lambda_a = other
    else:
        setattr(module, part, other)
    net = MLP(64, 8 if part == "network" else 16, 1)
    net.load_state_dict(module.network.state_dict())
    options = {"lambda_a": other} if part == "lambda_a" else {"oracle": other} if part == "oracle" else {}
    solver = AndersonAcceleration(3) if part == "solver" else None
    expected = locoprop(solver, net, **({"lambda_r": 1e4} | options))
    for one in (module, expected):
        trainer(tmp_path).fit(one, digits())
    assert equal(weights(module), weights(expected)) and module.trainer.callbacks.count(module.solver) == 1


def test_an_oracle_without_rows_is_refused_where_there_are_several_processes():
    class Own(Oracle):
        def observe(self, gradient, sampled, terms, state):
            pass

        def direction(self, gradient, terms, state):
            return gradient

    class Two(Communicator):
        size = 2

    module = locoprop(oracle=Own())
    with pytest.raises(
        UserError, match="oracle=Own: its observe takes no `rows`, with which it must sum over the rows"
    ):
        module.engine.discover(module.network, torch.zeros(2, 64), Two())


def test_an_observer_that_asks_for_something_else_is_named(tmp_path):
    class Asks(SolveObserver):
        def recording(self, trainer):
            return True

    with pytest.raises(UserError, match="Asks.recording: must return Recording.NOTHING, ENDS or CURVE, not True"):
        trainer(tmp_path, [Asks()]).fit(locoprop(), digits())


def test_a_weight_gradient_that_autocast_has_rounded_is_made_from_the_rows(tmp_path):
    def look(problem):
        expected = problem.lambda_a * problem.operator.adjoint(problem.direction)
        assert torch.equal(problem.first_gradient(), expected)

    watch = Look(look)
    trainer(tmp_path, [watch], precision="bf16-mixed", max_steps=2).fit(locoprop(FixedPointIteration(1)), digits())
    assert watch.seen == ["1", "3"] * 2


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
def test_an_output_that_cancels_is_no_reason_to_refuse_a_layer(tmp_path):
    """Inputs of a large mean, which the bias takes away, in bfloat16."""
    x, layer = torch.randn(256, 64) + 100, nn.Linear(64, 10)
    with torch.no_grad():
        layer.bias.copy_(-layer.weight.sum(1) * 100)
    module = LocoPropModule(layer, Classification(), ClosedForm(), 1.0, 10.0, objective="squared")
    batch = DataLoader([(x, torch.arange(256) % 10)], batch_size=None)
    trainer(tmp_path, precision="bf16-mixed", max_steps=1).fit(module, batch)
    assert list(module.engine.local) == [""]


def test_an_earlier_checkpoint_of_a_solver_of_ones_own_goes_on():
    class Mine(ClosedForm):
        pass

    flat_state = {"mean": torch.eye(2), "weight": torch.ones(()), "inverse": torch.eye(2), "n": 3, "age": 1, "steps": 2}
    module = kfac(Mine(average=0.9))
    checkpoint = {"callbacks": {module.solver.state_key: {"state": {"1": flat_state}, "counts": {}}}}
    module.on_load_checkpoint(checkpoint)
    kept = evolved(module)["1"]["solver"]["preconditioner"]
    assert same(kept["average"], {"value": torch.eye(2), "weight": torch.ones(())}) and kept["steps"] == 2


def test_a_file_that_an_earlier_version_wrote_goes_on(tmp_path):
    """K-FAC with kept statistics, stopped after two of four epochs; the file has the weights that it came to."""
    path = ROOT / "tests" / "checkpoints" / "earlier.pt"
    solver, oracle = ClosedForm(average=0.9, refresh_every=4, warmup=1), WhitenedOracle(refresh_every=2, warmup=1)
    module = LocoPropModule(MLP(64, 6, 1), Classification(), solver, 0.01, 100.0, objective="squared", oracle=oracle)
    fit = trainer(tmp_path, max_epochs=4, limit_val_batches=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PL_GLOBAL_SEED", "3")  # which the drawn labels depend on
        fit.fit(module, digits(), ckpt_path=path, weights_only=True)
    assert fit.global_step == 4 * STEPS
    for name, expected in torch.load(path, weights_only=True)["expected"].items():
        torch.testing.assert_close(weights(module)[name], expected, rtol=1e-4, atol=1e-5)
