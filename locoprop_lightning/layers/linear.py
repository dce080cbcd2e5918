"""``nn.Linear``, on inputs of any rank, and linear layers whose weight is transposed."""

from collections.abc import Mapping, Sequence
from typing import Any

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
        return module.weight.new_zeros(0, module.in_features)


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
