"""A batch that is not finite leaves everything as it was: local layers, the rest, statistics, and what is kept."""

import logging

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn
from torch.utils.data import DataLoader

from locoprop_lightning import LocoPropModule
from locoprop_lightning.callbacks import FitSummary
from locoprop_lightning.optimizers import LinearDecay
from locoprop_lightning.rest import Rest
from locoprop_lightning.solvers import ClosedForm, FixedPointIteration, GradientDescent, InnerOptimizer
from locoprop_lightning.tasks import Classification
from tests.support import flat, quiet_trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers"),
]
NORMS = {"layer_norm": nn.LayerNorm, "batch_norm": nn.BatchNorm1d, "plain": lambda n: nn.BatchNorm1d(n, affine=False)}


def network(norm="layer_norm"):
    return nn.Sequential(nn.Linear(6, 8), NORMS[norm](8), nn.Tanh(), nn.Linear(8, 3))


def module(net=None, solver=None, **arguments):
    settings = dict(lambda_a=5.0, lambda_r=10.0, rest_optimizer=lambda p: torch.optim.AdamW(p, lr=0.01))
    return LocoPropModule(net or network(), Classification(3), solver or FixedPointIteration(1), **settings | arguments)


def batches(count=6):
    x = torch.randn(count, 16, 6)
    return [(rows, rows[:, :3].argmax(1)) for rows in x]


def fit(model, data, *callbacks, **options):
    trainer = quiet_trainer(max_epochs=1, callbacks=list(callbacks), **options)
    trainer.fit(model, DataLoader(data, batch_size=None, shuffle=False))
    return trainer


def everything(model):
    """Weights, statistics, the state of both optimizers, and what solver and oracle keep."""
    states = {str(i): o.state_dict()["state"] for i, o in enumerate(model.trainer.optimizers)}
    kept = {n: {"solver": x.solver_state, "oracle": x.oracle_state} for n, x in model.engine.layers.items()}
    own = {name: x.clone() for name, x in model.network.state_dict().items() if "num_batches" not in name}
    return flat({"own": own, "kept": kept} | {f"o{i}": {str(k): v for k, v in s.items()} for i, s in states.items()})


class Watch(Callback):
    """Spoils a batch, in one entry or in all, and notes what changed with it."""

    def __init__(self, when, spoil):
        self.when = when
        self.spoil = spoil

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.before = everything(pl_module)
        if batch_idx in self.when:
            self.spoil(batch[0])

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        after = everything(pl_module)
        assert all(x.isfinite().all() for x in after.values())
        moved = {key for key, x in after.items() if not torch.equal(x, self.before.get(key, x))}
        assert not moved if batch_idx in self.when else {"/own/0.weight", "/own/3.weight"} <= moved


SPOILS = {
    "one_nan": lambda x: x[3, 2].fill_(torch.nan),
    "all_nan": lambda x: x.fill_(torch.nan),
    "infinite": lambda x: x[0].fill_(torch.inf),
}


@pytest.mark.parametrize("spoil", SPOILS.values(), ids=SPOILS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("when", [(0,), (2,), (2, 3)], ids=str)
def test_a_spoilt_batch_changes_nothing(norm, when, spoil):
    model = module(network(norm))
    fit(model, batches(), Watch(when, spoil))
    assert model.rest.skipped == (0 if norm == "plain" else len(when))
    assert all(counts == {"nonfinite": len(when)} for counts in model.engine.counts.values())


def test_it_is_said_once_and_told_in_the_end(caplog, capsys):
    caplog.set_level(logging.WARNING)
    fit(module(), batches(), FitSummary(), Watch((1, 2), SPOILS["one_nan"]))
    said = [record.message for record in caplog.records if "rest_optimizer" in record.message]
    assert len(said) == 1 and "not finite" in said[0] and "look at the inputs" in said[0]
    printed = capsys.readouterr().out
    assert "rest optimizer       2 of 6 gradients were not finite and left out" in printed
    assert "helps" not in printed
    fit(module(), batches(), FitSummary(), Watch((1, 2, 3, 4), SPOILS["one_nan"]))
    printed = capsys.readouterr().out
    assert "most of them were not finite: look at inputs and loss; a larger lambda_r may help" in printed
    assert "helps" not in printed
    fit(module(), batches(), FitSummary())
    assert "rest optimizer" not in capsys.readouterr().out


def test_a_run_with_a_spoilt_batch_is_one_without_it():
    data, found = batches(), []
    for spoilt in (True, False):
        torch.manual_seed(3)
        model = module(solver=ClosedForm(average=0.9), objective="squared")
        given = [*data[:2], (data[2][0] * torch.nan, data[2][1]), *data[2:]] if spoilt else data
        fit(model, given)
        found.append(model.network.state_dict())
    for name, p in found[0].items():
        assert torch.equal(p, found[1][name])


def test_the_count_goes_on_with_a_checkpoint(tmp_path):
    model = module()
    trainer = fit(
        model, batches(), Watch((1,), SPOILS["one_nan"]), enable_checkpointing=True, default_root_dir=tmp_path
    )
    trainer.save_checkpoint(tmp_path / "saved.ckpt")
    saved, other = torch.load(tmp_path / "saved.ckpt", weights_only=True), module()
    other.on_load_checkpoint(saved)
    assert other.rest.skipped == 1
    del saved["rest"]  # of an earlier version
    other.on_load_checkpoint(saved)
    assert other.rest.skipped == 0


def test_a_schedule_of_the_inner_rate_goes_on():
    """It steps with the rest optimizer, which must not have it wait for a gradient."""
    model = module(
        solver=InnerOptimizer(lambda p: torch.optim.SGD(p, lr=1e-3), 2),
        lr_scheduler=lambda o: LinearDecay(o, 0.0),
        scheduled="inner",
    )
    fit(model, batches(), Watch((0,), SPOILS["all_nan"]))
    assert model.trainer.optimizers[1].param_groups[0]["lr"] == 0.0


def test_a_rest_of_every_kind():
    """Sparse gradients, gradients too large for the square of their norm, frozen statistics, none at all."""
    tokens = nn.Embedding(5, 2, sparse=True)
    tokens(torch.tensor([1, 1, 3])).sum().backward()
    optimizer, rest, before = torch.optim.SGD(tokens.parameters(), lr=1.0), Rest(), tokens.weight.detach().clone()
    rest.look(tokens, [])
    rest.step(tokens, optimizer, {})
    assert rest.skipped == 0 and torch.equal(before[1] - 2, tokens.weight[1])
    linear = nn.Linear(2, 1)
    (linear(torch.ones(1, 2)) * 1e30).sum().backward()
    optimizer = torch.optim.SGD(linear.parameters(), lr=1e-30)
    rest.look(linear, [])
    rest.step(linear, optimizer, {})
    assert rest.skipped == 0 and linear.weight.grad is None
    frozen = nn.BatchNorm1d(2).eval()
    rest.begin(frozen)
    rest.look(frozen, [])
    rest.step(frozen, optimizer, {})
    assert rest.skipped == 0


def test_no_step_waits_for_the_device_but_after_the_solves(monkeypatch):
    """Looking at the gradients reads nothing: the flag is read when the solves have been judged."""
    reads, model = [], module(solver=GradientDescent(1))
    real = torch.Tensor.__bool__
    monkeypatch.setattr(torch.Tensor, "__bool__", lambda self: reads.append(self) or real(self))
    rest, net = Rest(), model.network
    rest.begin(net)
    net(torch.randn(4, 6)).sum().backward()
    rest.look(net, [])
    assert not reads
    rest.step(net, torch.optim.SGD(net.parameters(), lr=0.1), {})
    assert len(reads) == 1
