import pytest
import torch
from torch import nn

from locoprop_lightning.errors import UserError
from locoprop_lightning.layers import discover
from locoprop_lightning.networks import ConvNet, Decoder, DeepAutoencoder, ResNet18, Transformer
from locoprop_lightning.networks.decoder import rotate


def widths(network):
    linear = [m for m in network if isinstance(m, nn.Linear)]
    return [linear[0].in_features, *(m.out_features for m in linear)]


def test_autoencoder_sizes():
    assert widths(DeepAutoencoder()) == [784, 1000, 500, 250, 30, 250, 500, 1000, 784]
    assert widths(DeepAutoencoder(depth=2)) == [784, 1000, 500, 500, 250, 30, 250, 500, 500, 1000, 784]
    assert widths(DeepAutoencoder(64, width=0.5)) == [64, 500, 250, 125, 15, 125, 250, 500, 64]


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_autoencoder_transfers(activation):
    layers = discover(DeepAutoencoder(activation=activation), torch.rand(2, 1, 28, 28))
    names = [layer.transfer.name for layer in layers]
    assert names == [*[activation] * 3, "identity", *[activation] * 3, "identity"]
    assert [layer.output for layer in layers] == [*[False] * 7, True]


def test_autoencoder_initialisation():
    layer = DeepAutoencoder()[1]
    limit = (6 / 1784) ** 0.5
    assert 0.99 * limit < layer.weight.abs().max() <= limit
    assert 0.9 * (3 / 1000) ** 0.5 < layer.bias.abs().max() <= (3 / 1000) ** 0.5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DeepAutoencoder(depth=0), "depth=0"),
        (lambda: DeepAutoencoder(width=0.01), "leaves the code no unit"),
        (lambda: DeepAutoencoder(activation="gelu"), "take one of tanh, relu"),
        (lambda: DeepAutoencoder()(torch.zeros(2, 64)), "set in_features to 64"),
        (lambda: Transformer(width=10, heads=3), "heads must divide width"),
        (lambda: Transformer(length=0), "length=0"),
        (lambda: Decoder(width=12, heads=2), "width must be a multiple of 4 x heads"),
        (lambda: Decoder(depth=2, vocabulary=0), "vocabulary=0"),
        (lambda: Transformer(length=4)(torch.zeros(1, 5, dtype=torch.long)), "has 5 tokens a sequence"),
    ],
)
def test_mistakes(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_convnet():
    network = ConvNet()
    assert [tuple(p.shape) for p in network.parameters() if p.dim() > 1] == [
        (32, 1, 5, 5),
        (64, 32, 5, 5),
        (1024, 3136),
        (10, 1024),
    ]
    assert network(torch.rand(3, 1, 28, 28)).shape == (3, 10)
    weight = network[3].weight
    assert weight.abs().max() <= 0.1 and 0.042 < weight.std() < 0.046  # 0.8796 of 0.05, cut at two deviations
    assert all((m.bias == 0.05).all() for m in network if isinstance(m, nn.Conv2d | nn.Linear))
    assert [layer.transfer.name for layer in discover(network, torch.rand(2, 1, 28, 28))] == ["relu"] * 3 + ["identity"]


def test_resnet18():
    network = ResNet18()
    assert network(torch.rand(2, 1, 28, 28)).shape == (2, 10)
    local = [layer for layer in discover(network, torch.rand(2, 1, 28, 28)) if layer.local]
    assert len(local) == 21  # 17 convolutions of 3 x 3 and 7 x 7, 3 of 1 x 1, the classifier
    assert {layer.transfer.name for layer in local} == {"identity"}  # normalisation follows


@pytest.mark.parametrize(
    "network",
    [
        lambda: Transformer(vocabulary=11, length=6, width=8, depth=2, heads=2),
        lambda: started(Decoder(vocabulary=11, width=16, depth=2, heads=2)),
    ],
    ids=["transformer", "decoder"],
)
def test_next_token_networks_are_causal(network):
    network = network()
    tokens = torch.randint(11, (2, 6))
    changed = tokens.clone()
    changed[:, 4] = (changed[:, 4] + 1) % 11
    with torch.no_grad():
        before, after = network(tokens), network(changed)
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert (before[:, 4:] != after[:, 4:]).any(-1).all()


def started(network):
    """A network none of whose weights is zero."""
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network


def test_the_decoder_starts_from_equal_odds_and_its_logits_are_bounded():
    tokens = torch.randint(11, (2, 6))
    assert not Decoder(vocabulary=11, width=16, depth=2, heads=2)(tokens).any()
    network = started(Decoder(vocabulary=11, width=16, depth=2, heads=2))
    nn.init.normal_(network.head.weight, std=1e3)
    assert 14.9 < network(tokens).abs().max() <= 15
    network.cap = None
    assert network(tokens).abs().max() > 100


def test_rotated_products_depend_on_the_distance_alone():
    q, k = torch.randn(2, 16, dtype=torch.float64)
    turned_q, turned_k = (rotate(x.expand(1, 1, 9, 16))[0, 0] for x in (q, k))
    products = turned_q @ turned_k.t()
    for distance in range(-8, 9):
        diagonal = products.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=0, atol=1e-5)  # angles in float32
    torch.testing.assert_close(turned_q.norm(dim=1), q.norm().expand(9))
    assert len(products.diagonal().round(decimals=6).unique()) == 1 and products[0].std() > 0.1
    slow = turned_q.reshape(9, 2, 2, 4)[:, :, 1]  # half of the pairs have no position
    torch.testing.assert_close(slow, slow[:1].expand_as(slow))


def test_decoder_layers():
    layers = {layer.name: layer for layer in discover(Decoder(), torch.zeros(2, 5, dtype=torch.long))}
    local = {name for name, layer in layers.items() if layer.local}
    parts = ("attention.q", "attention.k", "attention.v", "attention.out", "up", "down")
    assert local == {f"blocks.{i}.{part}" for i in range(4) for part in parts} | {"head"}
    assert {name for name in local if layers[name].transfer.name == "relu"} == {f"blocks.{i}.up" for i in range(4)}


def test_transformer_layers():
    layers = {layer.name: layer for layer in discover(Transformer(), torch.zeros(2, 5, dtype=torch.long))}
    local = {name for name, layer in layers.items() if layer.local}
    parts = ("attention.q", "attention.k", "attention.v", "attention.o", "up", "down")
    assert local == {f"blocks.{i}.{part}" for i in range(4) for part in parts} | {"head"}
    assert {name for name in local if layers[name].transfer.name == "relu"} == {f"blocks.{i}.up" for i in range(4)}
