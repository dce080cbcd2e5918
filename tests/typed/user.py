"""What a user writes, held against the package's types by `mypy --strict`: see tests/test_types.py."""

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from locoprop_lightning import BackpropModule, LocalBackward, LocoPropModule, UserError, load_run
from locoprop_lightning.callbacks import FitSummary, LocalLossHistory, LocalLossMonitor, LocalSchedule
from locoprop_lightning.data import Datasets, Digits, FashionMNIST, IdxImages
from locoprop_lightning.layers import activation
from locoprop_lightning.local import LocalProblem, State, Transfer, resolve_transfer
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


def loop(network: nn.Module, x: Tensor, labels: Tensor) -> list[float]:
    """A loop of one's own."""
    backward = LocalBackward(network, x, ClosedForm(), lambda_a=0.1, lambda_r=1.0, objective="squared")
    outer = torch.optim.SGD(backward.local_parameters(), lr=1.0)
    loss: Tensor = backward(x, lambda output: nn.functional.cross_entropy(output, labels), recording=Recording.CURVE)
    outer.step()
    print(backward.layers)
    return [0.0 if one.losses is None else one.losses[-1].item() for one in backward.solutions.values()] + [loss.item()]


def watched(module: LocoPropModule) -> Tensor:
    """Local losses in memory, lambdas that change, and data of one's own."""
    history, schedule = LocalLossHistory(every_n_steps=2), LocalSchedule(lambda_a={0: 1, 100: 0.1})
    rows = torch.utils.data.TensorDataset(torch.randn(8, 64), torch.arange(8))
    data: Datasets | IdxImages = Datasets(rows, batch_size=4, validation=2)
    Trainer(callbacks=[history, schedule]).fit(module, data)
    print(module.layers, history.frame())
    return history["1"]


def loaded(x: Tensor) -> Tensor:
    """The network of a run."""
    run = load_run("runs/digits/foof/version_0")
    output: Tensor = run.network(x)
    return output


class Cube(Transfer):
    """An activation of one's own."""

    name = "cube"
    bound = float("inf")

    def f(self, a: Tensor) -> Tensor:
        """The function."""
        return a**3

    def F(self, a: Tensor) -> Tensor:
        """Its integral."""
        return a**4 / 4


@activation(Cube())
def cube(x: Tensor) -> Tensor:
    """What computes it."""
    return x * x * x
