"""Rows that belong together, such as the tokens of a sample: their sums and their means."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Blocks:
    """Rows that follow each other in blocks.

    Attributes:
        count: Number of blocks.
        size: Rows of each, where all have equally many.
        lengths: Rows of each, int64 [count], where they have not; at least 1.
    """

    count: int
    size: int = 1
    lengths: Tensor | None = None

    def sums(self, x: Tensor) -> Tensor:
        """The sum of each block [count, d] of rows X [n, d]."""
        if self.lengths is not None:
            return torch.segment_reduce(x, "sum", lengths=self.lengths)
        return x.reshape(self.count, self.size, x.shape[1]).sum(1)

    def means(self, x: Tensor) -> Tensor:
        """The mean of each block [count, d] of rows X [n, d]."""
        return self.sums(x) / (self.size if self.lengths is None else self.lengths[:, None])
