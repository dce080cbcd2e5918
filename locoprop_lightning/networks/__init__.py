"""Networks that the shipped configurations train, and recurrent layers that may be local."""

from locoprop_lightning.networks.autoencoder import DeepAutoencoder
from locoprop_lightning.networks.convnet import ConvNet
from locoprop_lightning.networks.decoder import Decoder
from locoprop_lightning.networks.mlp import MLP
from locoprop_lightning.networks.resnet import ResNet18
from locoprop_lightning.networks.transformer import Transformer
from locoprop_lightning.networks.unrolled import Unrolled

__all__ = ["MLP", "ConvNet", "Decoder", "DeepAutoencoder", "ResNet18", "Transformer", "Unrolled"]
