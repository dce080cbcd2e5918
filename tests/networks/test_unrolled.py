"""Unrolled recurrent layers against torch's own, and as local layers."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from locoprop_lightning import LocoPropModule
from locoprop_lightning.errors import UserError
from locoprop_lightning.networks import Unrolled
from locoprop_lightning.oracles import SpectralOracle
from locoprop_lightning.solvers import ClosedForm
from locoprop_lightning.tasks import Classification
from tests.support import close, quiet_trainer

LAYERS = {
    "lstm": lambda **more: nn.LSTM(3, 4, **more),
    "gru": lambda **more: nn.GRU(3, 4, **more),
    "tanh": lambda **more: nn.RNN(3, 4, **more),
    "relu": lambda **more: nn.RNN(3, 4, nonlinearity="relu", **more),
}
SETTINGS = {
    "plain": {},
    "batch_first": dict(batch_first=True),
    "deep": dict(num_layers=3, bias=False),
    "both_ways": dict(num_layers=2, bidirectional=True),
}


def leaves(found):
    out, state = found
    return [out, *(state if isinstance(state, tuple) else [state])]


@pytest.mark.parametrize("given", [False, True], ids=["zeros", "given"])
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("name", LAYERS)
def test_it_is_the_layer(name, settings, given):
    torch.manual_seed(0)
    layer = LAYERS[name](**SETTINGS[settings]).double()
    unrolled, x = Unrolled(layer), torch.randn(2, 5, 3, dtype=torch.float64)
    cells, n = layer.num_layers * (1 + layer.bidirectional), 2 if layer.batch_first else 5
    states = torch.randn(2, cells, n, 4, dtype=torch.float64)
    state = (tuple(states) if name == "lstm" else states[0]) if given else None
    own, other = leaves(layer(x, state)), leaves(unrolled(x, state))
    for a, b in zip(own, other, strict=True):
        close(b, a, 1e-12)
    for found in (own, other):
        sum(part.square().sum() for part in found).backward()
    close(unrolled.inputs[-1].weight.grad, dict(layer.named_parameters())[last(layer, "weight_ih")].grad, 1e-12)
    close(unrolled.states[0].weight.grad, layer.weight_hh_l0.grad, 1e-12)


def last(layer, name):
    return f"{name}_l{layer.num_layers - 1}" + ("_reverse" if layer.bidirectional else "")


def test_dropout_between_layers_is_for_training_alone():
    unrolled, x = Unrolled(nn.GRU(3, 4, 2, dropout=0.5)), torch.randn(5, 2, 3)
    assert not torch.equal(unrolled(x)[0], unrolled(x)[0])
    unrolled.eval()
    assert torch.equal(unrolled(x)[0], unrolled(x)[0])


class Last(nn.Module):
    """Classes of sequences, by what a recurrent layer gives last."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.head = Unrolled(layer), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.layer(x)[0][:, -1])


@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
@pytest.mark.parametrize("name", LAYERS)
def test_all_of_it_is_local(name):
    torch.manual_seed(0)
    x = torch.randn(64, 6, 3)
    data = DataLoader(list(zip(x, (x[:, 1, 0] > 0).long(), strict=True)), 64)
    oracle = dict(oracle=SpectralOracle(), step_length="activations")
    network = Last(LAYERS[name](batch_first=True))
    module = LocoPropModule(network, Classification(2), ClosedForm(), 0.1, 0.1, "squared", damping="relative", **oracle)
    first = module.task.loss(network(x), data.dataset[0][1].new_tensor([y for _, y in data.dataset])).item()
    trainer = quiet_trainer(max_epochs=40)
    trainer.fit(module, data)
    assert list(module.engine.local) == ["layer.inputs.0", "layer.states.0", "head"]
    assert trainer.callback_metrics["train/loss"] < 0.75 * first


def test_mistakes():
    with pytest.raises(UserError, match="takes an nn.LSTM, nn.GRU or nn.RNN, not LSTMCell"):
        Unrolled(nn.LSTMCell(3, 4))
    with pytest.raises(UserError, match="proj_size=2 is not supported"):
        Unrolled(nn.LSTM(3, 4, proj_size=2))
    with pytest.raises(UserError, match=r"not \[5, 3\]"):
        Unrolled(nn.LSTM(3, 4))(torch.zeros(5, 3))
    with pytest.raises(UserError, match="not PackedSequence"):
        Unrolled(nn.LSTM(3, 4))(nn.utils.rnn.pack_sequence([torch.zeros(5, 3)]))
