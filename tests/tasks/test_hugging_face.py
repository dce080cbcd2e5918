"""Mappings as batches, objects as outputs, labels inside the model."""

from functools import partial

import pytest
import torch
from lightning.pytorch import seed_everything
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader

from locoprop_lightning import BackpropModule, LocoPropModule
from locoprop_lightning.errors import UserError
from locoprop_lightning.oracles import GradientOracle, RMSOracle, SpectralOracle, WhitenedOracle
from locoprop_lightning.solvers import ClosedForm
from locoprop_lightning.tasks import HuggingFaceTask
from tests.support import close, quiet_trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
]
VOCABULARY, LENGTH, PADDED = 11, 6, 10


class Causal(nn.Module):
    """Called and answering as a causal language model of transformers is: a masked cumulative mean between layers."""

    def __init__(self, shifts=True, answer=dict):
        super().__init__()
        self.table, self.first = nn.Embedding(VOCABULARY, 6), nn.Linear(6, 8)
        self.second, self.head = nn.Linear(8, 8), nn.Linear(8, VOCABULARY)
        self.shifts, self.answer = shifts, answer

    def forward(self, input_ids, attention_mask=None, labels=None):
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        hidden = self.first(self.table(input_ids)).tanh() * mask[..., None]
        hidden = hidden.cumsum(1) / mask.cumsum(1).clamp_min(1)[..., None]
        logits = self.head(self.second(hidden).relu() + hidden)
        if labels is None:
            return self.answer(logits=logits)
        made, wanted = (logits[:, :-1], labels[:, 1:]) if self.shifts else (logits, labels)
        loss = F.cross_entropy(made.flatten(0, 1), wanted.flatten())
        return self.answer(loss=loss, logits=logits)


def as_tuple(**parts):
    return tuple(parts.values())


def texts(n=24, padding=None):
    """Mappings of tokens; those that are padded have labels at padding too, as where they are the tokens."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(VOCABULARY, (n, LENGTH), generator=generator)
    mask = torch.ones_like(ids)
    if padding is not None:
        more = torch.randint(VOCABULARY, (n, PADDED - LENGTH), generator=generator)
        parts, masks = ([ids, more], [mask, torch.zeros_like(more)])
        order = slice(None) if padding == "right" else slice(None, None, -1)
        ids, mask = torch.cat(parts[order], 1), torch.cat(masks[order], 1)
    return [dict(input_ids=i, attention_mask=m, labels=i.clone()) for i, m in zip(ids, mask, strict=True)]


def trainer(**options):
    return quiet_trainer(**dict(precision="64-true", max_epochs=1, log_every_n_steps=1) | options)


def network(**options):
    seed_everything(0, verbose=False)
    return Causal(**options).double()


def module(net, task, oracle=None, **settings):
    rest = dict(rest_optimizer=lambda p: torch.optim.SGD(p, lr=0.1), objective="squared", damping="relative")
    return LocoPropModule(net, task, ClosedForm(), 0.1, 0.1, oracle=oracle or RMSOracle(), **rest | settings)


def batch_of(samples):
    return {key: torch.stack([sample[key] for sample in samples]) for key in samples[0]}


@pytest.mark.parametrize("padding", [None, "right", "left"])
def test_the_task_counts_what_the_models_loss_is_a_mean_of(padding):
    task, net, batch = HuggingFaceTask("next_token"), network(), batch_of(texts(padding=padding))
    target, output = task.target(batch), net(**task.inputs(batch))
    loss = task.loss(output, target)
    assert task.terms(target) == 24 * (LENGTH - 1) and not task.complete(target)
    close(loss, task.sampled_loss(output, target), 1e-12)
    plain = batch_of(texts())
    close(loss, net(input_ids=plain["input_ids"], labels=plain["input_ids"])["loss"], 1e-12)
    drawn = task.sample_labels(task.logits(output), torch.Generator().manual_seed(0))
    assert torch.equal(task.hide(drawn, target) == -100, target == -100)
    metrics = task.metrics()
    metrics.update(task.score(output), target)
    assert metrics.compute()["perplexity"].item() == pytest.approx(loss.exp().item(), rel=1e-5)


@pytest.mark.parametrize("dim", [-1, 1])
def test_accuracy_of_the_labels_that_count(dim):
    task, net, batch = HuggingFaceTask(ignore_index=-1, dim=dim), network(shifts=False), batch_of(texts())
    labels = torch.where(batch["input_ids"] % 3 > 0, batch["input_ids"], -1)
    logits = net(batch["input_ids"])["logits"]
    output, target = {"logits": logits.movedim(-1, dim)}, task.target({"labels": labels})
    assert task.terms(target) == (labels != -1).sum() and not task.complete(target)
    metrics, counts = task.metrics(), labels != -1
    metrics.update(task.score(output), target)
    expected = (logits.argmax(-1) == labels)[counts].double().mean()
    assert metrics.compute()["accuracy"].item() == pytest.approx(expected.item()) and expected > 0
    close(task.loss(output, target), F.cross_entropy(logits[counts], labels[counts]), 1e-12)
    drawn = task.hide(task.sample_labels(output["logits"], torch.Generator()), target)
    assert drawn.shape == labels.shape and torch.equal(drawn == -1, ~counts)


METHODS = {
    "foof": (GradientOracle, dict(lambda_a=5.0)),
    "rms": (RMSOracle, {}),
    "whitened": (partial(WhitenedOracle, samples=0), {}),
    "spectral": (SpectralOracle, {}),
}


@pytest.mark.parametrize("padding", ["right", "left"])
@pytest.mark.parametrize("name", METHODS)
def test_a_padded_batch_trains_as_one_without_padding(name, padding):
    found = []
    for samples in (texts(), texts(padding=padding)):
        oracle, settings = METHODS[name]
        settings = dict(lambda_a=0.1, lambda_r=0.1, objective="squared", damping="relative") | settings
        rest = dict(rest_optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
        one = LocoPropModule(
            network(), HuggingFaceTask("next_token"), ClosedForm(), oracle=oracle(), **settings, **rest
        )
        fit = trainer()
        fit.fit(one, DataLoader(samples, 8))
        found.append((dict(one.network.named_parameters()), fit.callback_metrics))
    (plain, metrics), (padded, others) = found
    start = dict(network().named_parameters())
    for key, value in plain.items():
        close(padded[key], value, 1e-10)
        assert not torch.equal(value, start[key]), key
    for key in ("train/loss", "train/perplexity"):
        close(others[key], metrics[key], 1e-6)


@pytest.mark.parametrize("answer", [dict, as_tuple], ids=["mapping", "tuple"])
@pytest.mark.parametrize("make", ["locoprop", "backprop"])
def test_training_validation_test_and_prediction(make, answer):
    samples, task = texts(padding="right"), HuggingFaceTask("next_token")
    net = network(answer=answer)
    one = module(net, task, WhitenedOracle(damping=1.0, samples=1))
    if make == "backprop":
        one = BackpropModule(net, task, lambda p: torch.optim.AdamW(p, lr=0.01))
    loader = DataLoader(samples, 8)
    fit = trainer(max_epochs=4)
    before = fit.validate(one, loader, verbose=False)[0]
    fit.fit(one, loader, loader)
    after = fit.test(one, loader, verbose=False)[0]
    assert after["test/loss"] < before["val/loss"] - 0.05
    assert after["test/perplexity"] == pytest.approx(torch.tensor(after["test/loss"]).exp().item(), rel=1e-4)
    batch = batch_of(samples)
    del batch["labels"]
    (predicted,) = fit.predict(one, DataLoader([batch], batch_size=None))
    logits = task.logits(net(**batch))
    assert torch.equal(predicted, logits.argmax(-1))


def test_pairs_have_the_loss_of_their_logits():
    batch = batch_of(texts(padding="right"))
    labels = batch.pop("labels")
    task, net = HuggingFaceTask("next_token"), network()
    target, output = task.target((batch, labels)), net(**task.inputs((batch, labels)))
    assert "loss" not in output
    counting = labels.masked_fill(batch["attention_mask"] == 0, -100)
    close(task.loss(output, target), net(**batch, labels=counting)["loss"], 1e-12)
    one = module(net, task)
    fit = trainer()
    fit.fit(one, DataLoader([(batch, labels)], batch_size=None))
    close(fit.callback_metrics["train/loss"], task.loss(output, target), 1e-6)


def test_a_batch_in_which_nothing_counts_moves_nothing():
    samples = [{**sample, "labels": torch.full_like(sample["labels"], -100)} for sample in texts()]
    one = module(network(), HuggingFaceTask("next_token"))
    fit = trainer()
    fit.fit(one, DataLoader(samples, 8))
    assert fit.callback_metrics["train/loss"] == 0
    for a, b in zip(one.network.parameters(), network().parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("shifts", "labels"), [(True, "classes"), (False, "next_token")])
def test_labels_that_the_model_takes_otherwise_are_refused(shifts, labels):
    other = "next_token" if shifts else "classes"
    task, net, batch = HuggingFaceTask(labels), network(shifts=shifts), batch_of(texts())
    with pytest.raises(UserError, match=f"labels='{labels}'.*as '{other}'; set that"):
        task.loss(net(**task.inputs(batch)), task.target(batch))
    task = HuggingFaceTask(other)
    task.loss(net(**task.inputs(batch)), task.target(batch))


class Regression(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 1)

    def forward(self, values, labels=None):
        logits = self.last(self.first(values).tanh())
        return {} if labels is None else {"loss": F.mse_loss(logits[:, 0], labels), "logits": logits}


def test_a_loss_that_the_model_alone_knows():
    torch.manual_seed(0)
    x = torch.randn(32, 3, dtype=torch.float64)
    samples = [{"values": v, "labels": v.sum()} for v in x]
    task, net = HuggingFaceTask("other"), Regression().double()
    fit, one, loader = trainer(max_epochs=10), module(net, task), DataLoader(samples, 8)
    before = fit.validate(one, loader, verbose=False)[0]
    fit.fit(one, loader)
    after = fit.validate(one, loader, verbose=False)[0]
    assert after["val/loss"] < before["val/loss"] / 2 and set(after) == {"val/loss"}
    with pytest.raises(UserError, match="samples=0"):
        task.sample_labels(x, torch.Generator())
    with pytest.raises(UserError, match="returned no loss"):
        task.loss({"logits": x}, {"values": x})
    with pytest.raises(UserError, match="take labels='other'"):
        HuggingFaceTask().target(batch_of(samples))
    with pytest.raises(UserError, match="has no logits"):
        HuggingFaceTask().logits({"hidden": x})
    with pytest.raises(UserError, match="labels='token'"):
        HuggingFaceTask("token")
