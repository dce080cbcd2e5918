"""What a user writes, held against the package's types by `mypy --strict`: see tests/test_types.py."""

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from locoprop_lightning import BackpropModule, LocoPropModule, UserError
from locoprop_lightning.callbacks import FitSummary, LocalLossMonitor
from locoprop_lightning.data import Digits, FashionMNIST
from locoprop_lightning.local import LocalProblem, State, resolve_transfer
from locoprop_lightning.networks import MLP, DeepAutoencoder
from locoprop_lightning.optimizers import FullPrecisionMuon, LinearDecay
from locoprop_lightning.oracles import Oracle, RMSOracle, WhitenedOracle
from locoprop_lightning.solvers import (
    AndersonAcceleration,
    ClosedForm,
    FixedPointIteration,
    IterativeSolver,
    LocalSolver,
    Majorization,
    Recording,
    Solution,
    Step,
)
from locoprop_lightning.tasks import Classification, Reconstruction, Task


def modules() -> list[LocoPropModule | BackpropModule]:
    """A module of each kind, with parts of each kind."""
    oracle: Oracle = RMSOracle(beta=0.9)
    solver: LocalSolver = ClosedForm(average=0.5, refresh_every=10)
    task: Task = Classification(num_classes=10)
    network = MLP(in_features=64, hidden_features=32, hidden_layers=2, out_features=10, activation="tanh")
    first = LocoPropModule(network, task, solver, lambda_a=0.1, lambda_r=10, objective="squared", oracle=oracle)
    autoencoder = LocoPropModule(
        network=DeepAutoencoder(),
        task=Reconstruction(),
        solver=Majorization(iterations=2),
        oracle=WhitenedOracle(power=0.5),
        lambda_a=0.1,
        lambda_r=0.1,
        damping="relative",
        overrides={"1": {"lambda_a": 1.0}},
        skip=["5"],
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1.0),
        lr_scheduler=lambda optimizer: LinearDecay(optimizer),
    )
    muon = BackpropModule(
        nn.Sequential(nn.Linear(64, 10, bias=False)), task, lambda parameters: FullPrecisionMuon(parameters, lr=0.003)
    )
    return [first, autoencoder, muon]


def fit() -> Tensor:
    """A fit, a test, and the weights from a checkpoint."""
    module = LocoPropModule(
        MLP(64, 32, 2), Classification(), AndersonAcceleration(iterations=10), lambda_a=100, lambda_r=10
    )
    trainer = Trainer(max_epochs=1, callbacks=[FitSummary(), LocalLossMonitor(every_n_steps=10)])
    data: Digits | FashionMNIST = Digits(batch_size=128)
    try:
        trainer.fit(module, data)
    except UserError as error:
        print(f"not so: {error}")
    trainer.test(module, data)
    loaded = LocoPropModule.load_from_checkpoint(
        "a.ckpt", network=MLP(64, 32, 2), task=Classification(), solver=ClosedForm(), lambda_a=1, lambda_r=1
    )
    loaded.eval()
    output: Tensor = loaded(torch.zeros(1, 64))
    return output


def solve() -> tuple[Tensor, list[float]]:
    """A local problem of one's own."""
    rows, weight = torch.randn(8, 4), torch.randn(3, 4)
    pre_activation = rows @ weight.T
    problem = LocalProblem(
        rows,
        pre_activation,
        torch.randn(8, 3),
        weight,
        None,
        resolve_transfer("tanh"),
        lambda_a=0.1,
        lambda_r=1.0,
    )
    solution: Solution = FixedPointIteration(iterations=3).solve(problem, {}, Recording.CURVE)
    losses = solution.losses
    assert losses is not None
    return solution.weight, [float(loss) for loss in losses]


class Sign(Oracle):
    """An oracle of one's own."""

    def direction(self, gradient: Tensor, terms: int, state: State) -> Tensor:
        """Every target moves by lambda_a."""
        return gradient.sign()


class HeavyBall(IterativeSolver):
    """A solver of one's own."""

    def init(self, problem: LocalProblem, state: State) -> Tensor:
        """The momentum that the first step is given."""
        return problem.zeros()

    def step(self, problem: LocalProblem, v: Tensor, gradient: Tensor, k: int, carry: Tensor) -> Step:
        """A step with momentum."""
        momentum = 0.5 * carry - gradient / problem.lambda_r
        return Step(v + momentum, momentum)


class Weighted(Classification):
    """A task of one's own."""

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Half the loss."""
        return super().loss(output, target) / 2
