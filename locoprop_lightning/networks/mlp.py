"""The review's fully connected network."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from locoprop_lightning.errors import UserError, check_choice, check_counts, check_flags
from locoprop_lightning.networks.images import check_images
from locoprop_lightning.reprs import Told

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
    "identity": nn.Identity,
}


class MLP(Told, nn.Sequential):
    """Flattens its input [n, ...] and returns logits [n, out_features]; PyTorch's default initialisation.

    The defaults are the review's code: 784-512-(512 x 5)-10 with tanh, 1,720,330 parameters.

    Args:
        in_features: Values in a sample.
        hidden_features: Units in every hidden layer, or a list of the units of each.
        hidden_layers: Number of hidden layers, at least 0, where ``hidden_features`` is a number.
        out_features: Number of outputs.
        activation: What follows each hidden layer.
        bias: Whether the layers have biases.

    Example:
        >>> sum(p.numel() for p in MLP().parameters())
        1720330
        >>> [tuple(p.shape) for p in MLP(hidden_features=[1000, 500], bias=False).parameters()]
        [(1000, 784), (500, 1000), (10, 500)]
    """

    def __init__(
        self,
        in_features: int = 784,
        hidden_features: int | Sequence[int] = 512,
        hidden_layers: int = 6,
        out_features: int = 10,
        activation: Literal["tanh", "relu", "leaky_relu", "sigmoid", "softplus", "identity"] = "tanh",
        bias: bool = True,
    ) -> None:
        check_counts("MLP", 0, hidden_layers=hidden_layers)
        check_flags("MLP", bias=bias)
        several = isinstance(hidden_features, Sequence) and not isinstance(hidden_features, str)
        widths: list[int] = list(hidden_features) if several else [hidden_features] * hidden_layers  # type: ignore[arg-type, list-item]
        for width in widths or [1]:
            check_counts("MLP", 1, in_features=in_features, hidden_features=width, out_features=out_features)
        check_choice("MLP", _ACTIVATIONS, activation=activation)
        modules: list[nn.Module] = [nn.Flatten()]
        for before, width in pairwise([in_features, *widths]):
            modules += [nn.Linear(before, width, bias=bias), _ACTIVATIONS[activation]()]
        super().__init__(*modules, nn.Linear([in_features, *widths][-1], out_features, bias=bias))
        self.in_features = in_features

    def forward(self, x: Tensor) -> Tensor:
        """Logits [n, out_features] of samples [n, ...]."""
        check_images("MLP", x)
        if (values := x.shape[1:].numel()) != self.in_features:
            raise UserError(
                f"MLP(in_features={self.in_features}): a sample of this data has {values} values, shape "
                f"{tuple(x.shape[1:])}; set in_features to {values}, or give samples of {self.in_features}."
            )
        return super().forward(x)
