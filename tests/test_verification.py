"""What a local problem stands on is looked at with the first batch; else the rest optimizer trains the layer."""

import pytest
import torch
from lightning.pytorch import seed_everything
from torch import nn
from torch.func import functional_call
from torch.utils.data import DataLoader

from locoprop_lightning import BackpropModule, LocoPropModule
from locoprop_lightning.errors import UserError
from locoprop_lightning.layers import TransposedLinearKind, kind_of, rounding
from locoprop_lightning.local import MatrixOperator
from locoprop_lightning.local_layer import OTHER_GRADIENT as GRADIENT
from locoprop_lightning.solvers import ClosedForm
from locoprop_lightning.tasks import Task
from tests.support import quiet_trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
]
OUTPUT = "its output is not its matrix times its input"


class Squares(Task):
    def loss(self, output, target):
        return (output - target).square().mean()


def body():
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


class Penalised(nn.Module):
    """A critic with a gradient penalty: its value, and the slope of it."""

    def __init__(self):
        super().__init__()
        self.body, self.head = body(), nn.Linear(1, 1)

    def forward(self, x):
        x = x.detach().requires_grad_()
        value = self.body(x)
        (slope,) = torch.autograd.grad(value.sum(), x, create_graph=True)
        return self.head(value + slope.square().sum(1, keepdim=True))


class Derivative(nn.Module):
    """A loss of the derivative alone reaches no bias of the last layer."""

    def __init__(self):
        super().__init__()
        self.body, self.head = body(), nn.Linear(4, 1)

    def forward(self, x):
        x = x.detach().requires_grad_()
        return self.head(torch.autograd.grad(self.body(x).sum(), x, create_graph=True)[0])


class Masked(nn.Module):
    """A layer that is called with another weight than its own."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(4, 8), nn.Linear(8, 1)
        self.register_buffer("mask", (torch.arange(32) % 3 > 0).reshape(8, 4).double())

    def forward(self, x):
        own = {"weight": self.first.weight * self.mask, "bias": self.first.bias}
        return self.head(functional_call(self.first, own, x).tanh())


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(4, 4, dtype=torch.cdouble), nn.Linear(4, 1)

    def forward(self, x):
        return self.head(self.first(x.to(torch.cdouble)).real)


class Sized(nn.Module):
    """A transposed convolution that is told how large its output shall be."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.ConvTranspose1d(1, 2, 3, stride=2), nn.Linear(20, 1)

    def forward(self, x):
        return self.head(self.first(x[:, None], output_size=[10]).tanh().flatten(1))


class Scaled(nn.Linear):
    def forward(self, x):
        return 1.05 * super().forward(x)


class OneRow(nn.Linear):
    """Gives one sample of a batch another output."""

    def forward(self, x):
        return super().forward(x) * (1 + 0.1 * (torch.arange(len(x)) == 3))[:, None]


class Noisy(nn.Linear):
    """What its output is in training is not what the probing pass sees."""

    def forward(self, x):
        return super().forward(x) + (torch.randn(8, dtype=x.dtype) if self.training else 0)


def fit(module, steps=3):
    x = torch.randn(steps * 16, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    trainer = quiet_trainer(
        max_epochs=1,
        precision="64-true",
    )
    trainer.fit(module, DataLoader(list(zip(x, x.sum(1, keepdim=True).sin(), strict=True)), 16))
    return module


def local(network, **arguments):
    arguments = dict(lambda_a=3.0, lambda_r=1.0, objective="squared") | arguments
    return LocoPropModule(network, Squares(), ClosedForm(), **arguments)


def chained(first):
    return nn.Sequential(first, nn.Tanh(), nn.Linear(8, 1))


CASES = {
    "gradient penalty": (Penalised, {"body.0": GRADIENT, "body.2": GRADIENT}, ["head"]),
    "derivative alone": (Derivative, {"body.0": GRADIENT, "body.2": GRADIENT}, ["head"]),
    "masked weight": (Masked, {"first": OUTPUT}, ["head"]),
    "complex weight": (Complex, {"first": "complex weights"}, ["head"]),
    "output size": (Sized, {"first": OUTPUT}, ["head"]),
    "one row scaled": (lambda: chained(OneRow(4, 8)), {"0": OUTPUT}, ["2"]),
    "scaled output": (lambda: chained(Scaled(4, 8)), {"0": OUTPUT}, ["2"]),
    "noise in training": (lambda: chained(Noisy(4, 8)), {"0": OUTPUT}, ["2"]),
}


@pytest.mark.parametrize(("make", "refused", "kept"), CASES.values(), ids=CASES)
def test_what_is_no_matrix_times_its_input_goes_to_the_rest(make, refused, kept):
    """It is trained by its true gradient, exactly as where it is skipped, and the table says why."""
    module = fit(local(make().double() if make is not Complex else make()))
    told = {info.name: info.reason for info in module.engine.found if not info.local}
    assert told == refused and list(module.engine.local) == kept
    seed_everything(0, verbose=False)
    network = make()
    start = network.state_dict()
    skipped, checked = (local(type_of(make, start), skip=skip) for skip in (list(refused), []))
    for one in (skipped, checked):
        seed_everything(1, verbose=False)
        fit(one)
    for a, b in zip(skipped.network.parameters(), checked.network.parameters(), strict=True):
        assert torch.equal(a, b)
    moved = [not torch.equal(p, start[name].to(p)) for name, p in checked.network.named_parameters() if p.dim() > 1]
    assert all(moved)


def type_of(make, state):
    network = make()
    network.load_state_dict(state)
    return network if make is Complex else network.double()


class Casting(nn.Linear):
    """As the scripts of language models have it: a weight kept in float32 and used in the type of the input."""

    def forward(self, x):
        return nn.functional.linear(x, self.weight.type_as(x), self.bias.type_as(x))


class Conv1D(nn.Module):
    """A stand-in for Hugging Face's layer of this name, with its weight [inputs, outputs]."""

    __module__ = "transformers.pytorch_utils"

    def __init__(self, nf, nx):
        super().__init__()
        self.nf = nf
        self.weight, self.bias = nn.Parameter(torch.empty(nx, nf)), nn.Parameter(torch.empty(nf))

    def forward(self, x):
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(*x.size()[:-1], self.nf)


@pytest.mark.parametrize("make", [lambda: Casting(4, 8), lambda: Conv1D(8, 4)], ids=["casting", "conv1d"])
def test_layers_that_are_linear_by_another_name_are_trained_as_linear_ones(make):
    seed_everything(0, verbose=False)
    plain, other = chained(nn.Linear(4, 8)).double(), chained(make()).double()
    with torch.no_grad():
        other[2].load_state_dict(plain[2].state_dict())
        transposed = other[0].weight.shape == (4, 8)
        other[0].weight.copy_(plain[0].weight.t() if transposed else plain[0].weight)
        other[0].bias.copy_(plain[0].bias)
    assert isinstance(kind_of(other[0]), TransposedLinearKind) == transposed
    modules = [fit(local(network)) for network in (plain, other)]
    assert [list(module.engine.local) for module in modules] == [["0", "2"]] * 2
    got = other[0].weight.t() if transposed else other[0].weight
    torch.testing.assert_close(got, plain[0].weight, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(other[0].bias, plain[0].bias, rtol=1e-10, atol=1e-10)


class Guided(nn.Module):
    """Moves its input along the slope of an energy, which the loss then knows nothing of."""

    def __init__(self):
        super().__init__()
        self.energy, self.head = body(), nn.Linear(4, 1)

    def forward(self, x):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.energy(x).sum(), x)
        return self.head(x - 0.1 * slope)


def test_layers_that_the_loss_does_not_reach_stay_as_they_are():
    """Their outputs have gradients, but of a pass within the forward pass."""
    module = local(Guided().double())
    start = {name: p.clone() for name, p in module.network.named_parameters()}
    fit(module)
    told = {info.name: info.reason for info in module.engine.found if not info.local}
    assert told == {"energy.0": GRADIENT, "energy.2": GRADIENT} and list(module.engine.local) == ["head"]
    moved = {name for name, p in module.network.named_parameters() if not torch.equal(p, start[name])}
    assert moved == {"head.weight", "head.bias"}


class Late(nn.Module):
    """From its second training step on it has a layer more, which it calls with other weights."""

    def __init__(self):
        super().__init__()
        self.first, self.late, self.steps = nn.Linear(4, 1), nn.Linear(4, 1), 0

    def forward(self, x):
        out = self.first(x)
        self.steps += self.training
        if self.steps > 1:
            out = out + functional_call(self.late, {"weight": self.late.weight * 3}, x)
        return out


def test_a_layer_that_is_called_later_is_checked_then(caplog):
    module = fit(local(Late().double()))
    assert list(module.engine.local) == ["first"]
    assert [r.message for r in caplog.records if r.name == "locoprop_lightning.engine"] == [
        f"Layer 'late' is left to the rest optimizer: {OUTPUT}."
    ]


class Penalty(Squares):
    """A gradient penalty in the loss, from the second step on."""

    steps = 0

    def mean_loss(self, output, target):
        self.steps += 1
        loss = super().mean_loss(output, target)
        if self.steps == 1:
            return loss
        (slope,) = torch.autograd.grad(output.sum(), self.layer.weight, create_graph=True)
        return loss + slope.square().mean()


@pytest.mark.parametrize("where", ["forward", "loss"])
def test_a_gradient_penalty_that_begins_later_is_noticed(where, caplog):
    class Critic(Penalised):
        steps = 0

        def forward(self, x):
            self.steps += self.training
            return super().forward(x) if self.steps > 1 else self.head(self.body(x))

    if where == "forward":
        module = local(Critic().double())
        penalised = {"body.0", "body.2"}
    else:
        task, network = Penalty(), chained(nn.Linear(4, 8)).double()
        task.layer = network[0]
        module = LocoPropModule(network, task, ClosedForm(), lambda_a=3.0, lambda_r=1.0, objective="squared")
        penalised = {"2"}  # the slope is made of its weight, and of the first layer by its output alone
    fit(module)
    told = {info.name: info.reason for info in module.engine.found if not info.local}
    assert told == dict.fromkeys(penalised, GRADIENT)
    for name in penalised:
        assert f"Layer {name!r} is left to the rest optimizer: {GRADIENT}." in [r.message for r in caplog.records]


def test_a_derivative_alone_that_comes_later_is_noticed():
    """The last layer's output is reached by the inner pass alone."""

    class Later(nn.Module):
        steps = 0

        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(4, 16), nn.Linear(16, 1)

        def forward(self, x):
            x = x.detach().requires_grad_()
            u = self.head(self.body(x).tanh())
            self.steps += self.training
            slope = torch.autograd.grad(u.sum(), x, create_graph=True)[0].sum(1, keepdim=True)
            return slope if self.steps > 2 else u

    module = fit(local(Later().double()), steps=3)
    told = {info.name: info.reason for info in module.engine.found if not info.local}
    assert told == {"body": GRADIENT, "head": GRADIENT}


def test_a_penalty_on_a_weight_is_noticed_when_it_begins():
    class Decay(Squares):
        steps = 0

        def mean_loss(self, output, target):
            self.steps += 1
            penalty = self.layer.weight.abs().sum() if self.steps > 2 else 0
            return super().mean_loss(output, target) + penalty

    task, network = Decay(), chained(nn.Linear(4, 8)).double()
    task.layer = network[0]
    module = LocoPropModule(network, task, ClosedForm(), lambda_a=3.0, lambda_r=1.0, objective="squared")
    fit(module, steps=3)
    assert list(module.engine.local) == ["0", "2"]
    fit(module, steps=4)
    assert list(module.engine.local) == ["2"]


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # which torch itself uses
@pytest.mark.parametrize("transform", ["jacrev", "grad", "hessian", "jacfwd"])
def test_layers_within_torch_func_are_left_to_the_rest(transform):
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = body(), nn.Linear(1, 1)

        def forward(self, x):
            made = getattr(torch.func, transform)(lambda one: self.body(one).sum())
            return self.head(torch.vmap(made)(x).flatten(1).sum(1, keepdim=True))

    module = fit(local(Functional().double()))
    assert {x.name: x.reason for x in module.engine.found if x.reason} == dict.fromkeys(
        ("body.0", "body.2"),
        "called where its rows cannot be recorded: in checkpoint(use_reentrant=True) or within torch.func",
    )


class Named(nn.Linear):
    """Its input has another name."""

    def forward(self, hidden_states):
        return super().forward(hidden_states)


class Keyword(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.head = Named(4, 8), nn.Linear(8, 1)

    def forward(self, x):
        return self.head(self.first(hidden_states=x).tanh())


def test_a_layer_with_arguments_of_its_own_is_left_to_the_rest():
    module = fit(local(Keyword().double()))
    assert {x.name: x.reason for x in module.engine.found if x.reason} == {"first": OUTPUT}
    fit(BackpropModule(Keyword().double(), Squares(), lambda p: torch.optim.SGD(p, lr=0.01)))


def test_gradients_that_are_added_up_in_16_bits_are_rounding():
    class Often(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.again, self.head = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 1)

        def forward(self, x):
            x = self.first(x)
            for _ in range(100):
                x = x + self.again(x).tanh() / 100
            return self.head(x)

    module = local(Often())
    x = torch.randn(32, 4)
    trainer = quiet_trainer(max_epochs=1, precision="bf16-true")
    trainer.fit(module, DataLoader(list(zip(x.bfloat16(), x.sum(1, keepdim=True).bfloat16(), strict=True)), 16))
    assert list(module.engine.local) == ["first", "again", "head"]


def test_an_output_size_that_comes_later_makes_no_wrong_rows():
    class Resized(Sized):
        steps = 0

        def forward(self, x):
            self.steps += self.training
            size = [10 if self.steps == 2 else 9]
            out = self.first(x[:, None], output_size=size).tanh()[:, :, :9]
            return self.head(out.flatten(1))

    network = Resized()
    network.head = nn.Linear(18, 1)
    start = network.double().first.weight.clone()
    module = local(network, rest_optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
    problems = []
    module.engine.problems, own = (lambda *a: problems.append(own(*a)) or problems[-1]), module.engine.problems
    fit(module)
    assert [list(made) for made in problems] == [["first", "head"], ["head"], ["first", "head"]]
    assert not torch.equal(network.first.weight, start)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_passes_and_a_few_per_cent_do_not(dtype):
    """However many inputs and rows a layer has."""
    seed_everything(0, verbose=False)
    layer = nn.Linear(1024, 8)
    x = torch.randn(8192, 1024).to(dtype)
    operator, matrix = MatrixOperator(x.float(), True), torch.cat([layer.weight, layer.bias[:, None]], 1).detach()
    rows = nn.functional.linear(x, layer.weight.to(dtype), layer.bias.to(dtype)).detach().float()
    off = 1.05 if dtype == torch.float32 else 1.1
    assert not rounding.differs(operator, matrix, rows, dtype)
    assert rounding.differs(operator, matrix, rows * off, dtype)


def test_rows_of_a_detached_call_do_not_count():
    class Detached(nn.Module):
        def __init__(self, again):
            super().__init__()
            self.first, self.head, self.again = nn.Linear(4, 8), nn.Linear(8, 1), again

        def forward(self, x):
            return self.head(self.first(x).tanh() + (0 * self.first(100 * x).detach() if self.again else 0))

    found = []
    for again in (False, True):
        seed_everything(0, verbose=False)
        found.append(fit(local(Detached(again).double())).network)
    for a, b in zip(*(network.parameters() for network in found), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_a_network_without_a_local_layer_says_why_of_each():
    frozen = nn.Linear(4, 4).requires_grad_(False)
    bag, table, complex_ = nn.EmbeddingBag(4, 4), nn.Embedding(4, 4), nn.Linear(4, 4, dtype=torch.cfloat)
    network = nn.Sequential(frozen, bag, complex_, nn.Linear(4, 1), nn.LayerNorm(1), table)
    told = r"0: frozen; 1: no registered kind takes it; 2: complex weights; 3: skipped; 5: local on request \(include\)"
    with pytest.raises(UserError, match=rf"no layer to train locally \({told}\); use BackpropModule"):
        local(network, skip=["3"])


def test_lazy_layers_are_refused_until_they_have_a_shape():
    network = chained(nn.LazyLinear(8))
    with pytest.raises(UserError, match="layer '0' has no shape yet: call the network once with a batch"):
        local(network)
    network(torch.ones(1, 4))
    assert list(fit(local(network.double())).engine.local) == ["0", "2"]


def test_back_propagation_takes_all_of_them():
    for make, _, _ in CASES.values():
        network = make() if make is Complex else make().double()
        fit(BackpropModule(network, Squares(), lambda p: torch.optim.SGD(p, lr=0.01)))


def test_a_hook_that_only_looks_leaves_a_layer_local():
    network, seen = chained(nn.Linear(4, 8)).double(), []
    network[0].register_forward_hook(lambda module, args, output: seen.append(output.shape))
    assert list(fit(local(network)).engine.local) == ["0", "2"] and seen


def test_the_check_costs_one_product_a_layer_at_steps_that_are_powers_of_two(monkeypatch):
    adjoint, products = MatrixOperator.adjoint, []
    monkeypatch.setattr(MatrixOperator, "adjoint", lambda self, r: products.append(self) or adjoint(self, r))
    fit(local(chained(nn.Linear(4, 8)).double()), steps=7)
    assert len(products) == 2 * 3
