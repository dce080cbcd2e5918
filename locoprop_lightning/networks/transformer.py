"""A small causal transformer whose projections are layers of their own."""

import torch
from torch import Tensor, nn

from locoprop_lightning.errors import UserError, check_counts
from locoprop_lightning.reprs import Told


class Attention(nn.Module):
    """Causal self-attention with separate query, key, value and output projections [n, length, width].

    Args:
        width: Size of a token's vector.
        heads: Number of heads, a divisor of ``width``.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.o(mixed.transpose(1, 2).flatten(2))
        return out


class Block(nn.Module):
    """Attention, then a two-layer network, each on normalised input and added to it (pre-norm)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm2, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        x = x + self.attention(self.norm1(x))
        out: Tensor = x + self.down(torch.relu(self.up(self.norm2(x))))
        return out


class Transformer(Told, nn.Module):
    """Predicts each next token: tokens [n, length] to logits [n, length, vocabulary].

    Embeddings are normal with standard deviation 0.02, linear layers keep PyTorch's initialisation.

    Args:
        vocabulary: Number of tokens.
        length: Longest sequence.
        width: Size of a token's vector.
        depth: Number of blocks.
        heads: Heads of attention, a divisor of ``width``.

    Example:
        >>> Transformer()(torch.zeros(2, 7, dtype=torch.long)).shape
        torch.Size([2, 7, 128])
    """

    def __init__(
        self, vocabulary: int = 128, length: int = 64, width: int = 128, depth: int = 4, heads: int = 4
    ) -> None:
        super().__init__()
        check_counts("Transformer", 1, vocabulary=vocabulary, length=length, width=width, depth=depth, heads=heads)
        if width % heads:
            raise UserError(
                f"Transformer(width={width}, heads={heads}): heads must divide width; take heads=1, or another width."
            )
        self.length = length
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary)
        for embedding in (self.tokens, self.positions):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [n, length, vocabulary] of tokens [n, length].

        Raises:
            UserError: If the sequences are longer than ``length``.
        """
        if x.shape[1] > self.length:
            raise UserError(
                f"Transformer(length={self.length}): this data has {x.shape[1]} tokens a sequence; set length to that."
            )
        hidden = self.tokens(x) + self.positions(torch.arange(x.shape[1], device=x.device))
        for block in self.blocks:
            hidden = block(hidden)
        logits: Tensor = self.head(self.norm(hidden))
        return logits
