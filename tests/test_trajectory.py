"""Five training steps against the review's equations, written once more in NumPy."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from locoprop_lightning import LocoPropModule
from locoprop_lightning.networks import MLP
from locoprop_lightning.optimizers import LinearDecay, TensorFlowRMSprop
from locoprop_lightning.solvers import ClosedForm, FixedPointIteration, InnerOptimizer
from locoprop_lightning.tasks import Classification
from tests.support import quiet_trainer

STEPS, BATCH, INPUTS, CLASSES = 5, 8, 6, 3
LAMBDA_A, LAMBDA_R, ITERATIONS = 6.0, 40.0, 4


def with_ones(y):
    return np.hstack([y, np.ones((len(y), 1))])


def identity(a):
    return a


def softmax(a):
    exp = np.exp(a - a.max(1, keepdims=True))
    return exp / exp.sum(1, keepdims=True)


def forward_and_back(weights, x, labels):
    """Y, A and G of every layer; the weights are [W | b], one matrix a layer."""
    inputs, activations, y = [], [], x
    for i, w in enumerate(weights):  # forward
        inputs.append(with_ones(y))
        activations.append(inputs[-1] @ w.T)
        y = np.tanh(activations[-1]) if i < len(weights) - 1 else activations[-1]
    g = (softmax(y) - np.eye(CLASSES)[labels]) / len(x)  # of the mean cross-entropy
    gradients = [g]
    for i in range(len(weights) - 1, 0, -1):  # backward
        g = (g @ weights[i])[:, :-1] * (1 - np.tanh(activations[i - 1]) ** 2)
        gradients.insert(0, g)
    return zip(inputs, activations, gradients, strict=True)


def step(weights, x, labels, method):
    """One step."""
    new = []
    for i, (w0, (y, a, g)) in enumerate(zip(weights, forward_and_back(weights, x, labels), strict=True)):
        if method == "closed_form":  # eq. 5
            c = LAMBDA_R * np.eye(y.shape[1]) + y.T @ y
            new.append(w0 - LAMBDA_A * g.T @ y @ np.linalg.inv(c))
            continue
        f = np.tanh if method == "matching" and i < len(weights) - 1 else identity
        target = f(a) - LAMBDA_A * g
        w = w0
        for _ in range(ITERATIONS):  # eq. 3
            w = w0 - (f(y @ w.T) - target).T @ y / LAMBDA_R
        new.append(w)
    return new


class PublishedLayer:
    """LocoProp-M as Amid et al. (2022) publish it: RMSProp of TensorFlow 1, whose state goes on from batch to batch."""

    RATE, DECAY, MOMENTUM, EPSILON = 0.01, 0.9, 0.5, 1e-5

    def __init__(self, shape):
        self.square, self.momentum = np.ones(shape), np.zeros(shape)

    def solve(self, w, y, a, g, f, factor):
        target = f(a) - LAMBDA_A * g
        for k in range(ITERATIONS):
            gradient = (f(y @ w.T) - target).T @ y
            rate = self.RATE * factor * max(1 - k / ITERATIONS, 0.25)
            self.square = self.DECAY * self.square + (1 - self.DECAY) * gradient**2
            self.momentum = self.MOMENTUM * self.momentum + rate * gradient / np.sqrt(self.square + self.EPSILON)
            w = w - self.momentum
        return w


def published(weights, batches, epochs, warmup):
    """Epochs over some batches, with the published schedule of the inner rate, made as long as these epochs."""
    layers = [PublishedLayer(w.shape) for w in weights]
    for epoch in range(epochs):
        factor = epoch / warmup if epoch < warmup else (epochs - epoch) / (epochs - warmup)
        for x, labels in batches:
            forward = [*forward_and_back(weights, x, labels)]
            links = [np.tanh] * (len(weights) - 1) + [softmax]
            weights = [
                layer.solve(w, y, a, g, f, factor)
                for layer, w, (y, a, g), f in zip(layers, weights, forward, links, strict=True)
            ]
    return weights


def matrices(network):
    return [
        np.hstack([m.weight.detach().numpy(), m.bias.detach().numpy()[:, None]])
        for m in network.modules()
        if isinstance(m, torch.nn.Linear)
    ]


def fit(module, x, labels, max_epochs=1):
    trainer = quiet_trainer(
        max_epochs=max_epochs,
        precision="64-true",
    )
    trainer.fit(module, DataLoader(list(zip(x, labels, strict=True)), BATCH))
    return trainer


@pytest.mark.parametrize("method", ["squared", "matching", "closed_form"])
@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
def test_five_steps(method):
    network = MLP(INPUTS, 7, 2, CLASSES).double()
    module = LocoPropModule(
        network,
        Classification(CLASSES),
        ClosedForm() if method == "closed_form" else FixedPointIteration(ITERATIONS),
        lambda_a=LAMBDA_A,
        lambda_r=LAMBDA_R,
        objective="matching" if method == "matching" else "squared",
    )
    x = torch.randn(STEPS * BATCH, INPUTS, dtype=torch.float64)
    labels = torch.arange(STEPS * BATCH) % CLASSES
    expected = start = [w.copy() for w in matrices(network)]
    for i in range(STEPS):
        rows = slice(i * BATCH, (i + 1) * BATCH)
        expected = step(expected, x[rows].numpy(), labels[rows].numpy(), method)
    trainer = fit(module, x, labels)
    assert trainer.global_step == STEPS
    for got, want, first in zip(matrices(network), expected, start, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9)
        assert np.abs(want - first).max() > 1e-3


@pytest.mark.parametrize("scheduled", ["inner", "outer"])
@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
def test_the_published_iteration_with_its_schedule(scheduled):
    """The schedule multiplies the inner rate, epoch by epoch; multiplying the displacement is another method."""
    epochs, warmup, layer = 6, 2, PublishedLayer
    network = MLP(INPUTS, 7, 2, CLASSES).double()
    module = LocoPropModule(
        network,
        Classification(CLASSES),
        InnerOptimizer(
            lambda p: TensorFlowRMSprop(p, layer.RATE, layer.DECAY, layer.MOMENTUM, layer.EPSILON),
            ITERATIONS,
            schedule="published",
        ),
        lambda_a=LAMBDA_A,
        lambda_r=1.0,
        output_transfer="link",
        lr_scheduler=lambda o: LinearDecay(o, 0.0, warmup=warmup / epochs, by_epoch=True),
        scheduled=scheduled,
    )
    x = torch.randn(3 * BATCH, INPUTS, dtype=torch.float64)
    labels = torch.arange(3 * BATCH) % CLASSES
    batches = [(part.numpy(), marks.numpy()) for part, marks in zip(x.split(BATCH), labels.split(BATCH), strict=True)]
    start = [w.copy() for w in matrices(network)]
    expected = published(start, batches, epochs, warmup)
    fit(module, x, labels, max_epochs=epochs)
    off = max(np.abs(got - want).max() for got, want in zip(matrices(network), expected, strict=True))
    assert off < 1e-10 if scheduled == "inner" else off > 1e-3
    assert max(np.abs(want - first).max() for want, first in zip(expected, start, strict=True)) > 0.01
