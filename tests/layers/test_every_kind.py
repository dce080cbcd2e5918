"""Every kind of layer against autograd and dense algebra: its operator, and what a fit makes of it."""

import pytest
import torch
from torch import nn
from torch.autograd.functional import jacobian
from torch.func import functional_call
from torch.utils.data import DataLoader

from locoprop_lightning import LocoPropModule
from locoprop_lightning.layers import kind_of
from locoprop_lightning.local import LocalProblem, resolve_transfer
from locoprop_lightning.local.blocks import Blocks
from locoprop_lightning.local.operator import spread, times
from locoprop_lightning.solvers import ClosedForm, Status
from locoprop_lightning.tasks import Task
from tests.support import close, operator_of, quiet_trainer, rows_of, taped


def package(name):
    return pytest.importorskip(name, reason=f"{name.partition('.')[0]} is not installed")


TOKENS = torch.tensor([[3, 0, 3, 1], [5, 3, 0, 0]])
LAYERS = {  # a layer, and the size of its input
    "linear": (lambda: nn.Linear(4, 3), (6, 4)),
    "linear_tokens": (lambda: nn.Linear(4, 3, bias=False), (2, 3, 4)),
    "conv1d": (lambda: nn.Conv1d(2, 3, 2, bias=False), (2, 2, 5)),
    "conv2d": (lambda: nn.Conv2d(4, 4, (2, 3), (1, 2), (1, 0), groups=2), (2, 4, 3, 5)),
    "conv3d": (lambda: nn.Conv3d(2, 3, (2, 1, 3), (1, 2, 1), (0, 1, 2), (1, 1, 2)), (2, 2, 3, 4, 4)),
    "conv3d_groups": (lambda: nn.Conv3d(4, 6, 2, padding="same", groups=2, bias=False), (1, 4, 2, 3, 2)),
    "conv3d_reflect": (lambda: nn.Conv3d(1, 2, 3, padding=1, padding_mode="reflect"), (1, 1, 3, 2, 3)),
    "conv3d_circular": (lambda: nn.Conv3d(1, 2, 2, padding=(1, 0, 1), padding_mode="circular"), (1, 1, 3, 2, 3)),
    "conv3d_pixels": (lambda: nn.Conv3d(3, 2, 1, stride=2), (2, 3, 3, 2, 3)),
    "transposed1d": (lambda: nn.ConvTranspose1d(2, 3, 4, 3, 2, 1), (2, 2, 4)),
    "transposed1d_gaps": (lambda: nn.ConvTranspose1d(2, 3, 2, 3, dilation=2, bias=False), (2, 2, 4)),
    "transposed1d_cut": (lambda: nn.ConvTranspose1d(2, 3, 2, 2, padding=3), (2, 2, 7)),
    "transposed2d": (lambda: nn.ConvTranspose2d(2, 3, (2, 3), (2, 1), (0, 1), (1, 0), dilation=(1, 2)), (2, 2, 3, 4)),
    "transposed2d_groups": (lambda: nn.ConvTranspose2d(4, 6, 2, 2, groups=2), (2, 4, 2, 3)),
    "transposed3d": (lambda: nn.ConvTranspose3d(2, 2, 2, (1, 2, 1)), (1, 2, 2, 2, 3)),
    "hugging_face": (lambda: package("transformers.pytorch_utils").Conv1D(3, 4), (2, 3, 4)),
    "graph": (lambda: package("torch_geometric.nn.dense.linear").Linear(4, 3), (5, 4)),
    "bilinear": (lambda: nn.Bilinear(2, 3, 4), (2, 3, 5)),
    "embedding": (lambda: nn.Embedding(7, 3), TOKENS),
}
every_layer = pytest.mark.parametrize("name", LAYERS)
pytestmark = [
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths"),
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
]


def make(name):
    layer, size = LAYERS[name]
    return layer().double(), size if isinstance(size, torch.Tensor) else torch.randn(size, dtype=torch.float64)


def weights(layer):
    """[W | b] of the parameters, or of tensors of their shapes."""
    kind = kind_of(layer)
    weight, bias = kind.parameters(layer)
    return flat(layer, weight.detach().clone(), None if bias is None else bias.detach())


def flat(layer, weight, bias):
    matrix = kind_of(layer).matrix(layer, weight)
    return matrix if bias is None else torch.cat([matrix, bias[:, None]], 1)


def rows(layer, x):
    """Y [groups, n, width], by the derivative of every output with respect to every weight."""
    kind, v = kind_of(layer), weights(layer)
    d_in = kind.operator(layer, [x]).d_in

    def output(v):
        named = {"weight": kind.from_matrix(layer, v[:, :d_in])} | ({"bias": v[:, d_in]} if v.shape[1] > d_in else {})
        return rows_of(layer, functional_call(Called(layer), {f"layer.{k}": p for k, p in named.items()}, (x,)))

    slopes = jacobian(output, v)  # [n, d_out, d_out, width]
    own = slopes.diagonal(dim1=1, dim2=2).permute(2, 0, 1)  # [d_out, n, width]
    others = slopes - torch.diag_embed(own.permute(1, 2, 0)).permute(0, 2, 3, 1)
    assert (others == 0).all()
    y = own.unflatten(0, (getattr(layer, "groups", 1), -1))
    assert (y == y[:, :1]).all()  # all units of a group see the same
    return y[:, 0]


class Called(nn.Module):
    """A layer that takes its input as its kind has it."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return kind_of(self.layer).call(self.layer, x)


@every_layer
def test_the_operator_is_the_layer(name):
    layer, x = make(name)
    operator, y, v = operator_of(layer, [x]), rows(layer, x), weights(layer)
    out = Called(layer)(x)
    a, r = rows_of(layer, out.detach()), rows_of(layer, torch.randn_like(out))
    assert (operator.groups, operator.n, operator.width) == tuple(y.shape)
    assert (operator.bias, operator.device) == (kind_of(layer).parameters(layer)[1] is not None, x.device)
    close(operator.apply(v), a, 1e-10)
    start = r.clone()
    close(operator.apply(v, start=start), a + r, 1e-10)
    assert torch.equal(start, r)
    parts = r.unflatten(1, (len(y), -1)).movedim(1, 0)  # [groups, n, units of one]
    close(operator.adjoint(r), (parts.mT @ y).flatten(0, 1), 1e-10)
    grams = y.mT @ y
    given = operator.gram()
    expected = grams[0].diagonal() if operator.diagonal else grams if len(y) > 1 else grams[0]
    close(given, expected, 1e-10)
    close(operator.trace(), grams.diagonal(dim1=1, dim2=2).sum() / len(y), 1e-10)
    w = torch.randn_like(v)
    close(times(w, given), torch.bmm(w.unflatten(0, (len(y), -1)), grams).flatten(0, 1), 1e-10)
    some, index = operator.sample(5)
    assert torch.equal(index, spread(operator.n, 5, x.device)) and some.n == len(index)
    close(some.apply(w), operator.apply(w)[index], 1e-10)
    close(some.adjoint(r[index]), (parts[:, index].mT @ y[:, index]).flatten(0, 1), 1e-10)
    if len(y) == 1:
        close(operator.kernel(), y[0] @ y[0].T, 1e-10)
        close(operator.dense().apply(w), operator.apply(w), 1e-10)


@every_layer
def test_the_adjoint_is_the_weight_gradient(name):
    layer, x = make(name)
    out = Called(layer)(x)
    g = torch.randn_like(out)
    out.backward(g)
    kind = kind_of(layer)
    weight, bias = kind.parameters(layer)
    expected = flat(layer, weight.grad, None if bias is None else bias.grad)
    product = operator_of(layer, [x]).adjoint(rows_of(layer, g))
    close(product, expected, 1e-10)
    before = [p.grad.clone() for p in layer.parameters()]
    layer.zero_grad()
    d_in = product.shape[1] - (bias is not None)
    kind.write_gradient(layer, product[:, :d_in], None if bias is None else product[:, d_in])
    for p, gradient in zip(layer.parameters(), before, strict=True):
        close(p.grad, gradient, 1e-10)
        assert p.grad.shape == p.shape
    kind.write_gradient(layer.float(), product[:, :d_in], None)
    assert weight.grad.dtype == torch.float32


@every_layer
def test_the_matrix_and_back(name):
    layer, _ = make(name)
    kind = kind_of(layer)
    weight = kind.parameters(layer)[0]
    matrix = kind.matrix(layer, weight)
    assert torch.equal(kind.from_matrix(layer, matrix), weight)
    other = torch.randn_like(matrix)
    assert torch.equal(kind.matrix(layer, kind.from_matrix(layer, other)), other)


@every_layer
def test_rows_have_the_units_last(name):
    layer, x = make(name)
    kind, out = kind_of(layer), Called(layer)(x).detach()
    a, units = rows_of(layer, out), kind.units(layer)
    assert out.shape[units] == len(weights(layer)) and a.shape == (out.numel() // out.shape[units], out.shape[units])
    for unit in range(out.shape[units]):
        assert torch.equal(a[:, unit], out.select(units, unit).flatten())


@every_layer
def test_some_rows_are_kept(name, monkeypatch):
    """Also where the rows are unfolded of one image at a time, and of what was kept before."""
    monkeypatch.setattr("locoprop_lightning.layers.convolution._CHUNK_BYTES", 1)
    layer, x = make(name)
    whole, y, v = operator_of(layer, [x]), rows(layer, x), weights(layer)
    first = torch.arange(whole.n)[torch.arange(whole.n) % 3 > 0]
    kept, index = whole.keep(first).keep(torch.arange(1, len(first))), first[1:]
    y = y[:, index]
    assert kept.n == len(index) and whole.n > kept.n
    r = torch.randn(kept.n, len(v), dtype=v.dtype)
    close(kept.apply(v, start=r.clone()), whole.apply(v)[index] + r, 1e-12)
    parts = r.unflatten(1, (len(y), -1)).movedim(1, 0)
    close(kept.adjoint(r), (parts.mT @ y).flatten(0, 1), 1e-10)
    grams = y.mT @ y
    expected = grams[0].diagonal() if kept.diagonal else grams if len(y) > 1 else grams[0]
    close(kept.gram(), expected, 1e-10)
    close(kept.squares(), y.square().sum(-1).mean(0), 1e-10)
    close(kept.trace(), grams.diagonal(dim1=1, dim2=2).sum() / len(y), 1e-10)
    some, chosen = kept.sample(2)
    close(some.apply(v), whole.apply(v)[index[chosen]], 1e-12)
    if len(y) == 1:
        close(kept.dense().apply(v), kept.apply(v), 1e-12)
        halves = Blocks(2, lengths=torch.tensor([1, kept.n - 1]))
        close(kept.average(halves).gram(), whole.select(index).dense().average(halves).gram(), 1e-10)


@every_layer
def test_an_input_without_samples(name):
    layer, x = make(name)
    kind = kind_of(layer)
    empty = kind.empty(layer)
    assert kind.call(layer, empty).numel() == 0 and empty.dtype == x.dtype
    operator, v = operator_of(layer, [empty]), weights(layer)
    assert operator.n == 0 and operator.apply(v).shape == (0, len(v))
    for zeros in (operator.adjoint(v.new_zeros(0, len(v))), operator.gram(), operator.trace()):
        assert (zeros == 0).all()


def exact(layer, x, first_gradient, lambda_r):
    """V of the squared loss by a dense solve for each group of units, with the gradient at the start."""
    parts = []
    y = rows(layer, x)
    for own, g in zip(y, first_gradient.unflatten(0, (len(y), -1)), strict=True):
        c = own.T @ own + lambda_r * torch.eye(own.shape[1], dtype=own.dtype)
        parts.append(-torch.linalg.solve(c, g.T).T)
    return torch.cat(parts)


def problem_of(layer, x, transfer="identity", lambda_r=3.0, seed=0):
    out = rows_of(layer, Called(layer)(x).detach())
    d = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(seed)) / 4
    weight, bias = kind_of(layer).parameters(layer)
    weight = kind_of(layer).matrix(layer, weight.detach())
    bias = None if bias is None else bias.detach()
    operator = operator_of(layer, [x])
    return LocalProblem(operator, out, d, weight, bias, resolve_transfer(transfer), 0.5, lambda_r)


@every_layer
@pytest.mark.parametrize("settings", [{}, {"average": 0.9, "refresh_every": 3}], ids=["current", "kept"])
def test_the_exact_solution(name, settings):
    layer, x = make(name)
    problem = problem_of(layer, x)
    solution = ClosedForm(**settings).solve(problem)
    assert solution.status is Status.SOLVED
    close(solution.displacement, exact(layer, x, problem.first_gradient(), 3.0), 1e-10)


@every_layer
def test_the_tape_gives_what_autograd_does(name):
    """Of a layer that is called twice, before an activation in place."""
    layer, x = make(name)
    with taped({"layer": layer}) as tape:
        outputs = [Called(layer)(part) for part in (x, x.flip(0))]
        for out in outputs:
            out.tanh().square().sum().backward(retain_graph=True)
    record = tape.records["layer"]
    operator = record.operator()
    weight, bias = kind_of(layer).parameters(layer)
    close(operator.adjoint(record.gradient()), flat(layer, weight.grad, None if bias is None else bias.grad), 1e-10)
    close(record.pre_activation(operator), operator.apply(weights(layer)), 1e-10)
    assert record.n == operator.n == len(rows_of(layer, outputs[0])) * 2
    empty = record.without_rows()
    assert empty.n == 0 and empty.gradient().shape == (0, len(weights(layer)))


class Sums(Task):
    """A loss whose gradient is that of no other output."""

    def loss(self, output, target):
        return output.flatten(1).sin().sum(1).mean()


def fit(network, batches, **arguments):
    arguments = dict(lambda_a=3.0, lambda_r=1.0, objective="squared", solver=ClosedForm()) | arguments
    module = LocoPropModule(network, Sums(), **arguments)
    trainer = quiet_trainer(
        max_epochs=1,
        precision="64-true",
    )
    trainer.fit(module, DataLoader(batches, batch_size=None))
    return module


@every_layer
def test_a_step_of_a_fit_is_the_exact_solution(name):
    layer, x = make(name)
    network = Called(layer)
    start = weights(layer)
    network(x).flatten(1).sin().sum(1).mean().backward()
    weight, bias = kind_of(layer).parameters(layer)
    first = 3.0 * flat(layer, weight.grad, None if bias is None else bias.grad)
    expected = exact(layer, x, first, 1.0)
    network.zero_grad()
    module = fit(network, [((x,), torch.zeros(1))], include=["layer"])
    assert list(module.engine.local) == ["layer"] and module.engine.found[0].reason == ""
    close(weights(layer) - start, expected, 1e-10)
