"""Cost of one training step of LocoProp-M by fixed-point iteration, as a ratio to its arithmetic floor.

    python benchmarks/step_time.py [--iterations 10] [--batch 1024] [--steps 15] [--threads 2]

The floor is the time that the step's matrix products alone take, by torch.mm on tensors of their shapes in this same
process: a forward pass, a backward pass (weight gradients, and input gradients but for the first layer), and T - 1
iterations of two products a layer, the first gradient being the back-propagated one. An Adam step of the same network
is timed beside it. Nothing is recorded. The three take turns, and medians are compared.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable

import torch
from lightning.pytorch import Trainer

from locoprop_lightning import BackpropModule, LocoPropModule
from locoprop_lightning.networks import MLP
from locoprop_lightning.solvers import FixedPointIteration
from locoprop_lightning.tasks import Classification


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def products(network: MLP, batch: int, iterations: int) -> tuple[list[Callable[[], object]], float]:
    """The matrix products of a step as calls, and their floating-point operations."""
    calls: list[Callable[[], object]] = []
    operations = 0.0
    layers = [m for m in network if isinstance(m, torch.nn.Linear)]
    for index, layer in enumerate(layers):
        d_out, d_in = layer.weight.shape
        y, r, w = torch.randn(batch, d_in), torch.randn(batch, d_out), torch.randn(d_out, d_in)
        forward = (lambda y=y, w=w: torch.mm(y, w.t()), lambda r=r, y=y: torch.mm(r.t(), y))
        chosen = list(forward) * iterations  # one pass, and T - 1 iterations
        if index > 0:
            chosen.append(lambda r=r, w=w: torch.mm(r, w))
        calls += chosen
        operations += 2.0 * batch * d_in * d_out * len(chosen)
    return calls, operations


def stepper(
    module: LocoPropModule | BackpropModule, batch: tuple[torch.Tensor, torch.Tensor], steps: int
) -> list[float]:
    """Seconds of each training step under a real trainer."""
    times: list[float] = []

    class Clock(torch.utils.data.IterableDataset):
        def __iter__(self):
            for _ in range(steps + 3):
                start = time.perf_counter()
                yield batch
                times.append(time.perf_counter() - start)

    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, torch.utils.data.DataLoader(Clock(), batch_size=None))
    return times[3:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    batch = (torch.rand(options.batch, 1, 28, 28), torch.randint(10, (options.batch,)))
    calls, operations = products(MLP(), options.batch, options.iterations)
    floor, local, adam = [], [], []
    for _ in range(options.rounds):
        floor += [seconds(lambda: [call() for call in calls]) for _ in range(options.steps)]
        solver = FixedPointIteration(options.iterations)
        module = LocoPropModule(MLP(), Classification(), solver, lambda_a=1000, lambda_r=1e6)
        local += stepper(module, batch, options.steps)
        baseline = BackpropModule(MLP(), Classification(), lambda p: torch.optim.Adam(p, lr=1e-3))
        adam += stepper(baseline, batch, options.steps)
    f, m, a = map(statistics.median, (floor, local, adam))
    print(f"matrix products of a step   {operations / 1e9:8.1f} GFLOP at {operations / f / 1e9:.0f} GFLOP/s")
    print(f"arithmetic floor            {f * 1000:8.1f} ms")
    print(f"LocoProp-M, FPI, T = {options.iterations:<6} {m * 1000:8.1f} ms   {m / f:.2f} x the floor")
    print(f"Adam                        {a * 1000:8.1f} ms   LocoProp-M takes {m / a:.1f} x as long")


if __name__ == "__main__":
    main()
