"""``nn.Linear``, on inputs of any rank."""

from collections.abc import Sequence

from torch import Tensor, nn

from locoprop_lightning.layers.kind import LayerKind, join
from locoprop_lightning.local.operator import MatrixOperator


class LinearKind(LayerKind):
    """Linear layers: a row is a sample, or a token."""

    modules = (nn.Linear,)

    def operator(self, module: nn.Linear, inputs: Sequence[Tensor]) -> MatrixOperator:  # noqa: D102
        rows = join([x.reshape(-1, x.shape[-1]) for x in inputs])
        return MatrixOperator(rows, module.bias is not None)

    def empty(self, module: nn.Linear) -> Tensor:  # noqa: D102
        return module.weight.new_zeros(0, module.in_features)
