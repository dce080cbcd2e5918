import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from locoprop_lightning.errors import UserError
from locoprop_lightning.layers import discover
from locoprop_lightning.local.activations import SELU, Hardsigmoid
from locoprop_lightning.local.transfer import Softplus


class Net(nn.Module):
    """Two layers and what a test does between them."""

    def __init__(self, between, **modules):
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 2)
        for name, module in modules.items():
            setattr(self, name, module)
        self.between = between if isinstance(between, nn.Module) else None
        self._between = between

    def forward(self, x):
        return self.last(self._between(self.first(x)))


def look(network, inputs=None, **arguments):
    inputs = torch.randn(2, 4) if inputs is None else inputs
    return {layer.name: layer for layer in discover(network, inputs, **arguments)}


@pytest.mark.parametrize(
    "tanh",
    [nn.Tanh(), torch.tanh, F.tanh, lambda a: a.tanh(), lambda a: a.tanh_(), torch.tanh_],
    ids=["module", "torch", "functional", "method", "method_", "torch_"],
)
@pytest.mark.filterwarnings("ignore:nn.functional.tanh is deprecated")
def test_tanh(tanh):
    layers = look(Net(tanh))
    assert layers["first"].local and layers["first"].transfer.name == "tanh"
    assert layers["last"].transfer.name == "identity" and layers["last"].output


@pytest.mark.parametrize(
    ("between", "expected"),
    [
        (nn.ReLU(), "ReLU()"),
        (nn.ReLU(inplace=True), "ReLU()"),
        (lambda a: F.relu(a, inplace=True), "ReLU()"),
        (lambda a: a.relu_(), "ReLU()"),
        (nn.LeakyReLU(0.2), "LeakyReLU(0.2)"),
        (nn.LeakyReLU(0.2, inplace=True), "LeakyReLU(0.2)"),
        (nn.Sigmoid(), "Sigmoid()"),
        (torch.sigmoid, "Sigmoid()"),
        (nn.Softplus(beta=2.0), "Softplus(2.0)"),
        (nn.Softmax(dim=-1), "Softmax()"),
        (lambda a: a.softmax(1), "Softmax()"),
        (nn.ELU(0.5), "ELU(0.5, 1.0, 1.0)"),
        (lambda a: F.elu_(a), "ELU(1.0, 1.0, 1.0)"),
        (nn.CELU(2.0, inplace=True), "ELU(2.0, 1.0, 0.5)"),
        (nn.SELU(), repr(SELU())),
        (nn.Softsign(), "Softsign()"),
        (nn.LogSigmoid(), "LogSigmoid()"),
        (nn.Hardtanh(-2.0, 3.0), "Hardtanh(-2.0, 3.0, 1.0, 0.0)"),
        (nn.ReLU6(), "Hardtanh(0.0, 6.0, 1.0, 0.0)"),
        (F.relu6, "Hardtanh(0.0, 6.0, 1.0, 0.0)"),
        (nn.Hardsigmoid(), repr(Hardsigmoid())),
        (lambda a: a.clamp(-1, 1), "Hardtanh(-1.0, 1.0, 1.0, 0.0)"),
        (lambda a: torch.clip(a, max=2), "Hardtanh(-inf, 2.0, 1.0, 0.0)"),
        (lambda a: a.clamp(min=0), "ReLU()"),
        (lambda a: a.clamp(min=torch.zeros(4)), "Identity()"),
        (lambda a: a.clamp(1, -1), "Identity()"),
        (nn.ELU(-0.5), "Identity()"),
        (nn.Softmax(dim=0), "Identity()"),
        (nn.GELU(), "Identity()"),
        (nn.LayerNorm(4), "Identity()"),
        (lambda a: a + torch.tanh(a), "Identity()"),
        (lambda a: torch.relu_(a).tanh(), "ReLU()"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_transfers_found(between, expected):
    layer = look(Net(between))["first"]
    assert layer.local and repr(layer.transfer) == expected
    assert bool(layer.reason) == (expected == "Identity()")


def test_attributes_are_no_consumers():
    def between(a):
        assert a.dim() == 2 and a.shape[1] == 4 and a.dtype == torch.float32
        return torch.tanh(a)

    assert look(Net(between))["first"].transfer.name == "tanh"


def test_residual_sum():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return torch.tanh(x + self.b(torch.relu(self.a(x))))

    layers = look(Residual())
    assert layers["a"].transfer.name == "relu"
    assert layers["b"].transfer.name == "identity" and layers["b"].reason and not layers["b"].output


def test_dropout_ends_the_match():
    layer = look(Net(nn.Sequential(nn.Dropout(0.5), nn.Tanh())))["first"]
    assert layer.local and layer.transfer.name == "identity" and layer.reason


def test_output_transfer():
    layers = look(Net(nn.Tanh()), output_transfer="softmax")
    assert layers["last"].transfer.name == "softmax" and layers["first"].transfer.name == "tanh"
    assert look(Net(nn.Tanh()))["last"].transfer.name == "identity"


def test_squared_takes_the_identity_everywhere():
    layers = look(Net(nn.Tanh()), objective="squared", output_transfer="softmax")
    assert {layer.transfer.name for layer in layers.values()} == {"identity"}


def test_skip():
    layers = look(Net(nn.Tanh()), skip=["fir*"])
    assert not layers["first"].local and layers["first"].reason == "skipped" and layers["last"].local
    with pytest.raises(UserError, match=r"skip: 'frist' matches no layer; the layers are first, last\."):
        look(Net(nn.Tanh()), skip=["frist"])


def test_transfers():
    layers = look(Net(nn.GELU()), transfers={"first": "softplus", "last": Softplus(2.0)})
    assert repr(layers["first"].transfer) == "Softplus(1.0)" and repr(layers["last"].transfer) == "Softplus(2.0)"
    with pytest.raises(UserError, match="transfers: 'one' is not a local layer; they are first, last"):
        look(Net(nn.Tanh()), transfers={"one": "tanh"})
    with pytest.raises(UserError, match="There is no transfer 'gelu'"):
        look(Net(nn.Tanh()), transfers={"first": "gelu"})


def test_weights_read_directly():
    network = Net(lambda a: torch.tanh(a) + F.linear(a, network.first.weight))
    layer = look(network)["first"]
    assert not layer.local and "read" in layer.reason


def test_attention():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention, self.last = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 2)

        def forward(self, x):
            return self.last(self.attention(x, x, x)[0])

    layers = look(Attention(), torch.randn(2, 3, 4))
    assert not layers["attention"].local
    assert (
        layers["attention"].reason
        == "reads its weights in a function of torch; projections that are nn.Linear are local"
    )
    assert not layers["attention.out_proj"].local and "read" in layers["attention.out_proj"].reason
    assert layers["last"].local


def test_inputs_of_a_bilinear_layer_are_read_by_it_alone():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.pair = nn.Linear(4, 3), nn.Linear(4, 2), nn.Bilinear(3, 2, 5)

        def forward(self, x):
            return self.pair(input2=self.second(x), input1=self.first(x)).tanh()

    layers = look(Pair(), torch.randn(5, 4))
    assert layers["pair"].local and layers["pair"].transfer.name == "tanh"
    for name in ("first", "second"):
        assert layers[name].local and layers[name].reason == "no single known activation follows (bilinear)"


@pytest.mark.parametrize("make", [nn.RNN, nn.GRU, nn.LSTM, nn.RNNCell, nn.GRUCell, nn.LSTMCell])
def test_recurrent_layers(make):
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.last = make(4, 3), nn.Linear(3, 2)

        def forward(self, x):
            out = self.layer(x)
            return self.last(out[0] if isinstance(out, tuple) else out)

    layers = look(Recurrent(), torch.randn(5, 4))
    told = "reads its weights in a kernel of torch; networks.Unrolled has it in local layers"
    assert not layers["layer"].local and layers["layer"].reason == told and layers["last"].local


def test_used_twice():
    class Twice(nn.Module):
        def __init__(self, second):
            super().__init__()
            self.layer, self.second = nn.Linear(4, 4), second

        def forward(self, x):
            return self.second(self.layer(torch.tanh(self.layer(x)))).sum(-1)

    same = look(Twice(nn.Tanh()))["layer"]
    assert same.local and same.transfer.name == "tanh"
    different = look(Twice(nn.ReLU()))["layer"]
    assert different.local and different.transfer.name == "identity" and "different" in different.reason


def test_shared_frozen_and_unused():
    network = Net(nn.Tanh(), twin=nn.Linear(4, 4), unused=nn.Linear(4, 4))
    network.twin.weight = network.first.weight
    network.last.requires_grad_(False)
    layers = look(network)
    assert not layers["first"].local and "shared" in layers["first"].reason
    assert not layers["last"].local and layers["last"].reason == "frozen"
    assert layers["unused"].local and layers["unused"].reason == "not called in the first batch"


def test_parametrized():
    network = Net(nn.Tanh())
    nn.utils.parametrizations.weight_norm(network.first)
    layers = look(network)
    assert "first" not in layers or not layers["first"].local
    assert layers["last"].local


def test_nothing_is_changed():
    network = Net(nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Tanh()))
    network.between[1].eval()
    modes = [m.training for m in network.modules()]
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    state = torch.get_rng_state()

    class Noise(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return self.network(x + torch.randn_like(x))

    noise = Noise()
    layers = look(noise, torch.ones(2, 4))
    assert layers["network.between.0"].reason == "" and not layers["network.between.0"].local
    assert torch.equal(torch.get_rng_state(), state) and noise.calls == 0
    assert [m.training for m in network.modules()] == modes
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in network.named_buffers())
    assert all(p.grad is None for p in network.parameters())
    assert not any(m._forward_hooks for m in network.modules())


def test_cleans_up_after_an_exception():
    def fail(a):
        raise RuntimeError("stop")

    network = Net(fail)
    with pytest.raises(RuntimeError, match="stop"):
        look(network)
    assert network.training and not network.first._forward_hooks


def test_linear_with_a_forward_of_its_own_is_not_local():
    class Scaled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    network = nn.Sequential(Scaled(3, 4), nn.Tanh(), nn.Linear(4, 2))
    first, last = discover(network, torch.randn(2, 3))
    assert not first.local and first.reason == "its output is not its matrix times its input"
    assert last.local


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.grouped = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, groups=2)
        self.relu, self.gates = nn.ReLU(inplace=True), nn.Conv1d(4, 3, 1)
        self.volume, self.up = nn.Conv3d(1, 1, 1), nn.ConvTranspose2d(4, 4, 1)

    def forward(self, x):
        x = self.relu(self.first(x))
        x = torch.sigmoid(self.up(self.grouped(x) + x[:, :, 1:-1, 1:-1]))
        x = self.volume(x.unsqueeze(1)).squeeze(1)
        return self.gates(x.flatten(2)).softmax(1)


def test_convolutions():
    layers = look(Convolutions(), torch.randn(2, 1, 8, 8))
    found = {name: layer.transfer.name if layer.local else None for name, layer in layers.items()}
    assert found == {
        "first": "relu",
        "grouped": "identity",
        "gates": "softmax",
        "volume": "identity",
        "up": "sigmoid",
    }


def test_softmax_over_pixels_is_no_transfer():
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Softmax(-1), nn.Flatten())
    assert look(network, torch.randn(2, 1, 8, 8))["0"].transfer.name == "identity"


def test_convolution_used_at_two_sizes_is_not_local():
    class Pyramid(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 3, padding=1)

        def forward(self, x):
            return self.conv(x).mean() + self.conv(F.avg_pool2d(x, 2)).mean()

    layer = look(Pyramid(), torch.randn(2, 1, 8, 8))["conv"]
    assert not layer.local and layer.reason == "called with images of different sizes"


def test_several_inputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Linear(4, 3), nn.Linear(5, 3)

        def forward(self, a, b):
            return torch.tanh(self.left(a)) + self.right(b).relu()

    a, b = torch.randn(2, 4), torch.randn(2, 5)
    for inputs in ((a, b), [a, b], {"b": b, "a": a}):
        layers = look(Two(), inputs)
        assert (layers["left"].transfer.name, layers["right"].transfer.name) == ("tanh", "relu")


def test_convolution_with_a_product_of_its_own_is_not_local():
    class Own(nn.Conv2d):
        def _conv_forward(self, x, weight, bias):
            return super()._conv_forward(F.pad(x, (1, 1, 1, 1), "circular"), weight, bias)

    layer = look(nn.Sequential(Own(1, 1, 3)), torch.randn(2, 1, 8, 8))["0"]
    assert not layer.local and layer.reason == "its output is not its matrix times its input"


def reasons(network, x, **arguments):
    return {
        layer.name: (layer.reason, layer.transfer and layer.transfer.name)
        for layer in discover(network, x, **arguments)
    }


def test_layers_whose_output_is_not_their_product_are_not_local():
    own = "its output is not its matrix times its input"
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 2))
    network[0].register_forward_hook(lambda module, args, output: output * 3)
    forward = network[2].forward
    network[2].forward = lambda x: forward(x) * 3
    found = reasons(network, torch.randn(5, 3))
    assert found["0"] == found["2"] == (own, None) and found["3"] == ("", "identity")


def test_biases_of_others():
    class Borrowed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.b(self.a(x).relu() + self.a.bias)

    assert reasons(Borrowed(), torch.randn(5, 3))["a"] == ("weights are read outside the layer", None)
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    nn.utils.parametrize.register_parametrization(network[0], "bias", nn.Tanh())
    assert reasons(network, torch.randn(5, 3))["0"] == (
        "weights are made of other parameters (a parametrization)",
        None,
    )


def test_what_is_written_over_is_followed_by_nothing():
    class Written(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            y = self.a(x)
            y[:, 0] = 0
            kept = torch.zeros_like(y)
            z = self.b(y.relu())
            kept[:] = z
            return kept + z.tanh()

    none = "no single known activation follows"
    assert reasons(Written(), torch.randn(5, 3)) == {
        "a": (f"{none} (setitem, zeros_like, relu)", "identity"),
        "b": (f"{none} (setitem, tanh)", "identity"),
    }


def test_what_follows_is_named():
    network = nn.Sequential(nn.Linear(3, 3), nn.GELU(), nn.Linear(3, 3), nn.SiLU(inplace=True), nn.Linear(3, 2))
    none = "no single known activation follows"
    assert reasons(network, torch.randn(5, 3)) == {
        "0": (f"{none} (gelu)", "identity"),
        "2": (f"{none} (silu)", "identity"),
        "4": ("", "identity"),
    }


def test_buffers_that_forward_binds_anew_are_restored():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)
            self.register_buffer("count", torch.zeros(1))

        def forward(self, x):
            self.count = self.count + 1
            return self.layer(x)

    network = Counting()
    count = network.count
    discover(network, torch.randn(5, 3))
    assert network.count is count and count.item() == 0
