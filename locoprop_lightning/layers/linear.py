"""``nn.Linear``, on inputs of any rank, linear layers whose weight is transposed, and ``nn.Bilinear``."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from locoprop_lightning.layers.kind import LayerKind, join
from locoprop_lightning.local.operator import MatrixOperator


class LinearKind(LayerKind):
    """Linear layers: a row is a sample, or a token."""

    sparse = True
    modules: tuple[type[nn.Module], ...] = (nn.Linear,)

    def operator(self, module: nn.Linear, inputs: Sequence[Tensor]) -> MatrixOperator:  # noqa: D102
        rows = join([x.reshape(-1, x.shape[-1]) for x in inputs])
        return MatrixOperator(rows, module.bias is not None)

    def empty(self, module: nn.Linear) -> Tensor:  # noqa: D102
        return module.weight.new_zeros(0, module.weight.shape[1])


class GraphLinearKind(LinearKind):
    """PyTorch Geometric's own ``Linear``, which its convolutions multiply the features of nodes by."""

    modules = ()
    paths = ("torch_geometric.nn.dense.linear.Linear",)


class TransposedLinearKind(LinearKind):
    """Linear layers with a weight [d_in, d_out], as Hugging Face's ``Conv1D`` has it, of which GPT-2 is made."""

    modules = ()
    paths = ("transformers.pytorch_utils.Conv1D",)

    def input(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:  # noqa: D102
        return super().input(args, {"input": kwargs["x"]} if "x" in kwargs else kwargs)

    def matrix(self, module: nn.Module, x: Tensor) -> Tensor:  # noqa: D102
        return x.t()

    def from_matrix(self, module: nn.Module, matrix: Tensor) -> Tensor:  # noqa: D102
        return matrix.t().contiguous()

    def empty(self, module: Any) -> Tensor:  # noqa: D102
        return module.weight.new_zeros(0, len(module.weight))


class BilinearKind(LayerKind):
    """Bilinear layers: a row is the outer product of both inputs, so that C has the square of their sizes' product."""

    sparse = True
    modules = (nn.Bilinear,)

    def input(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
        """Both inputs, one after the other [..., in1 + in2]."""
        first, second = [*args, *(kwargs[name] for name in ("input1", "input2") if name in kwargs)]
        return torch.cat([first, second], -1)

    def operator(self, module: nn.Bilinear, inputs: Sequence[Tensor]) -> MatrixOperator:  # noqa: D102
        first, second = self._apart(module, join([x.reshape(-1, x.shape[-1]) for x in inputs]))
        return MatrixOperator((first[:, :, None] * second[:, None]).flatten(1), module.bias is not None)

    def empty(self, module: nn.Bilinear) -> Tensor:  # noqa: D102
        return module.weight.new_zeros(0, module.in1_features + module.in2_features)

    def call(self, module: nn.Bilinear, x: Tensor) -> Tensor:  # noqa: D102
        out: Tensor = module(*self._apart(module, x))
        return out

    def _apart(self, module: nn.Bilinear, x: Tensor) -> Sequence[Tensor]:
        return x.split([module.in1_features, module.in2_features], -1)
