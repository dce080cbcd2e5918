"""The rows of a layer that this process holds, among those of all processes, and the operator of all of them."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from locoprop_lightning.errors import UserError
from locoprop_lightning.local.operator import LinearOperator, MatrixOperator, Rows, spread

Sum = Callable[[Tensor], Tensor]


class Shard(Rows):
    """Where the rows of one process stand in the whole batch.

    Args:
        counts: Rows of each process.
        rank: Index of this process.
        total: Makes the sum over processes of a tensor, which it may write over.
        block: Rows of a sample in one call of the layer, where the samples are dealt out in turns, so that process r
            has every sample whose index is r modulo the number of processes; 0 where the processes' rows follow each
            other.
        calls: Calls of the layer, whose rows follow each other.
    """

    def __init__(self, counts: Sequence[int], rank: int, total: Sum, block: int = 0, calls: int = 1) -> None:
        self.processes = len(counts)
        self._others = sum(counts) - counts[rank]
        self._before = sum(counts[:rank])
        self._rank = rank
        self._total = total
        self._block = block
        self._calls = calls

    @classmethod
    def of(
        cls, counts: Sequence[int], rank: int, total: Sum, samples: Sequence[int], calls: Sequence[int] = (1,)
    ) -> "Shard":
        """The shard of a layer: rows by samples that were dealt out in turns where they are, else after each other.

        Args:
            counts: Rows of each process.
            rank: Index of this process.
            total: Makes the sum over processes.
            samples: Samples of each process.
            calls: Calls of the layer on each process.
        """
        block = counts[0] // (samples[0] * calls[0]) if samples[0] and calls[0] else 0
        dealt = list(samples) == sorted(samples, reverse=True) and samples[0] - samples[-1] <= 1
        alike = all(n == block * k * calls[0] for n, k in zip(counts, samples, strict=True)) and len(set(calls)) == 1
        return cls(counts, rank, total, block if dealt and alike else 0, calls[0])

    def count(self, own: int) -> int:  # noqa: D102
        return own + self._others

    def sum(self, x: Tensor) -> Tensor:
        """The sum of X over processes; all must come here alike. X may be written over."""
        return self._total(x)

    def sample(self, own: int, count: int, device: torch.device) -> tuple[Tensor, int]:  # noqa: D102
        index = spread(self.count(own), count, torch.device("cpu"))
        return torch.isin(self.places(own), index).nonzero()[:, 0].to(device), len(index)

    def places(self, own: int) -> Tensor:
        """Where the rows of this process stand among all, int64 [own]."""
        row = torch.arange(own)
        if not self._block:
            return row + self._before
        size = max(own // self._calls, 1)
        call, row = row // size, row % size
        sample = row // self._block * self.processes + self._rank
        return call * (self.count(own) // self._calls) + sample * self._block + row % self._block

    def gather(self, x: Tensor) -> Tensor:
        """Rows of all processes [n, d] of those of this one [own, d], as a sum of rows that are zero elsewhere."""
        out = x.new_zeros(self.count(len(x)), x.shape[1])
        out[self.places(len(x)).to(x.device)] = x
        return self.sum(out)


class SummedOperator(LinearOperator):
    """The operator of the rows of all processes, of which the rows of this one are at hand.

    It sums over processes what the operator of these gives of its rows.

    Args:
        own: The operator of the rows at hand.
        shard: Where they stand.
        n: Number of rows of all processes, if they are but a sample.
    """

    def __init__(self, own: LinearOperator, shard: Shard, n: int | None = None) -> None:
        self._own = own
        self._shard = shard
        self._n = shard.count(own.n) if n is None else n
        self.bias = own.bias
        self.groups = own.groups
        self.diagonal = own.diagonal
        self.expanded = None if own.expanded is None else SummedOperator(own.expanded, shard)

    @property
    def n(self) -> int:  # noqa: D102
        return self._n

    @property
    def rows_at_hand(self) -> int:
        """Rows of a process, the same number on all, so that all decide alike."""
        return -(-self._n // self._shard.processes)

    @property
    def own_rows(self) -> int:  # noqa: D102
        return self._own.n

    @property
    def d_in(self) -> int:  # noqa: D102
        return self._own.d_in

    @property
    def device(self) -> torch.device:  # noqa: D102
        return self._own.device

    def apply(self, v: Tensor, start: Tensor | None = None) -> Tensor:  # noqa: D102
        return self._own.apply(v, start)

    def adjoint(self, r: Tensor) -> Tensor:  # noqa: D102
        return self._shard.sum(self._own.adjoint(r))

    def gram(self) -> Tensor:  # noqa: D102
        return self._shard.sum(self._own.gram())

    def squares(self) -> Tensor:  # noqa: D102
        return self._own.squares()

    def total(self, x: Tensor) -> Tensor:  # noqa: D102
        return self._shard.sum(self._own.total(x))

    def select(self, index: Tensor) -> LinearOperator:
        """The operator of some of the rows of this process alone, int64 [m]."""
        return self._own.select(index)

    def sample(self, count: int) -> tuple[LinearOperator, Tensor]:  # noqa: D102
        index, taken = self._shard.sample(self._own.n, count, self.device)
        return SummedOperator(self._own.select(index), self._shard, taken), index

    def dense(self) -> MatrixOperator:
        """Refused: not all rows are at hand.

        Raises:
            UserError: Names the way out.
        """
        raise UserError("LocalProblem: this form of a layer needs all rows in one process: take whole() first.")

    def whole(self) -> LinearOperator:  # noqa: D102
        return MatrixOperator(self._shard.gather(self._own.dense().rows), self.bias)

    def whole_rows(self, x: Tensor) -> Tensor:  # noqa: D102
        return self._shard.gather(x)
