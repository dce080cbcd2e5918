"""Networks of which ``torch.compile`` has compiled parts train as they do uncompiled."""

import logging

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from locoprop_lightning import BackpropModule, LocoPropModule
from locoprop_lightning.errors import UserError
from locoprop_lightning.layers.compiled import is_compiled, named_modules, original
from locoprop_lightning.oracles import WhitenedOracle
from locoprop_lightning.solvers import Majorization
from locoprop_lightning.tasks import Classification
from tests.support import quiet_trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor"),  # torch's compiler looks at it
]


class Blocks(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.block = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.block(self.first(x).relu()))


def inner(network, **options):
    network.block = torch.compile(network.block, **options)
    return network


def in_place(network, **options):
    network.compile(**options)
    return network


def method(network, **options):
    network.forward = torch.compile(network.forward, **options)
    return network


WAYS = {"whole": torch.compile, "inner": inner, "in place": in_place, "method": method}


@pytest.fixture
def compiled(request):
    """A function that compiles a network one way, without a graph break, and the graphs that it makes."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    yield lambda network, way: WAYS[way](network, backend=backend, fullgraph=True), graphs
    torch._dynamo.reset()


def fit(network, make):
    if make == "locoprop":
        oracle = WhitenedOracle(damping=1.0, samples=1)
        module = LocoPropModule(network, Classification(4), Majorization(2), 0.1, 0.1, "matching", oracle)
    else:
        module = BackpropModule(network, Classification(4), lambda p: torch.optim.SGD(p, lr=0.1))
    trainer = quiet_trainer(max_epochs=2)
    generator = torch.Generator().manual_seed(0)
    data = DataLoader(list(zip(torch.randn(24, 6, generator=generator), torch.arange(24) % 4, strict=True)), 8)
    trainer.fit(module, data, data)
    return module, trainer.callback_metrics["val/loss"]


@pytest.mark.parametrize("make", ["locoprop", "backprop"])
@pytest.mark.parametrize("way", WAYS)
def test_a_compiled_network_trains_as_it_does_uncompiled(compiled, way, make, capsys, caplog):
    found = []
    for compiles in (False, True):
        torch.manual_seed(0)
        network = compiled[0](Blocks(), way) if compiles else Blocks()
        with caplog.at_level(logging.WARNING, logger="locoprop_lightning"):
            module, loss = fit(network, make)
        found.append((module, loss))
    (plain, expected), (other, loss) = found
    torch.testing.assert_close(loss, expected)
    for a, b in zip(plain.network.parameters(), other.network.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    assert compiled[1], "validation is compiled"
    assert "_orig_mod" not in capsys.readouterr().out
    assert caplog.text.count("run the network uncompiled") == (make == "locoprop")
    if way != "inner":
        assert other.state_dict().keys() == plain.state_dict().keys()
    if make == "locoprop":
        assert list(other.engine.local) == list(plain.engine.local) == ["first", "block.0", "head"]


class Decorated(Blocks):
    @torch.compile(backend="eager", fullgraph=True)
    def forward(self, x):
        return super().forward(x)


@torch.compile(backend="eager", fullgraph=True)
def helper(layer, x):
    return layer(x).relu()


class Helped(Blocks):
    def forward(self, x):
        return self.head(self.block(helper(self.first, x)))


@pytest.mark.parametrize("make", ["locoprop", "backprop"])
@pytest.mark.parametrize("kind", [Decorated, Helped])
def test_what_is_compiled_by_a_decorator(kind, make):
    torch._dynamo.reset()
    found = []
    for one in (Blocks, kind):
        torch.manual_seed(0)
        found.append(fit(one(), make)[0].network)
    for a, b in zip(*(network.parameters() for network in found), strict=True):
        torch.testing.assert_close(a, b)
    torch._dynamo.reset()


def test_names(compiled):
    network = Blocks()
    names = list(dict(named_modules(network)))
    assert not is_compiled(network) and original(network) is network
    whole = compiled[0](network, "whole")
    assert is_compiled(whole) and original(whole) is network and list(dict(named_modules(whole))) == names
    nested = compiled[0](Blocks(), "inner")
    assert is_compiled(nested) and original(nested) is nested and list(dict(named_modules(nested))) == names


def test_a_compiled_network_may_be_set_between_fits(compiled):
    module, _ = fit(Blocks(), "locoprop")
    names = list(module.state_dict())
    module.network = compiled[0](module.network, "whole")
    assert list(module.state_dict()) == names and isinstance(module.network, Blocks)
    quiet_trainer(max_epochs=1).validate(
        module, DataLoader([(torch.randn(3, 6), torch.arange(3))], batch_size=None), verbose=False
    )
    assert compiled[1]


def test_a_module_that_is_compiled_as_a_whole_is_refused():
    module, _ = fit(Blocks(), "locoprop")
    data = DataLoader([(torch.randn(6), 1)])
    with pytest.raises(UserError, match=r"torch.compile\(module\): .* LocoPropModule\(torch.compile\(network\), ...\)"):
        quiet_trainer(max_epochs=1).fit(torch.compile(module, backend="eager"), data, data)
