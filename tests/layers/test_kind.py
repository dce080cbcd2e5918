"""Kinds of layers and their registry, of the package and from outside."""

import pytest
import torch
from torch import nn

from locoprop_lightning.distributed import Communicator, share_batch
from locoprop_lightning.engine import LocalEngine
from locoprop_lightning.errors import UserError
from locoprop_lightning.layers import (
    BilinearKind,
    ConvolutionKind,
    EmbeddingKind,
    LayerKind,
    LinearKind,
    TransposedConvolutionKind,
    discover,
    kind,
    kind_of,
    register,
)
from locoprop_lightning.local import LocalProblem, MatrixOperator, resolve_transfer
from locoprop_lightning.oracles import GradientOracle
from locoprop_lightning.settings import LocalSettings
from locoprop_lightning.solvers import ClosedForm, Recording, Status
from tests.support import close, rows_of, taped


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    """The registered kinds; those that a test registers are gone after it."""
    kinds = [*kind._KINDS]
    monkeypatch.setattr(kind, "_KINDS", kinds)
    return kinds


class Transposed(nn.Module):
    """A layer of somebody else: its weight is [d_in, d_out], its argument is called x, its units come first."""

    def __init__(self, d_in=3, d_out=2):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(d_in, d_out) / d_in**0.5)
        self.shift = nn.Parameter(torch.randn(d_out))

    def forward(self, x):
        return (x @ self.kernel + self.shift).mT


class TransposedKind(LayerKind):
    modules = (Transposed,)

    def operator(self, module, inputs):
        return MatrixOperator(torch.cat([x.reshape(-1, x.shape[-1]) for x in inputs]), bias=True)

    def empty(self, module):
        return module.kernel.new_zeros(0, module.kernel.shape[0])

    def parameters(self, module):
        return module.kernel, module.shift

    def input(self, args, kwargs):
        return args[0] if args else kwargs["x"]

    def units(self, module):
        return -2

    def matrix(self, module, x):
        return x.mT

    def from_matrix(self, module, matrix):
        return matrix.mT


def test_kinds_of_the_package():
    assert type(kind_of(nn.Linear(2, 2))) is LinearKind
    assert type(kind_of(nn.Bilinear(2, 2, 2))) is BilinearKind
    for convolution in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
        assert type(kind_of(convolution(2, 2, 1))) is ConvolutionKind
    for transposed in (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d):
        assert type(kind_of(transposed(2, 2, 1))) is TransposedConvolutionKind
    assert type(kind_of(nn.Embedding(2, 2))) is EmbeddingKind
    for module in (nn.LayerNorm(2), nn.EmbeddingBag(2, 2), nn.LSTM(2, 2), nn.MultiheadAttention(2, 1), nn.ReLU()):
        assert kind_of(module) is None

    class Mine(nn.Linear):
        pass

    assert type(kind_of(Mine(2, 2))) is LinearKind


def test_a_kind_from_outside_is_local():
    network = nn.Sequential(Transposed(3, 3), nn.Tanh(), nn.Linear(3, 2))
    assert [layer.local for layer in discover(network, torch.randn(3, 3))] == [False, True]
    assert register(TransposedKind) is TransposedKind
    assert type(kind_of(network[0])) is TransposedKind
    first, last = discover(network, torch.randn(3, 3))
    assert (first.transfer.name, last.transfer.name) == ("tanh", "identity") and first.reason == ""


def settings():
    return LocalSettings(0.5, 2.0, "squared", "identity", {}, [], "absolute", {}, True)


def test_a_kind_from_outside_is_solved_and_written():
    """As the linear layer of the same weights is."""
    register(TransposedKind)
    mine, linear, x = Transposed().double(), nn.Linear(3, 2).double(), torch.randn(7, 3, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(mine.kernel.mT)
        linear.bias.copy_(mine.shift)
    solutions = []
    for layer in (mine, linear):
        network, alone = nn.Sequential(layer), Communicator()
        engine = LocalEngine(network, ClosedForm(), GradientOracle(), settings())
        engine.discover(network, x, alone)
        with taped({"0": layer}) as tape:
            rows_of(layer, layer(x)).square().mean(0).sum().backward()
        record, local = tape.records["0"], engine.local["0"]
        operator, (weight, bias) = record.operator(), local.matrices()
        a, g = record.pre_activation(operator), record.gradient()
        close(a, nn.functional.linear(x, weight, bias), 1e-12)
        close(torch.cat(local.gradients(), 1), operator.adjoint(g), 1e-12)
        identity = resolve_transfer("identity")
        problem = LocalProblem(operator, a, g, weight.clone(), bias.clone(), identity, 0.5, 2.0, name="0")
        found = engine.solve({"0": problem}, share_batch(alone, x, x, 7, Recording.NOTHING))
        engine.write(found)
        assert found["0"].status is Status.SOLVED
        torch.optim.SGD(layer.parameters(), lr=1.0).step()  # W - (W0 - W+)
        close(local.matrices()[0], found["0"].weight, 1e-12)
        close(local.matrices()[1], found["0"].bias, 1e-12)
        solutions.append(found["0"])
    assert mine.kernel.grad.shape == (3, 2) and mine.shift.grad.shape == (2,)
    close(solutions[0].displacement, solutions[1].displacement, 1e-12)


def test_the_latest_kind_is_taken():
    layer = nn.Linear(2, 2)

    @register
    class Other(LinearKind):
        pass

    assert type(kind_of(layer)) is Other
    assert type(kind_of(nn.Conv2d(1, 1, 1))) is ConvolutionKind
    register(LinearKind)
    assert type(kind_of(layer)) is LinearKind


def test_a_kind_registered_again_is_there_once(registry):
    """As a module that is loaded again brings it."""

    def make(name):
        return type(name, (TransposedKind,), {"__module__": __name__, "__qualname__": name})

    before = len(registry)
    old, new = make("Reloaded"), make("Reloaded")
    register(old)
    register(new)
    assert type(kind_of(Transposed())) is new and len(registry) == before + 1
    register(make("Another"))
    assert len(registry) == before + 2


@pytest.mark.parametrize("wrong", [nn.Linear, LinearKind(), "linear", None, 3], ids=lambda wrong: type(wrong).__name__)
def test_what_is_no_kind_is_refused(wrong):
    with pytest.raises(UserError) as error:
        register(wrong)
    assert str(error.value) == f"register({wrong!r}): takes a class derived from LayerKind."


def test_a_kind_of_no_modules_is_refused():
    class Nothing(LinearKind):
        modules = ()

    with pytest.raises(UserError) as error:
        register(Nothing)
    assert str(error.value) == "register(Nothing): `modules` must be a tuple of classes of layers, not ()."
    assert type(kind_of(nn.Linear(2, 2))) is LinearKind


def test_signatures_say_which_calls_can_be_joined():
    linear, two, one = (kind_of(layer) for layer in (nn.Linear(2, 2), nn.Conv2d(1, 1, 1), nn.Conv1d(1, 1, 1)))
    x = torch.zeros
    assert linear.signature(nn.Linear(2, 2), x(3, 2)) == linear.signature(nn.Linear(2, 2), x(4, 5, 2))
    layer = nn.Conv2d(1, 1, 1)
    assert two.signature(layer, x(3, 1, 4, 5)) == two.signature(layer, x(7, 1, 4, 5)) == (4, 5)
    assert two.signature(layer, x(3, 1, 4, 5)) != two.signature(layer, x(3, 1, 5, 4))
    assert one.signature(nn.Conv1d(1, 1, 1), x(3, 1, 4)) == one.signature(nn.Conv1d(1, 1, 1), x(1, 4)) == (4,)


def test_forwards_that_are_not_the_kinds():
    class Scaled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    class Own(nn.Conv2d):
        def _conv_forward(self, x, weight, bias):
            return 2 * super()._conv_forward(x, weight, bias)

    class Named(nn.Linear):
        pass

    hooked, bound = nn.Linear(2, 2), nn.Linear(2, 2)
    hooked.register_forward_hook(lambda module, args, output: 2 * output)
    bound.forward = lambda x: x
    for layer, own in (
        (nn.Linear(2, 2), False),
        (Named(2, 2), False),
        (nn.Conv2d(1, 1, 1), False),
        (Scaled(2, 2), True),
        (Own(1, 1, 1), True),
        (hooked, True),
        (bound, True),
    ):
        assert kind_of(layer).has_own_forward(layer) == own, layer


def test_a_kind_that_is_not_whole_is_refused():
    class Half(LinearKind):
        def matrix(self, module, x):
            return x.t()

    class Bare(LinearKind):
        modules = nn.Bilinear

    class Abstract(LayerKind):
        modules = (nn.Bilinear,)

    for wrong, message in [
        (Half, "register(Half): override matrix and from_matrix together; each undoes the other."),
        (Bare, f"register(Bare): `modules` must be a tuple of classes of layers, not {nn.Bilinear!r}."),
        (Abstract, "register(Abstract): must override empty, operator."),
    ]:
        with pytest.raises(UserError) as error:
            register(wrong)
        assert str(error.value) == message


def test_what_a_kind_lacks_is_said(registry):
    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.kernel = nn.Parameter(torch.ones(2, 2))

    class OtherKind(LinearKind):
        modules = (Other,)

    with pytest.raises(UserError, match=r"OtherKind: Other has no `weight`; override parameters\(\)"):
        OtherKind().parameters(Other())
    with pytest.raises(UserError, match=r"OtherKind: a layer was called with x; override input\(\)"):
        OtherKind().input((), {"x": torch.ones(1)})


def test_a_forward_of_a_class_that_the_kind_names_is_no_forward_of_its_own():
    class Mine(nn.Linear):
        def forward(self, x):
            return super().forward(x)

    class Both(LinearKind):
        modules = (nn.Linear, Mine)

    assert not Both().has_own_forward(Mine(2, 2)) and not Both().has_own_forward(nn.Linear(2, 2))
    assert LinearKind().has_own_forward(Mine(2, 2))
