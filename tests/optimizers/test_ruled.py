import copy
import pickle
import re

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.optim import SGD, AdamW, Muon

from locoprop_lightning import BackpropModule, LocoPropModule, UserError
from locoprop_lightning.cli import main
from locoprop_lightning.data import Digits
from locoprop_lightning.networks import MLP
from locoprop_lightning.optimizers import LinearDecay, Rule, RuledOptimizer, SplitOptimizer, owned_parameters
from locoprop_lightning.optimizers.joined import describe
from locoprop_lightning.solvers import ClosedForm
from locoprop_lightning.tasks import Classification


def muon(params):
    return Muon(params, lr=0.02, weight_decay=0.1)


def adamw(params):
    return AdamW(params, lr=0.01)


def sgd(params):
    return SGD(params, lr=0.5)


class Block(nn.Module):
    """One parameter of each kind, and two that look like weights of convolutions: ConvNeXt's scale, and positions."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.conv = nn.Conv2d(2, 8, 3)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 3)
        self.gamma = nn.Parameter(torch.full((8, 1, 1), 0.1))
        self.positions = nn.Parameter(torch.randn(1, 16, 8))
        self.scale = nn.Parameter(torch.ones(()))


def taken(optimizer):
    """Names of the parameters by optimizer, rate and decay."""
    return {
        (type(child).__name__, group["lr"], group["weight_decay"]): group["param_names"]
        for child in optimizer.children
        for group in child.param_groups
    }


def test_the_last_rule_that_takes_a_parameter_holds():
    rules = [
        Rule(kinds=["matrix"], optimizer=muon),
        Rule(match=["head", "embedding.*"], lr=0.3),
        Rule(kinds=["normalization", "bias"], weight_decay=0.0),
        Rule(match=["*.weight"], kinds=["convolution"], optimizer=sgd, weight_decay=0.2),
        Rule(match=["gamma"], optimizer=sgd),
    ]
    optimizer = RuledOptimizer(owned_parameters(Block()), adamw, rules)
    assert taken(optimizer) == {
        ("AdamW", 0.01, 0.01): ["positions", "scale"],
        ("AdamW", 0.3, 0.01): ["embedding.weight", "head.weight"],
        ("AdamW", 0.01, 0.0): ["conv.bias", "norm.weight", "norm.bias", "head.bias"],
        ("SGD", 0.5, 0.2): ["conv.weight"],
        ("SGD", 0.5, 0): ["gamma"],
    }
    assert [describe(optimizer, m) for m in Block().children()] == [""] * 4  # another network's


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("matrix", ["embedding.weight", "head.weight"]),
        ("convolution", ["conv.weight"]),
        ("embedding", ["embedding.weight"]),
        ("normalization", ["norm.weight", "norm.bias"]),
        ("bias", ["conv.bias", "norm.bias", "head.bias"]),
        ("vector", ["scale", "conv.bias", "norm.weight", "norm.bias", "head.bias"]),
    ],
)
def test_kinds(kind, names):
    block = Block()
    optimizer = RuledOptimizer(owned_parameters(block), adamw, [Rule(kinds=[kind], lr=0.3)])
    assert taken(optimizer)["AdamW", 0.3, 0.01] == names
    sums = [describe(optimizer, m) for m in (block.conv, block.head)]
    assert (
        sums
        == {
            "matrix": ["AdamW (lr 0.01)", "AdamW (lr 0.01) + AdamW (lr 0.3)"],
            "convolution": ["AdamW (lr 0.01) + AdamW (lr 0.3)", "AdamW (lr 0.01)"],
            "embedding": ["AdamW (lr 0.01)"] * 2,
            "normalization": ["AdamW (lr 0.01)"] * 2,
            "bias": ["AdamW (lr 0.01) + AdamW (lr 0.3)"] * 2,
            "vector": ["AdamW (lr 0.01) + AdamW (lr 0.3)"] * 2,
        }[kind]
    )


@pytest.mark.parametrize("give", [owned_parameters, lambda m: m.named_parameters(), lambda m: m.parameters()])
def test_scales_and_positions_are_no_convolutions(give):
    """By their module where it is known, by their shape where it is not."""
    block = Block()
    split = SplitOptimizer(give(block), sgd, adamw, convolutions=True)
    first = {id(p) for group in split.children[0].param_groups for p in group["params"]}
    assert first == {id(block.embedding.weight), id(block.conv.weight), id(block.head.weight)}
    by_shape = RuledOptimizer(give(block), adamw, [Rule(kinds=["convolution"], lr=0.3)])
    assert [id(p) for g in by_shape.param_groups if g["lr"] == 0.3 for p in g["params"]] == [id(block.conv.weight)]


def test_modules_tell_what_shapes_do_not():
    """A table of positions [4, 4, 8] of no convolution; a module of this package passes the modules on."""

    class Table(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Flatten(), nn.Linear(64, 10))
            self.table = nn.Parameter(torch.randn(4, 4, 8))

    network = Table()
    module = BackpropModule(network, Classification(), lambda p: SplitOptimizer(p, sgd, adamw, convolutions=True))
    split = module.configure_optimizers()
    assert [g["param_names"] for g in split.children[1].param_groups] == [["table", "1.bias"]]
    inner = BackpropModule(
        network,
        Classification(),
        lambda p: RuledOptimizer(
            p, lambda q: SplitOptimizer(q, sgd, adamw, True), [Rule(kinds=["bias"], optimizer=sgd)]
        ),
    ).configure_optimizers()
    assert [g["param_names"] for g in inner.param_groups] == [["1.weight"], ["table"], ["1.bias"]]
    assert describe(inner, network) == "AdamW (lr 0.01)"


def test_what_rules_refuse():
    block = Block()
    named = owned_parameters(block)
    for rules, message in [
        ([Rule(match=["hed"], lr=1.0)], r"Rule\(match=\['hed'\], lr=1.0\): no parameter is named 'hed'; there are ga"),
        ([Rule(match=["gamma"], kinds=["bias"])], r"Rule\(match=\['gamma'\], kinds=\['bias'\]\): takes no parameter"),
        ([Rule(match=["head"], optimizer=torch.optim.Rprop, weight_decay=0.1)], "Rprop has no setting weight_decay"),
    ]:
        with pytest.raises(UserError, match=message):
            RuledOptimizer(named, adamw, rules)
    with pytest.raises(UserError, match="the parameters have no names"):
        RuledOptimizer(block.parameters(), adamw, [Rule(match=["head"])])
    with pytest.raises(UserError, match=r"modules are not known; give owned_parameters\(network\)"):
        RuledOptimizer(block.named_parameters(), adamw, [Rule(kinds=["embedding"])])
    with pytest.raises(UserError, match=r"kinds='norms'\): take one of matrix, "):
        Rule(kinds=["norms"])
    with pytest.raises(UserError, match=r"Rule\(\): name parameters by match or kinds"):
        Rule(lr=0.1)
    with pytest.raises(UserError, match=r"Rule\(match='head'\): give a list"):
        Rule(match="head")
    with pytest.raises(UserError, match=r"rules=\[\{'kinds': \['bias'\]\}\]\): give rules, such as"):
        RuledOptimizer(named, adamw, [{"kinds": ["bias"]}])


def steps(network, optimizer, count, start=0):
    for step in range(start, start + count):
        generator = torch.Generator().manual_seed(step)
        optimizer.zero_grad()
        x = torch.randn(8, 4, generator=generator, dtype=torch.float64)
        nn.functional.cross_entropy(network(x), torch.randint(3, (8,), generator=generator)).backward()
        optimizer.step()


def small():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3)).double()


def test_equals_optimizers_of_their_own_and_goes_on_bit_for_bit():
    rules = [
        Rule(kinds=["matrix"], optimizer=muon),
        Rule(match=["2"], lr=0.003),
        Rule(match=["1"], optimizer=lambda p: SGD(p, momentum=0.9), weight_decay=0.1),
    ]
    one, two = small(), small()
    ruled = RuledOptimizer(owned_parameters(one), adamw, rules)
    apart = [
        muon([two[0].weight]),
        AdamW([{"params": [two[0].bias]}, {"params": two[2].parameters(), "lr": 0.003}], lr=0.01),
        SGD(two[1].parameters(), momentum=0.9, weight_decay=0.1),
    ]
    steps(one, ruled, 3)
    saved, weights = copy.deepcopy(ruled.state_dict()), copy.deepcopy(one)
    copied = pickle.loads(pickle.dumps((one, ruled)))
    steps(one, ruled, 3, start=3)
    for step in range(6):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(8, 4, generator=generator, dtype=torch.float64)
        two.zero_grad()
        nn.functional.cross_entropy(two(x), torch.randint(3, (8,), generator=generator)).backward()
        for optimizer in apart:
            optimizer.step()
    resumed = RuledOptimizer(owned_parameters(weights), adamw, rules)
    resumed.load_state_dict(saved)
    steps(weights, resumed, 3, start=3)
    steps(*copied, 3, start=3)
    for other in (two, weights, copied[0]):
        assert all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))


def trainer(tmp_path, **arguments):
    return Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        limit_val_batches=0,
        callbacks=[ModelCheckpoint(tmp_path, save_last=True)],
        **{"max_epochs": 1} | arguments,
    )


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.filterwarnings("ignore:The dirpath has changed from")
def test_schedules_and_checkpoints_reach_all_rules_of_both_optimizers(tmp_path, capsys):
    def module(rate=0.2):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.LayerNorm(8), nn.Linear(8, 10))
        return LocoPropModule(
            network,
            Classification(),
            ClosedForm(),
            30.0,
            10.0,
            objective="squared",
            optimizer=lambda p: RuledOptimizer(p, lambda q: SGD(q, lr=1.0), [Rule(match=["3"], lr=0.5)]),
            rest_optimizer=lambda p: RuledOptimizer(
                p, adamw, [Rule(kinds=["normalization"], lr=rate), Rule(match=["2.bias"], optimizer=sgd)]
            ),
            lr_scheduler=lambda o: LinearDecay(o, end_factor=0.0, total_steps=12),
        )

    first = trainer(tmp_path)
    first.fit(module(), Digits(batch_size=250, seed=0))
    told = unfolded(capsys.readouterr().out)
    for text in ("SGD(lr1)", "SGD(lr0.5)", "AdamW(lr0.2)+SGD(lr0.5)"):
        assert text in told, told
    rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in first.optimizers]
    assert rates == [pytest.approx([0.5, 0.25]), pytest.approx([0.005, 0.1, 0.25])]  # 6 of 12 steps
    whole = module()
    trainer(tmp_path / "whole", max_epochs=2).fit(whole, Digits(batch_size=250, seed=0))
    halved = module()
    path = str(tmp_path / "last.ckpt")
    trainer(tmp_path / "again", max_epochs=2).fit(halved, Digits(batch_size=250, seed=0), ckpt_path=path)
    for p, q in zip(whole.parameters(), halved.parameters(), strict=True):
        assert torch.equal(p, q)
    other = module()
    other._rest_optimizer = lambda p: RuledOptimizer(p, adamw, [Rule(match=["2.bias"], optimizer=sgd)])
    with pytest.raises(UserError, match=r"AdamW 4\+1/SGD 1 \(6 parameters\), not by .*AdamW 5/SGD 1"):
        trainer(tmp_path / "other", max_epochs=2).fit(other, Digits(batch_size=250, seed=0), ckpt_path=path)


def unfolded(table):
    """The fifth column of the table of layers, which has a sixth where there are notes and room."""
    rows = [line.split("│") for line in table.splitlines() if line.count("│") in (6, 7)]
    return re.sub(r"\s", "", "".join(row[5] if row[1].strip() == "" else "; " + row[5] for row in rows))


YAML = """
trainer: {max_steps: 2, accelerator: cpu, enable_progress_bar: false, limit_val_batches: 0, logger: false}
model:
  class_path: locoprop_lightning.BackpropModule
  init_args:
    network:
      class_path: locoprop_lightning.networks.MLP
      init_args: {in_features: 64, hidden_features: 16, hidden_layers: 1}
    task: {class_path: locoprop_lightning.tasks.Classification}
    optimizer:
      class_path: locoprop_lightning.optimizers.RuledOptimizer
      init_args:
        optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 0.002}}
        rules:
          - kinds: [matrix]
            optimizer: {class_path: torch.optim.Muon, init_args: {lr: 0.003, momentum: 0.9}}
          - {match: ["3"], lr: 0.04, weight_decay: 0}
data: {class_path: locoprop_lightning.data.Digits, init_args: {batch_size: 500}}
"""


@pytest.mark.filterwarnings("ignore:The dirpath has changed from")
def test_from_yaml(folder, capsys):
    (folder / "config.yaml").write_text(YAML)
    main(["fit", "--config", "config.yaml"])
    told = unfolded(capsys.readouterr().out)
    assert "AdamW(lr0.002)+Muon(lr0.003)" in told and "AdamW(lr0.04)" in told


def test_a_pattern_of_the_rest_that_nothing_has_is_named(tmp_path):
    network = MLP(in_features=64, hidden_features=8, hidden_layers=1)
    rules = [Rule(match=["nrom*"], lr=0.1)]
    module = LocoPropModule(
        network,
        Classification(),
        ClosedForm(),
        1.0,
        1.0,
        "squared",
        rest_optimizer=lambda p: RuledOptimizer(p, sgd, rules),
    )
    with pytest.raises(UserError, match=r"no parameter is named 'nrom\*'; there are 1.weight"):
        module.configure_optimizers()
