"""Batches with holes: what does not count changes nothing."""

from functools import partial

import pytest
import torch
from lightning.pytorch import seed_everything
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader

from locoprop_lightning import BackpropModule, LocoPropModule
from locoprop_lightning.oracles import GradientOracle, RMSOracle, SpectralOracle, WhitenedOracle
from locoprop_lightning.solvers import ClosedForm, FixedPointIteration, Majorization
from locoprop_lightning.tasks import Classification, LanguageModelling
from tests.support import quiet_trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
]
VOCABULARY, LENGTH, PADDED = 7, 5, 12


class Causal(nn.Module):
    """Tokens that see earlier ones: a cumulative mean between two layers, in a width of its own."""

    def __init__(self):
        super().__init__()
        self.table, self.first = nn.Embedding(VOCABULARY, 6), nn.Linear(6, 8)
        self.second, self.head = nn.Linear(8, 8, bias=False), nn.Linear(8, VOCABULARY)

    def forward(self, x):
        hidden = self.first(self.table(x)).tanh()
        steps = torch.arange(1, x.shape[1] + 1).to(hidden)
        return self.head(self.second(hidden.cumsum(1) / steps[:, None]).relu() + hidden)


def sequences(padded):
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(VOCABULARY, (24, LENGTH), generator=generator)
    y = torch.randint(VOCABULARY, (24, LENGTH), generator=generator)
    if padded:
        more = torch.randint(VOCABULARY, (24, PADDED - LENGTH), generator=generator)
        x, y = torch.cat([x, more], 1), torch.cat([y, torch.full_like(more, -100)], 1)
    return list(zip(x, y, strict=True))


def fit(module, data, size=8, **options):
    trainer = quiet_trainer(max_epochs=1, precision="64-true", log_every_n_steps=1, **options)
    trainer.fit(module, DataLoader(data, size))
    return trainer


def network(kind=Causal):
    seed_everything(0, verbose=False)
    return kind().double()


KEPT = partial(ClosedForm, average=0.9, refresh_every=2)
SQUARED, RELATIVE = dict(objective="squared"), dict(damping="relative", lambda_r=0.1)
METHODS = {
    "foof": (ClosedForm, GradientOracle, dict(lambda_a=5.0, lambda_r=1.0, **SQUARED)),
    "kept": (KEPT, RMSOracle, dict(lambda_a=0.1, **RELATIVE, **SQUARED)),
    "whitened": (KEPT, partial(WhitenedOracle, samples=0), dict(lambda_a=0.1, **RELATIVE, **SQUARED)),
    "spectral": (KEPT, SpectralOracle, dict(lambda_a=0.1, **RELATIVE, **SQUARED)),
    "fpi": (partial(FixedPointIteration, 4), GradientOracle, dict(lambda_a=50.0, lambda_r=500.0)),
    "majorization": (partial(Majorization, 2), RMSOracle, dict(lambda_a=0.1, lambda_r=1.0)),
}


class Dead(nn.Module):
    """Most of its tokens have no unit of the first two layers that is alive."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, 6)
        self.first, self.second, self.head = nn.Linear(6, 2), nn.Linear(2, 2), nn.Linear(2, VOCABULARY)
        with torch.no_grad():
            self.first.bias.fill_(-0.5)

    def forward(self, x):
        hidden = nn.functional.dropout(self.first(self.table(x)).relu(), 0.0, self.training)
        return self.head(self.second(hidden).relu())


@pytest.mark.parametrize("kind", [Causal, Dead])
@pytest.mark.parametrize("name", METHODS)
def test_a_padded_batch_trains_as_one_without_padding(name, kind):
    solver, oracle, settings = METHODS[name]
    found = []
    for padded in (False, True):
        module = LocoPropModule(network(kind), LanguageModelling(), solver(), oracle=oracle(), **settings)
        trainer = fit(module, sequences(padded))
        found.append((dict(module.network.named_parameters()), trainer.callback_metrics))
    (plain, metrics), (holes, others) = found
    for key, value in plain.items():
        torch.testing.assert_close(holes[key], value, rtol=1e-10, atol=1e-10, msg=key)
    for key in ("train/loss", "train/perplexity"):
        torch.testing.assert_close(others[key], metrics[key])
    start = dict(network(kind).named_parameters())
    assert all((plain[key] - start[key]).norm() > 1e-4 for key in ("first.weight", "second.weight", "head.weight"))


def test_back_propagation_of_a_padded_batch():
    found = []
    for padded in (False, True):
        module = BackpropModule(network(), LanguageModelling(), lambda p: torch.optim.SGD(p, lr=0.1))
        fit(module, sequences(padded))
        found.append(dict(module.network.named_parameters()))
    for key, value in found[0].items():
        torch.testing.assert_close(found[1][key], value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("share", [0, 50, 95])
def test_labels_for_the_fisher_are_drawn_where_labels_count(share):
    """The first step of the head, by K-FAC, does not grow with the padding."""
    lengths = []
    for padding in (0, share):
        extra = LENGTH * padding // (100 - padding)
        data = [
            (torch.cat([x, x.new_zeros(extra)]), torch.cat([y, y.new_full((extra,), -100)]))
            for x, y in sequences(padded=False)
        ]
        module = LocoPropModule(
            network(),
            LanguageModelling(),
            ClosedForm(),
            lambda_a=0.03,
            lambda_r=0.1,
            damping="relative",
            oracle=WhitenedOracle(damping=1.0, samples=20),
            **SQUARED,
        )
        start = module.network.head.weight.detach().clone()
        fit(module, data, size=24, max_steps=1)
        lengths.append((module.network.head.weight - start).norm().item())
    assert lengths[1] == pytest.approx(lengths[0], rel=0.1)


def test_a_batch_in_which_nothing_counts_moves_nothing():
    data = [(x, torch.full_like(y, -100)) for x, y in sequences(padded=False)]
    rest = dict(rest_optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
    for oracle in (RMSOracle(), WhitenedOracle(), SpectralOracle()):
        module = LocoPropModule(
            network(), LanguageModelling(), KEPT(), oracle=oracle, lambda_a=0.1, **RELATIVE, **SQUARED, **rest
        )
        trainer = fit(module, data)
        assert trainer.callback_metrics["train/loss"] == 0
        for a, b in zip(module.network.parameters(), network().parameters(), strict=True):
            assert torch.equal(a, b)


class Pixels(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 3, 1)

    def forward(self, x):
        return self.head(self.first(x).tanh())


def test_labels_of_pixels(tmp_path):
    """Dense targets [n, H, W] of logits [n, C, H, W], some of them without a label, all the way through."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, 1, 6, 5, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (12, 6, 5), generator=generator)
    y[:, :2] = 255
    task = Classification(3, ignore_index=255)
    output = Pixels().double()(x)
    assert task.terms(y) == 12 * 20 and not task.complete(y) and task.complete(y[:, 2:])
    torch.testing.assert_close(task.loss(output, y), F.cross_entropy(output, y, ignore_index=255))
    drawn = task.hide(task.sample_labels(output, generator), y)
    assert drawn.shape == y.shape and torch.equal(drawn == 255, y == 255)
    metrics = task.metrics()
    metrics.update(task.score(output), y)
    counts = y != 255
    expected = (task.predict(output) == y)[counts].double().mean()
    assert metrics.compute()["accuracy"].item() == pytest.approx(expected.item())
    seed_everything(0, verbose=False)
    module = LocoPropModule(
        Pixels().double(),
        task,
        ClosedForm(),
        lambda_a=0.1,
        lambda_r=0.1,
        damping="relative",
        oracle=WhitenedOracle(damping=1.0),
        **SQUARED,
    )
    trainer = fit(module, list(zip(x, y, strict=True)), size=6)
    data = DataLoader(list(zip(x, y, strict=True)), 6)
    (told,) = trainer.validate(module, data, verbose=False)
    assert told["val/loss"] == pytest.approx(task.loss(module(x), y).item())
    assert list(module.engine.local) == ["first", "head"]


@pytest.mark.parametrize("name", METHODS)
def test_pixels_without_a_label_are_no_rows(name):
    """Convolutions whose patches lie apart train as linear layers do on those patches that have a label."""
    solver, oracle, settings = METHODS[name]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(24, 1, 3, 12, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (24, 1, 4), generator=generator)
    hidden = torch.rand(24, 4, generator=generator).argsort(1) < 3  # one of four pixels of each image has a label
    patches = x.unflatten(3, (4, 3)).transpose(2, 3).flatten(3)[:, 0][~hidden]
    images = list(zip(x, y.masked_fill(hidden[:, None], 255), strict=True))
    rows = list(zip(patches, y[:, 0][~hidden], strict=True))
    seed_everything(0, verbose=False)
    linear = nn.Sequential(nn.Linear(9, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    convolutions = nn.Sequential(nn.Conv2d(1, 4, 3, stride=3), nn.Tanh(), nn.Conv2d(4, 3, 1)).double()
    with torch.no_grad():
        for own, other in zip(convolutions.parameters(), linear.parameters(), strict=True):
            own.copy_(other.reshape(own.shape))
    start = convolutions[0].weight.clone()
    for net, data in ((linear, rows), (convolutions, images)):
        fit(LocoPropModule(net, Classification(3, ignore_index=255), solver(), oracle=oracle(), **settings), data)
    for own, other in zip(convolutions.parameters(), linear.parameters(), strict=True):
        torch.testing.assert_close(own, other.reshape(own.shape), rtol=1e-10, atol=1e-10)
    assert (convolutions[0].weight - start).norm() > 1e-3


def test_rows_that_change_places_are_not_taken_for_others():
    """Behind a roll a row's follower is another row's."""

    class Rolled(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.head = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x):
            return self.head(self.first(x).tanh().roll(1, 1)).movedim(-1, 1)

    x, y = torch.randn(8, 10, 4, dtype=torch.float64), torch.arange(80).reshape(8, 10) % 3
    y[:, 5:] = -100
    module = LocoPropModule(Rolled().double(), Classification(3), ClosedForm(), 0.1, 0.1, **SQUARED)
    fit(module, list(zip(x, y, strict=True)))
    with module.engine.tape(module.network, module.communicator).of(complete=False) as tape:
        output = module(x)
    module.task.loss(output, y).backward()
    assert [record.n for record in tape.records.values()] == [40, 40]


def test_layers_that_follow_themselves_and_each_other():
    """One layer is called three times in a row, with a second one between."""

    class Again(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.one, self.other = nn.Embedding(VOCABULARY, 6), nn.Linear(6, 6), nn.Linear(6, 6)
            self.head = nn.Linear(6, VOCABULARY)

        def forward(self, x):
            hidden = self.one(self.one(self.table(x)).relu()).relu()
            return self.head(self.one(self.other(hidden).relu()).relu())

    found = []
    for padded in (False, True):
        settings = dict(oracle=RMSOracle(), lambda_a=0.1, **RELATIVE, **SQUARED)
        module = LocoPropModule(network(Again), LanguageModelling(), ClosedForm(), **settings)
        fit(module, sequences(padded))
        found.append(dict(module.network.named_parameters()))
    assert all(p.isfinite().all() for p in found[1].values())
    torch.testing.assert_close(found[1]["head.weight"], found[0]["head.weight"], rtol=1e-10, atol=1e-10)
