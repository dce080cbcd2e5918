"""The decoder of the public optimizer benchmark for small language models, in any size."""

import torch
from torch import Tensor, nn

from locoprop_lightning.errors import UserError, check_counts, check_positive
from locoprop_lightning.reprs import Told

_BASE = 1024.0  # of the rotation's frequencies
_SCALE = 1.36  # of attention, over the root of a head's size: 0.12 at 128


def rotate(x: Tensor) -> Tensor:
    """Rotary positions (Su et al., 2021) of x [n, heads, length, size]: angles of half of the pairs, none of the rest.

    The pairs are entries i and i + size/2; the first half of them turns by position x base^-t, t from 0 to 1.
    """
    size = x.shape[-1]
    frequencies = _BASE ** -torch.linspace(0, 1, size // 4, dtype=torch.float32, device=x.device)
    frequencies = torch.cat([frequencies, torch.zeros(size // 2 - size // 4, device=x.device)])
    angles = torch.arange(x.shape[-2], dtype=torch.float32, device=x.device)[:, None] * frequencies
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos + b * sin, b * cos - a * sin], -1)


def normalise(x: Tensor) -> Tensor:
    """X over the root mean square of its last dimension, without weights."""
    return nn.functional.rms_norm(x, x.shape[-1:])


class RotaryAttention(nn.Module):
    """Causal self-attention with normalised and rotated queries and keys [n, length, width].

    Args:
        width: Size of a token's vector.
        heads: Number of heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        q, k = rotate(normalise(q)), rotate(normalise(k))
        scale = _SCALE * q.shape[-1] ** -0.5
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


class DecoderBlock(nn.Module):
    """Attention, then a two-layer network with squared ReLU, each on normalised input and added to it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = RotaryAttention(width, heads)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        x = x + self.attention(normalise(x))
        out: Tensor = x + self.down(torch.relu(self.up(normalise(x))).square())
        return out


class Decoder(Told, nn.Module):
    """Predicts each next token: tokens [n, length] to logits [n, length, vocabulary].

    What the "Modded-NanoGPT optimization benchmark" trains (Jordan et al., 2024, modded-nanogpt, track 3)
    with 12 blocks of width 768 and heads of 128: pre-norm blocks, squared ReLU, rotary attention with normalised
    queries and keys, RMS normalisation (here without weights), an output layer of its own, and logits that are bounded
    smoothly. Output projections of the blocks, the output layer and all biases start at zero; embeddings are standard
    normal, other weights have PyTorch's initialisation.

    Args:
        vocabulary: Number of tokens.
        width: Size of a token's vector.
        depth: Number of blocks.
        heads: Heads of attention; their size, ``width`` over ``heads``, must be a multiple of 4.
        cap: Bound on the logits, which are cap x / sqrt(x^2 + cap^2) of x; null leaves them alone.

    Example:
        >>> Decoder()(torch.zeros(2, 7, dtype=torch.long)).shape
        torch.Size([2, 7, 128])
    """

    def __init__(
        self, vocabulary: int = 128, width: int = 128, depth: int = 4, heads: int = 4, cap: float | None = 15.0
    ) -> None:
        super().__init__()
        check_counts("Decoder", 1, vocabulary=vocabulary, width=width, depth=depth, heads=heads)
        if cap is not None:
            check_positive("Decoder", cap=cap)
        if width % (4 * heads):
            raise UserError(f"Decoder(width={width}, heads={heads}): width must be a multiple of 4 x heads.")
        self.cap = cap
        self.tokens = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(DecoderBlock(width, heads) for _ in range(depth))
        self.head = nn.Linear(width, vocabulary)
        for name, parameter in self.named_parameters():
            if name.endswith(("bias", "out.weight", "down.weight", "head.weight")):
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [n, length, vocabulary] of tokens [n, length]."""
        hidden = normalise(self.tokens(x))
        for block in self.blocks:
            hidden = block(hidden)
        logits: Tensor = self.head(normalise(hidden))
        return logits if self.cap is None else self.cap * logits * (logits.square() + self.cap**2).rsqrt()
