import copy
import io
import pickle
import re

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.optim import SGD, AdamW, Muon
from torch.optim.lr_scheduler import LinearLR

from locoprop_lightning import BackpropModule, UserError
from locoprop_lightning.cli import main
from locoprop_lightning.data import Digits
from locoprop_lightning.networks import MLP
from locoprop_lightning.optimizers import SplitOptimizer
from locoprop_lightning.tasks import Classification

STEPS = 5


def muon(params):
    return Muon(params, lr=0.02, weight_decay=0.1)


def adamw(params):
    return AdamW(params, lr=0.01)


def sgd(params):
    return SGD(params, lr=0.1, momentum=0.9)


def network(bias=True):
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(4, 6, bias=bias), nn.Tanh(), nn.Linear(6, 3, bias=bias)).double()


def linear(optimizer):
    return LinearLR(optimizer, 1.0, 0.1, total_iters=STEPS)


def run(net, optimizers, schedules=(), steps=STEPS, start=0):
    for step in range(start, start + steps):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(8, 4, generator=generator, dtype=torch.float64)
        y = torch.randint(3, (8,), generator=generator)
        for optimizer in optimizers:
            optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        for part in (*optimizers, *schedules):
            part.step()


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def halves(net):
    return [[p for p in net.parameters() if (p.ndim == 2) is matrix] for matrix in (True, False)]


@pytest.mark.parametrize("rules", [(muon, adamw), (sgd, adamw), (adamw, sgd)])
def test_equals_two_optimizers_under_a_schedule(rules):
    one, two = network(), network()
    start = copy.deepcopy(one)
    split = SplitOptimizer(one.parameters(), *rules)
    run(one, [split], [linear(split)])
    apart = [rule(half) for rule, half in zip(rules, halves(two), strict=True)]
    run(two, apart, [linear(optimizer) for optimizer in apart])
    assert same(one, two)
    assert not any(torch.equal(p, q) for p, q in zip(one.parameters(), start.parameters(), strict=True))
    rates = [group["lr"] for optimizer in apart for group in optimizer.param_groups]
    assert [group["lr"] for group in split.param_groups] == rates


@pytest.mark.parametrize("give", [list, iter, lambda p: [{"params": p}], lambda p: [{"params": [q]} for q in p]])
def test_ways_of_giving_parameters(give):
    one, two = network(), network()
    run(one, [SplitOptimizer(give(list(one.parameters())), muon, adamw)])
    run(two, [SplitOptimizer(two.parameters(), muon, adamw)])
    assert same(one, two)


def test_named_parameters():
    one, two = network(), network()
    split = SplitOptimizer(one.named_parameters(), muon, adamw)
    assert [group["param_names"] for group in split.param_groups] == [["0.weight", "2.weight"], ["0.bias", "2.bias"]]
    run(one, [split])
    run(two, [SplitOptimizer(two.parameters(), muon, adamw)])
    assert same(one, two)


def test_dimensions_decide():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Linear(3, 3), nn.BatchNorm1d(3), nn.PReLU())
    scalar = nn.Parameter(torch.tensor(1.0))
    split = SplitOptimizer([*net.parameters(), scalar], muon, adamw)
    matrix, other = split.param_groups
    assert [p.ndim for p in matrix["params"]] == [2]
    assert [p.ndim for p in other["params"]] == [4, 1, 1, 1, 1, 1, 0]


@pytest.mark.parametrize("matrix", [True, False], ids=["matrices only", "no matrices"])
def test_an_empty_half(matrix):
    one, two = network(), network()
    own = halves(one)[not matrix]
    split = SplitOptimizer(own, muon, adamw)
    assert len(split.param_groups) == 1
    reference = (muon if matrix else adamw)(halves(two)[not matrix])
    for net, optimizer in ((one, split), (two, reference)):
        run(net, [optimizer], [linear(optimizer)])
    assert same(one, two)
    split.add_param_group({"params": halves(one)[matrix]})  # into the half that was empty
    assert len(split.param_groups) == 2
    before = copy.deepcopy(one)
    run(one, [split])
    assert not any(torch.equal(p, q) for p, q in zip(one.parameters(), before.parameters(), strict=True))


def test_no_parameters_at_all():
    with pytest.raises(ValueError, match="empty parameter list"):
        SplitOptimizer([], muon, adamw)


def test_options_of_groups():
    net = network()
    groups = [
        {"params": net[0].parameters(), "lr": 0.5, "name": "first"},
        {"params": net[2].weight, "momentum": 0.5},
        {"params": [net[2].bias], "betas": (0.5, 0.5)},
    ]
    split = SplitOptimizer(groups, muon, adamw)
    assert [(g["lr"], g.get("name")) for g in split.param_groups] == [
        (0.5, "first"),
        (0.02, None),
        (0.5, "first"),
        (0.01, None),
    ]
    assert split.param_groups[1]["momentum"] == 0.5 and split.param_groups[3]["betas"] == (0.5, 0.5)
    run(net, [split])


@pytest.mark.parametrize(("option", "value", "child"), [("momentum", 0.5, "AdamW"), ("betas", (0.5, 0.5), "Muon")])
def test_option_that_one_half_lacks(option, value, child):
    net = network()
    with pytest.raises(
        UserError, match=f"SplitOptimizer: {child}, which trains part of a group, has no option {option}="
    ):
        SplitOptimizer([{"params": net.parameters(), option: value}], muon, adamw)
    split = SplitOptimizer(net[0].parameters(), muon, adamw)
    with pytest.raises(UserError, match=option):
        split.add_param_group({"params": net[2].parameters(), option: value})
    assert len(split.param_groups) == 2


def test_add_param_group_keeps_the_order_of_groups():
    one, two = network(), network()
    split = SplitOptimizer(one[0].parameters(), muon, adamw)
    split.add_param_group({"params": one[2].parameters(), "lr": 0.5})
    assert [group["lr"] for group in split.param_groups] == [0.02, 0.01, 0.5, 0.5]
    apart = [muon([two[0].weight]), adamw([two[0].bias])]
    apart[0].add_param_group({"params": [two[2].weight], "lr": 0.5})
    apart[1].add_param_group({"params": [two[2].bias], "lr": 0.5})
    run(one, [split])
    run(two, apart)
    assert same(one, two)
    with pytest.raises(ValueError, match="more than one parameter group"):
        split.add_param_group({"params": [one[0].bias]})

    resumed = SplitOptimizer(two[0].parameters(), muon, adamw)
    resumed.add_param_group({"params": two[2].parameters()})
    resumed.load_state_dict(copy.deepcopy(split.state_dict()))
    for net, optimizer in ((one, split), (two, resumed)):
        run(net, [optimizer], start=STEPS)
    assert same(one, two)


def saved_and_loaded(net, split):
    file = io.BytesIO()
    torch.save(split.state_dict(), file)
    file.seek(0)
    other = copy.deepcopy(net)
    fresh = SplitOptimizer(other.parameters(), lambda p: Muon(p, lr=9.0), lambda p: AdamW(p, lr=9.0))
    schedule = linear(fresh)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    return other, fresh, schedule


def reloaded_into_itself(net, split):
    """A state dict loaded over a later state."""
    saved, weights = copy.deepcopy(split.state_dict()), copy.deepcopy(net)
    other, fresh = copy.deepcopy((net, split))
    run(other, [fresh], start=100)
    with torch.no_grad():
        for p, q in zip(other.parameters(), weights.parameters(), strict=True):
            p.copy_(q)
    fresh.load_state_dict(saved)
    return other, fresh, linear(fresh)


def deep_copied(net, split):
    other, copied = copy.deepcopy((net, split))
    return other, copied, linear(copied)


def pickled(net, split):
    other, loaded = pickle.loads(pickle.dumps((net, split)))
    return other, loaded, linear(loaded)


@pytest.mark.parametrize("again", [saved_and_loaded, reloaded_into_itself, deep_copied, pickled])
def test_goes_on_bit_for_bit(again):
    net = network()
    split = SplitOptimizer(net.parameters(), lambda p: muon(p), lambda p: adamw(p))
    schedule = linear(split)
    run(net, [split], [schedule], steps=2)
    kept = copy.deepcopy(net)
    other, resumed, other_schedule = again(net, split)
    other_schedule.load_state_dict(schedule.state_dict())
    assert same(other, kept)
    assert [g["lr"] for g in resumed.param_groups] == [g["lr"] for g in split.param_groups]
    assert split.param_groups[0]["lr"] == pytest.approx(0.02 * 0.64)
    assert resumed.state_dict()["state"].keys() == {0, 1, 2, 3}
    run(other, [resumed], [other_schedule], start=2)
    assert same(net, kept), "the copy is not the original's"
    run(net, [split], [schedule], start=2)
    assert same(net, other) and not same(net, kept)


def test_closure_is_called_once_with_gradients_enabled():
    net = network()
    split = SplitOptimizer(net.parameters(), muon, adamw)
    calls = []

    def closure():
        calls.append(torch.is_grad_enabled())
        loss = net(torch.ones(2, 4, dtype=torch.float64)).square().sum()
        loss.backward()
        return loss.item()

    before = copy.deepcopy(net)
    loss = split.step(closure)
    assert calls == [True] and loss == before(torch.ones(2, 4, dtype=torch.float64)).square().sum().item()
    assert not same(net, before)
    split.zero_grad()
    assert all(p.grad is None for p in net.parameters())


def test_lightning_counts_one_step_a_batch(tmp_path):
    module = BackpropModule(MLP(64, 16, 1), Classification(), lambda p: SplitOptimizer(p, muon, adamw), linear)
    trainer = Trainer(
        max_epochs=2,
        log_every_n_steps=1,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, Digits(batch_size=500, seed=0))
    assert trainer.global_step == 2 * 3
    (split,) = trainer.optimizers
    assert [group["lr"] for group in split.param_groups] == pytest.approx([0.002, 0.001])
    assert len(split.state) == 4


YAML = """
trainer:
  max_epochs: 1
  log_every_n_steps: 1
  accelerator: cpu
  enable_progress_bar: false
  limit_val_batches: 1
  logger: {class_path: lightning.pytorch.loggers.CSVLogger, init_args: {save_dir: .}}
model:
  class_path: locoprop_lightning.BackpropModule
  init_args:
    network:
      class_path: locoprop_lightning.networks.MLP
      init_args: {in_features: 64, hidden_features: 16, hidden_layers: 1}
    task: {class_path: locoprop_lightning.tasks.Classification}
    optimizer:
      class_path: locoprop_lightning.optimizers.SplitOptimizer
      init_args:
        matrix: {class_path: torch.optim.Muon, init_args: {lr: 0.003, momentum: 0.9}}
        other: {class_path: torch.optim.AdamW, init_args: {lr: 0.002}}
    lr_scheduler:
      class_path: torch.optim.lr_scheduler.LinearLR
      init_args: {start_factor: 1.0, end_factor: 0.5, total_iters: 3}
data: {class_path: locoprop_lightning.data.Digits, init_args: {batch_size: 500}}
"""


@pytest.mark.filterwarnings("ignore:The dirpath has changed from")
def test_from_yaml_and_resumed(folder, capsys):
    (folder / "config.yaml").write_text(YAML)
    main(["fit", "--config", "config.yaml"])
    told = re.sub(r"[\s┃│]+", " ", capsys.readouterr().out)  # the table folds its cells
    assert "Muon (lr 0.003)" in told and "AdamW (lr 0.002)" in told
    (path,) = folder.rglob("step=3.ckpt")
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["global_step"] == 3
    (state,) = checkpoint["optimizer_states"]
    assert [group["lr"] for group in state["param_groups"]] == pytest.approx([0.0015, 0.001])
    assert state["param_groups"][0]["momentum"] == 0.9 and "betas" in state["param_groups"][1]
    assert set(state["state"][0]) == {"momentum_buffer"} and "exp_avg_sq" in state["state"][2]
    main(["fit", "--config", "config.yaml", "--trainer.max_epochs", "2", "--ckpt_path", str(path)])
    resumed = [torch.load(p, weights_only=True) for p in folder.rglob("*.ckpt")]
    assert max(c["global_step"] for c in resumed) == 6


def test_excluded_matrices_go_to_the_other():
    one, two = network(), network()
    split = SplitOptimizer(one.named_parameters(), muon, adamw, exclude=["2"])
    run(one, [split])
    parts = [[two[0].weight], [two[0].bias, two[2].weight, two[2].bias]]
    run(two, [rule(part) for rule, part in zip((muon, adamw), parts, strict=True)])
    assert same(one, two)
    assert [len(group["params"]) for group in split.param_groups] == [1, 3]


@pytest.mark.parametrize("pattern", ["2.weight", "2", "2.*", "*.weight"])
def test_patterns_are_of_parameters_or_their_layers(pattern):
    split = SplitOptimizer(network().named_parameters(), muon, adamw, exclude=[pattern])
    names = [name for child in split.children[:1] for group in child.param_groups for name in group["param_names"]]
    assert names == ([] if pattern == "*.weight" else ["0.weight"])


def test_exclusions_hold_after_a_resume_from_what_had_no_names():
    one, two = network(), network()
    split = SplitOptimizer(one.named_parameters(), muon, adamw, exclude=["2"])
    run(one, [split], steps=2)
    state = copy.deepcopy(split.state_dict())
    for group in state["param_groups"]:
        group.pop("param_names")
    two.load_state_dict(one.state_dict())
    again = SplitOptimizer(two.named_parameters(), muon, adamw, exclude=["2"])
    again.load_state_dict(state)
    for optimizer, net in ((split, one), (again, two)):
        run(net, [optimizer], start=2, steps=2)
    assert same(one, two)


def test_what_exclusions_refuse():
    with pytest.raises(UserError, match="have no names; give network.named_parameters"):
        SplitOptimizer(network().parameters(), muon, adamw, exclude=["2"])
    with pytest.raises(UserError, match="no parameter is named 'head'; there are 0.weight, 0.bias"):
        SplitOptimizer(network().named_parameters(), muon, adamw, exclude=["head"])


@pytest.mark.parametrize("local", [False, True])
def test_modules_give_names_where_they_are_asked_for(local):
    from locoprop_lightning import LocoPropModule
    from locoprop_lightning.solvers import ClosedForm

    net = MLP(in_features=64, hidden_features=8, hidden_layers=1)
    names = [name for name, p in net.named_parameters() if p.ndim == 2]

    def make(params):
        return SplitOptimizer(params, sgd, adamw, exclude=[names[-1]])

    if local:
        module = LocoPropModule(net, Classification(), ClosedForm(), 1.0, 1.0, objective="squared", optimizer=make)
        (split, _), _ = module.configure_optimizers()
    else:
        split = BackpropModule(net, Classification(), make).configure_optimizers()
    first, other = ([n for g in child.param_groups for n in g["param_names"]] for child in split.children)
    assert first == names[:-1] and names[-1] in other
