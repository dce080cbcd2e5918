"""The rows of a layer that this process holds, among those of all processes of a data-parallel run."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from locoprop_lightning.local.linear_map import spread


class Share:
    """Where the rows of one process stand in the whole batch, and how sums over rows become sums over all of them.

    Whatever is a sum over rows goes through ``sum``, so that each process has what one process with all rows would
    have. The default is that process.

    Args:
        counts: Rows of each process.
        rank: Index of this process.
        block: Rows of a sample in one call of the layer, where the samples are dealt out in turns, so that process r
            has every sample whose index is r modulo the number of processes; 0 where the processes' rows follow each
            other.
        calls: Calls of the layer, whose rows follow each other.
        total: Makes the sum over processes of a tensor, which it may write over.
    """

    def __init__(
        self,
        counts: Sequence[int] = (0,),
        rank: int = 0,
        block: int = 0,
        calls: int = 1,
        total: Callable[[Tensor], Tensor] = lambda x: x,
    ) -> None:
        self.processes = len(counts)
        self._others = sum(counts) - counts[rank]
        self._before = sum(counts[:rank])
        self._rank = rank
        self._block = block
        self._calls = calls
        self._total = total

    def rows(self, own: int) -> int:
        """Rows of all processes, of which this one has ``own``."""
        return own + self._others

    def sum(self, x: Tensor) -> Tensor:
        """The sum of X over processes; all must come here alike. X may be written over."""
        return self._total(x)

    def places(self, own: int) -> Tensor:
        """Where the rows of this process stand among all, int64 [own]."""
        row = torch.arange(own)
        if not self._block:
            return row + self._before
        size = max(own // self._calls, 1)
        call, row = row // size, row % size
        sample = row // self._block * self.processes + self._rank
        return call * (self.rows(own) // self._calls) + sample * self._block + row % self._block

    def gather(self, x: Tensor) -> Tensor:
        """Rows of all processes [n, d] of those of this one [own, d], as a sum of rows that are zero elsewhere."""
        if self.processes == 1:
            return x
        out = x.new_zeros(self.rows(len(x)), x.shape[1])
        out[self.places(len(x)).to(x.device)] = x
        return self.sum(out)

    def spread(self, own: int, count: int, device: torch.device) -> tuple[Tensor, int]:
        """Those of at most ``count`` rows, spread over the whole batch, that are here.

        Args:
            own: Rows of this process.
            count: How many over all processes.
            device: Where the indices shall be.

        Returns:
            Indices among the own rows, int64 [at most count], and how many there are over all processes.
        """
        if self.processes == 1:
            index = spread(own, count, device)
            return index, len(index)
        index = spread(self.rows(own), count, torch.device("cpu"))
        return torch.isin(self.places(own), index).nonzero()[:, 0].to(device), len(index)


ALONE = Share()
