"""Whether factors that are refreshed every 10 steps stay safe: training on three networks, with and without protection.

    python benchmarks/stale_factors.py [--steps 120] [--seeds 0 1 2] [--warmup 40] [--unprotected]
        [--oracle rms | whitened | kfac]

Exact LocoProp-S on Fashion-MNIST, batch 1024, a constant rate: lambda_a 0.1 and lambda_r 100 with the RMS oracle, 0.05
and 200 with the whitened one, 0.03 and 1000 with K-FAC's (true labels). The networks: the review's tanh MLP; the deep
autoencoder 784-1000-500-250-30-250-500-1000-784 (tanh, linear code, binary cross-entropy summed over pixels); a
residual network of linear layers with layer normalisation. For each the table shows the train loss of the first and
last batch, its highest value in the second half, and how many of the layers' solves were done again with a fresh
factor.
"""

import argparse
import logging
import warnings

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from torch import nn

from locoprop_lightning import LocoPropModule
from locoprop_lightning.data import FashionMNIST
from locoprop_lightning.networks import MLP
from locoprop_lightning.oracles import RMSOracle, WhitenedOracle
from locoprop_lightning.solvers import ClosedForm
from locoprop_lightning.tasks import Classification, Reconstruction


def autoencoder():
    """The sizes of ``DeepAutoencoder`` with PyTorch's initialisation, with which the figures in the docs were taken."""
    widths = (784, 1000, 500, 250, 30, 250, 500, 1000, 784)
    layers = [nn.Flatten()]
    for i in range(8):
        layers += [nn.Linear(widths[i], widths[i + 1])] + ([] if i in (3, 7) else [nn.Tanh()])
    return nn.Sequential(*layers)


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x):
        return x + self.second(torch.relu(self.first(self.norm(x))))


def residual():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 256), *[Block(256) for _ in range(4)], nn.Linear(256, 10))


NETWORKS = {
    "mlp": (MLP, Classification),
    "autoencoder": (autoencoder, Reconstruction),
    "residual": (residual, Classification),
}

ORACLES = {  # with lambda_a and lambda_r
    "rms": (RMSOracle, 0.1, 100),
    "whitened": (lambda: WhitenedOracle(power=0.5, beta=0.9, samples=0), 0.05, 200),
    "kfac": (lambda: WhitenedOracle(damping=1.0, samples=0), 0.03, 1000),
}


class Unprotected(ClosedForm):
    """Applies whatever a kept factor gives."""

    def run(self, problem, state, recording):
        outcome = super().run(problem, state, recording)
        return outcome._replace(growth=outcome.growth.new_zeros(()))


class Losses(Callback):
    def __init__(self):
        self.values = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.values.append(float(outputs["loss"]))


def fit(module, data, steps):
    """The loss of every batch."""
    losses = Losses()
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        callbacks=[losses],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(module, data)
    return losses.values


def train(name, solver, oracle, seed, steps):
    seed_everything(seed, verbose=False)
    network, task = NETWORKS[name]
    make, lambda_a, lambda_r = ORACLES[oracle]
    module = LocoPropModule(
        network(), task(), solver, lambda_a=lambda_a, lambda_r=lambda_r, objective="squared", oracle=make()
    )
    values = fit(module, FashionMNIST(batch_size=1024), steps)
    return values, sum(c.get("retried", 0) for c in module.engine.counts.values()), steps * len(module.engine.local)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--warmup", type=int, default=40, help="steps with a refresh each, at first")
    parser.add_argument("--oracle", default="rms", choices=ORACLES)
    parser.add_argument("--unprotected", action="store_true", help="apply whatever a kept factor gives")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    rows = ["| network | seed | first loss | last | highest in the second half | solved again |"]
    rows.append("|---|---|---|---|---|---|")
    for name in options.networks:
        for seed in options.seeds:
            solver = (Unprotected if options.unprotected else ClosedForm)(refresh_every=10, warmup=options.warmup)
            values, again, solves = train(name, solver, options.oracle, seed, options.steps)
            row = f"| {name} | {seed} | {values[0]:.4g} | {values[-1]:.4g} | {max(values[len(values) // 2 :]):.4g} |"
            rows.append(f"{row} {again} of {solves} |")
            print(rows[-1], flush=True)
    print("\n" + "\n".join(rows))


if __name__ == "__main__":
    main()
