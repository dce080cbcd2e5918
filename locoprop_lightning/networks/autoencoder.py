"""The deep autoencoder on which second-order methods are compared."""

import math
from typing import Literal

from torch import Tensor, nn

from locoprop_lightning.errors import UserError, check_choice, check_counts, check_positive
from locoprop_lightning.networks.images import check_images
from locoprop_lightning.reprs import Told

_ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU}


class DeepAutoencoder(Told, nn.Sequential):
    """784-1000-500-250-30-250-500-1000-784 with a linear code, as Amid et al. (2022) train it.

    Flattens its input [n, ...] and returns logits of the pixels [n, in_features]. Weights are drawn as Glorot and
    Bengio (2010) have it, uniformly within sqrt(6 / (d_in + d_out)), biases within sqrt(3 / d_out).

    Args:
        in_features: Values in a sample.
        code: Units of the code.
        depth: How often the layers of 500 units stand one after the other; 2 is the published deeper network.
        width: What the units of every hidden layer are multiplied with; the code too.
        activation: "tanh" or "relu", after each layer but the code and the output.

    Example:
        >>> [layer.out_features for layer in DeepAutoencoder() if hasattr(layer, "out_features")]
        [1000, 500, 250, 30, 250, 500, 1000, 784]
    """

    def __init__(
        self,
        in_features: int = 784,
        code: int = 30,
        depth: int = 1,
        width: float = 1.0,
        activation: Literal["tanh", "relu"] = "tanh",
    ) -> None:
        check_counts("DeepAutoencoder", 1, in_features=in_features, code=code, depth=depth)
        check_positive("DeepAutoencoder", width=width)
        if round(code * width) < 1:
            raise UserError(
                f"DeepAutoencoder(code={code}, width={width}): leaves the code no unit; take a larger width."
            )
        check_choice("DeepAutoencoder", _ACTIVATIONS, activation=activation)
        encoder = [round(units * width) for units in [1000, *[500] * depth, 250]]
        widths = [in_features, *encoder, round(code * width), *reversed(encoder), in_features]
        modules: list[nn.Module] = [nn.Flatten()]
        for index, (d_in, d_out) in enumerate(zip(widths, widths[1:], strict=False)):
            layer = nn.Linear(d_in, d_out)
            nn.init.xavier_uniform_(layer.weight)
            nn.init.uniform_(layer.bias, -math.sqrt(3 / d_out), math.sqrt(3 / d_out))
            modules.append(layer)
            if index not in (len(encoder), len(widths) - 2):  # the code and the output are linear
                modules.append(_ACTIVATIONS[activation]())
        super().__init__(*modules)
        self.in_features = in_features

    def forward(self, x: Tensor) -> Tensor:
        """Logits [n, in_features] of samples [n, ...]."""
        check_images("DeepAutoencoder", x)
        if x[0].numel() != self.in_features:
            raise UserError(
                f"DeepAutoencoder(in_features={self.in_features}): a sample of this data has {x[0].numel()} values; "
                f"set in_features to {x[0].numel()}, or give samples of {self.in_features}."
            )
        return super().forward(x)
