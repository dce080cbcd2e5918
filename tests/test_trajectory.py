"""Five training steps against the review's equations, written once more in NumPy."""

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from locoprop_lightning import LocoPropModule
from locoprop_lightning.networks import MLP
from locoprop_lightning.solvers import ClosedForm, FixedPointIteration
from locoprop_lightning.tasks import Classification

STEPS, BATCH, INPUTS, CLASSES = 5, 8, 6, 3
LAMBDA_A, LAMBDA_R, ITERATIONS = 6.0, 40.0, 4


def with_ones(y):
    return np.hstack([y, np.ones((len(y), 1))])


def identity(a):
    return a


def step(weights, x, labels, method):
    """One step; the weights are [W | b], one matrix a layer."""
    inputs, activations, y = [], [], x
    for i, w in enumerate(weights):  # forward
        inputs.append(with_ones(y))
        activations.append(inputs[-1] @ w.T)
        y = np.tanh(activations[-1]) if i < len(weights) - 1 else activations[-1]
    exp = np.exp(y - y.max(1, keepdims=True))
    g = (exp / exp.sum(1, keepdims=True) - np.eye(CLASSES)[labels]) / len(x)  # of the mean cross-entropy
    gradients = [g]
    for i in range(len(weights) - 1, 0, -1):  # backward
        g = (g @ weights[i])[:, :-1] * (1 - np.tanh(activations[i - 1]) ** 2)
        gradients.insert(0, g)
    new = []
    for i, (w0, y, a, g) in enumerate(zip(weights, inputs, activations, gradients, strict=True)):
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


def matrices(network):
    return [
        np.hstack([m.weight.detach().numpy(), m.bias.detach().numpy()[:, None]])
        for m in network.modules()
        if isinstance(m, torch.nn.Linear)
    ]


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
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        precision="64-true",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(list(zip(x, labels, strict=True)), BATCH))
    assert trainer.global_step == STEPS
    for got, want, first in zip(matrices(network), expected, start, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9)
        assert np.abs(want - first).max() > 1e-3
