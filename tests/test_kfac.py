"""ClosedForm with WhitenedOracle against an independent K-FAC, curvlinops.

Its factors are means over rows, of inputs with a constant one and of gradients of single samples, as ours are. Its
damping adds one number to each factor, so ours is handed to it layer by layer: lambda_r / n to the factor of the
inputs, damping tr(S) / d_out to that of the gradients.
"""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from locoprop_lightning import LocoPropModule
from locoprop_lightning.local.preconditioner import average_of
from locoprop_lightning.networks import MLP
from locoprop_lightning.observer import SolveObserver
from locoprop_lightning.oracles import WhitenedOracle
from locoprop_lightning.solvers import ClosedForm, Recording
from locoprop_lightning.tasks import Classification
from tests.support import quiet_trainer, taped

curvlinops = pytest.importorskip("curvlinops", reason="pip install -e '.[dev]'")

N, INPUTS, HIDDEN, CLASSES = 24, 5, 7, 3
LAMBDA_A, LAMBDA_R, DAMPING = 0.3, 2.0, 0.1
LAYERS = {"1": (INPUTS, HIDDEN), "3": (HIDDEN, CLASSES)}


class Keep(SolveObserver):
    """Keeps C/n of each layer."""

    def recording(self, trainer):
        return Recording.ENDS

    def on_solved(self, trainer, problems, reports, counts):
        self.inputs = {name: p.gram().clone() / p.n for name, p in problems.items()}


def second_moment(state):
    """S, of the gradients."""
    return average_of(state["preconditioner"]["average"])


@pytest.fixture(params=[True, False], ids=["bias", "no_bias"])
def step(request):
    """One step: the network before it, the data, our factors, and the displacement of each parameter."""
    network = MLP(INPUTS, HIDDEN, 1, CLASSES, bias=request.param).double()
    before = MLP(INPUTS, HIDDEN, 1, CLASSES, bias=request.param).double()
    before.load_state_dict(network.state_dict())
    x, labels = torch.randn(N, INPUTS, dtype=torch.float64), torch.arange(N) % CLASSES
    oracle = WhitenedOracle(beta=0.0, damping=DAMPING, samples=0, refresh_every=1)
    module = LocoPropModule(
        network, Classification(CLASSES), ClosedForm(), LAMBDA_A, LAMBDA_R, objective="squared", oracle=oracle
    )
    keep = Keep()
    trainer = quiet_trainer(
        max_steps=1,
        precision="64-true",
        callbacks=[keep],
    )
    trainer.fit(module, DataLoader(list(zip(x, labels, strict=True)), N))
    gradients = {name: second_moment(layer.oracle_state) for name, layer in module.engine.local.items()}
    moved = {name: p.detach() - before.get_parameter(name).detach() for name, p in network.named_parameters()}
    return before, (x, labels), keep.inputs, gradients, moved


def operator(network, data, layers):
    return curvlinops.KFACLinearOperator(
        network,
        nn.CrossEntropyLoss(),
        [p for name in layers for p in network.get_submodule(name).parameters()],
        [data],
        fisher_type="empirical",
        separate_weight_and_bias=False,
        check_deterministic=False,
    )


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


pytestmark = [
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
]


def test_factors(step):
    network, data, inputs, gradients, _ = step
    kfac = operator(network, data, LAYERS)
    kfac.compute_kronecker_factors()
    for name, (d_in, d_out) in LAYERS.items():
        assert inputs[name].shape[0] == d_in + (network.get_submodule(name).bias is not None)
        assert gradients[name].shape[0] == d_out
        close(inputs[name], kfac._input_covariances[name])
        close(gradients[name], kfac._gradient_covariances[name])


def test_weight_step(step):
    network, data, _, gradients, moved = step
    x, labels = data
    loss = nn.functional.cross_entropy(network(x), labels)
    for name, (_, d_out) in LAYERS.items():
        parameters = dict(network.get_submodule(name).named_parameters())
        gradient = torch.autograd.grad(loss, list(parameters.values()), retain_graph=True)
        damping = (LAMBDA_R / N, DAMPING * gradients[name].trace().item() / d_out)
        inverse = curvlinops.KFACInverseLinearOperator(operator(network, data, [name]), damping=damping)
        expected = inverse @ list(gradient)
        for parameter, direction in zip(parameters, expected, strict=True):
            close(moved[f"{name}.{parameter}"], -LAMBDA_A * direction)


def test_weight_step_by_dense_inverses(step):
    """The same without curvlinops' damping."""
    network, data, inputs, gradients, moved = step
    x, labels = data
    loss = nn.functional.cross_entropy(network(x), labels)
    for name in LAYERS:
        parameters = dict(network.get_submodule(name).named_parameters())
        gradient = torch.autograd.grad(loss, list(parameters.values()), retain_graph=True)
        joined = torch.cat([g.reshape(len(g), -1) for g in gradient], 1)
        s, c = gradients[name], inputs[name]
        s = s + DAMPING * s.trace() / len(s) * torch.eye(len(s), dtype=s.dtype)
        c = c + LAMBDA_R / N * torch.eye(len(c), dtype=c.dtype)
        expected = -LAMBDA_A * torch.linalg.inv(s) @ joined @ torch.linalg.inv(c)
        close(torch.cat([moved[f"{name}.{p}"].reshape(len(s), -1) for p in parameters], 1), expected)


def test_factors_of_a_convolution():
    """The product of both factors: curvlinops divides the number of positions from the other one."""
    network = nn.Sequential(nn.Conv2d(2, 3, 2, stride=2, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(27, 3)).double()
    x, labels = torch.randn(N, 2, 4, 4, dtype=torch.float64), torch.arange(N) % 3
    with taped({"0": network[0]}) as tape:
        nn.functional.cross_entropy(network(x), labels).backward()
    record, state = tape.records["0"], {}
    WhitenedOracle(beta=0.0, samples=0, refresh_every=1).observe(record.gradient(), [], N, state)
    kfac = operator(network, (x, labels), ["0"])
    kfac.compute_kronecker_factors()
    (name,) = kfac._input_covariances
    expected = torch.kron(kfac._gradient_covariances[name], kfac._input_covariances[name])
    close(torch.kron(second_moment(state), record.operator().gram() / N), expected)
