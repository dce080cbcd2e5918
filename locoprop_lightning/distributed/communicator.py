"""What the processes of a data-parallel run do together; one process does it alone, and pays nothing for it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar
from zlib import crc32

import torch
from torch import Tensor
from torch import distributed as dist

from locoprop_lightning.distributed.lockstep import lockstep, total, total_of
from locoprop_lightning.distributed.shard import Shard, SummedOperator
from locoprop_lightning.local.operator import LinearOperator, Rows

T = TypeVar("T")


class Communicator:
    """One process alone: the base of what several do together.

    Attributes:
        size: Number of processes.
        rank: Index of this process.
    """

    size = 1
    rank = 0

    def gather(self, numbers: Sequence[int], device: torch.device) -> list[list[int]]:
        """The numbers of every process, in the order of their ranks; several wait for the device.

        Args:
            numbers: Equally many on all processes.
            device: A device that the processes' backend sends from.
        """
        return [list(numbers)]

    def agree(self, text: str, device: torch.device) -> bool:
        """Whether a text is the same on all processes."""
        return len(set(map(tuple, self.gather([crc32(text.encode())], device)))) == 1

    def sum(self, x: Tensor) -> Tensor:
        """The sum over processes; X may be written over."""
        return x

    def mean(self, x: Tensor) -> Tensor:
        """The mean over processes; Lightning's own makes all of them wait for each other."""
        return x

    def run(self, tasks: Mapping[str, Callable[[], T]]) -> dict[str, T]:
        """Runs a task a layer, and gives their results; sums over processes are made together."""
        return {name: task() for name, task in tasks.items()}

    def rows(self, counts: Sequence[int], samples: Sequence[int], calls: Sequence[int]) -> Rows:
        """The rows of a layer.

        Args:
            counts: Rows of each process.
            samples: Samples of each process.
            calls: Calls of the layer on each process.
        """
        return Rows()

    def operator(self, own: LinearOperator, rows: Rows) -> LinearOperator:
        """The operator of the rows of all processes.

        Args:
            own: That of the rows of this process.
            rows: What ``rows`` returned.
        """
        return own

    def close(self) -> None:
        """Gives back what belongs to a fit alone."""
        return None

    def interleave(self, x: Tensor, counts: Sequence[int]) -> Tensor:
        """Rows of all processes, those that stand first with each, then the second ones: as they were dealt out.

        Args:
            x: Rows of this process [n, ...], like the others' but for their number.
            counts: Number of rows of each process.
        """
        return x

    def own_part(self, x: Tensor, counts: Sequence[int]) -> Tensor:
        """What ``interleave`` took from this process."""
        return x


class DataParallel(Communicator):
    """The processes of ``torch.distributed``, each of which has some of the samples of every batch."""

    def __init__(self) -> None:
        self.size = dist.get_world_size()
        self.rank = dist.get_rank()
        self._host: Any = None  # a group that sends fingerprints from the host, where the backend is of GPUs alone

    def gather(self, numbers: Sequence[int], device: torch.device) -> list[list[int]]:  # noqa: D102
        own = torch.tensor(numbers, dtype=torch.int64, device=device)
        table = own.new_empty(self.size, len(own))
        dist.all_gather(list(table.unbind()), own)
        rows: list[list[int]] = table.tolist()
        return rows

    def sum(self, x: Tensor) -> Tensor:  # noqa: D102
        return total_of(x)

    def mean(self, x: Tensor) -> Tensor:  # noqa: D102
        return total([x / self.size])[0]

    def run(self, tasks: Mapping[str, Callable[[], T]]) -> dict[str, T]:  # noqa: D102
        if self._host is None and "gloo" not in dist.get_backend():
            self._host = dist.new_group(backend="gloo")
        return lockstep(tasks, self._host)

    def close(self) -> None:  # noqa: D102
        if self._host is not None:
            dist.destroy_process_group(self._host)
            self._host = None

    def rows(self, counts: Sequence[int], samples: Sequence[int], calls: Sequence[int]) -> Rows:  # noqa: D102
        return Shard.of(counts, self.rank, total_of, samples, calls)

    def operator(self, own: LinearOperator, rows: Rows) -> LinearOperator:  # noqa: D102
        assert isinstance(rows, Shard)
        return SummedOperator(own, rows)

    def interleave(self, x: Tensor, counts: Sequence[int]) -> Tensor:  # noqa: D102
        padded = x.new_zeros(max(counts), *x.shape[1:])
        padded[: len(x)] = x
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.stack(parts, 1).flatten(0, 1)[torch.tensor(_dealt(counts), device=x.device)]

    def own_part(self, x: Tensor, counts: Sequence[int]) -> Tensor:  # noqa: D102
        return x[torch.tensor([place % self.size == self.rank for place in _dealt(counts)], device=x.device)]


def _dealt(counts: Sequence[int]) -> list[int]:
    """Places row x process, row by row, at which there is a row."""
    return [row * len(counts) + one for row in range(max(counts)) for one in range(len(counts)) if row < counts[one]]


def connect() -> Communicator:
    """The communicator of this process, as ``torch.distributed`` stands now."""
    several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    return DataParallel() if several else Communicator()
