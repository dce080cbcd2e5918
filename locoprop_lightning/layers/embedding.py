"""``nn.Embedding``: rows are one-hot, so that C is the diagonal of counts of tokens."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from locoprop_lightning.layers.kind import LayerKind, join
from locoprop_lightning.local.operator import LinearOperator, MatrixOperator


class EmbeddingKind(LayerKind):
    """Embeddings: a row is a token, and W is the transpose of the table; rows of ``padding_idx`` do not count."""

    modules = (nn.Embedding,)
    sparse = True
    on_request = True

    def refusal(self, module: nn.Embedding) -> str:  # noqa: D102
        if self.has_own_forward(module):
            return "an embedding with a forward or a hook of its own"
        if module.max_norm is not None:
            return "max_norm changes the weight in the forward pass"
        if module.scale_grad_by_freq:
            return "scale_grad_by_freq changes the weight gradient"
        return "sparse gradients" if module.sparse else ""

    def operator(self, module: nn.Embedding, inputs: Sequence[Tensor]) -> "OneHotOperator":  # noqa: D102
        dtype = torch.promote_types(module.weight.dtype, torch.float32)
        return OneHotOperator(join([x.flatten() for x in inputs]), module.num_embeddings, dtype)

    def empty(self, module: nn.Embedding) -> Tensor:
        """No tokens."""
        return torch.zeros(0, dtype=torch.int64, device=module.weight.device)

    def counting(self, module: nn.Embedding, inputs: Sequence[Tensor]) -> Tensor | None:  # noqa: D102
        if module.padding_idx is None:
            return None
        return join([x.flatten() for x in inputs]) != module.padding_idx

    def matrix(self, module: nn.Embedding, x: Tensor) -> Tensor:  # noqa: D102
        return x.t()

    def from_matrix(self, module: nn.Embedding, matrix: Tensor) -> Tensor:  # noqa: D102
        return matrix.t().contiguous()


class OneHotOperator(LinearOperator):
    """The operator of an embedding: products pick columns of V, and add up rows by token.

    Args:
        tokens: Token of each row, int64 or int32 [n].
        d_in: Number of tokens there are.
        dtype: Type of what is computed.
    """

    bias = False
    diagonal = True

    def __init__(self, tokens: Tensor, d_in: int, dtype: torch.dtype) -> None:
        self.tokens = tokens
        self.dtype = dtype
        self._d_in = d_in

    @property
    def n(self) -> int:  # noqa: D102
        return len(self.tokens)

    @property
    def device(self) -> torch.device:  # noqa: D102
        return self.tokens.device

    @property
    def d_in(self) -> int:  # noqa: D102
        return self._d_in

    def apply(self, v: Tensor, start: Tensor | None = None) -> Tensor:  # noqa: D102
        rows = v.t()[self.tokens]
        return rows if start is None else rows.add_(start)

    def adjoint(self, r: Tensor) -> Tensor:  # noqa: D102
        return r.new_zeros(self._d_in, r.shape[1]).index_add_(0, self.tokens, r).t()

    def gram(self) -> Tensor:
        """The diagonal of C: how many rows each token has [d_in]."""
        ones = self.squares()
        return ones.new_zeros(self._d_in).index_add_(0, self.tokens, ones)

    def squares(self) -> Tensor:  # noqa: D102
        return torch.ones(self.n, dtype=self.dtype, device=self.device)

    def select(self, index: Tensor) -> "OneHotOperator":  # noqa: D102
        return OneHotOperator(self.tokens[index], self._d_in, self.dtype)

    def dense(self) -> MatrixOperator:  # noqa: D102
        return MatrixOperator(nn.functional.one_hot(self.tokens.long(), self._d_in).to(self.dtype), False)
