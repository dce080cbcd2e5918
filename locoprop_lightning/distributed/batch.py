"""A batch as all processes of a run have it together."""

from collections.abc import Sequence
from struct import pack, unpack
from typing import Any, NamedTuple
from zlib import crc32

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from locoprop_lightning.distributed.communicator import Communicator


class SharedBatch(NamedTuple):
    """What the processes know of each other's part of a batch.

    Attributes:
        processes: What the processes do together.
        own: What this process's mean over terms of the loss has been divided by: their number, or weight.
        weight: That of all.
        terms: N, number of the terms of all.
        samples: Samples of each process.
        outputs: Rows of each process's output.
        alike: Whether these rows could be joined, so that labels may be drawn for all of them at once.
        wish: The largest of the processes' wishes.
        device: Where the output is.
    """

    processes: Communicator
    own: float
    weight: float
    terms: int  # N
    samples: Sequence[int]
    outputs: Sequence[int]
    alike: bool
    wish: int
    device: torch.device

    def weigh(self, loss: Tensor) -> Tensor:
        """A loss of this process, weighted by its part of the whole: the mean over processes is the whole batch's loss.

        That mean is what DDP makes of gradients.
        """
        size = self.processes.size
        return loss * (self.own * size / (self.weight or 1)) if size > 1 else loss


def share_batch(
    processes: Communicator, x: Any, output: Any, terms: int, wish: int, weight: float | None = None
) -> SharedBatch:
    """Tells the processes of each other's part of a batch, in one exchange.

    Args:
        processes: What the processes do together.
        x: Inputs of the network.
        output: Its output, or the part of it that labels are drawn from.
        terms: Terms of the loss that this process has.
        wish: A number of which all come to know the largest.
        weight: What the mean of the terms has been divided by; their number if not given.
    """
    weight = terms if weight is None else weight
    numbers = [terms, _bits(weight), _length(x), _length(output), _layout(output), wish]
    device = next((leaf.device for leaf in tree_leaves(output) if isinstance(leaf, Tensor)), torch.device("cpu"))
    counts, bits, samples, outputs, layouts, wishes = zip(*processes.gather(numbers, device), strict=True)
    alike = processes.size == 1 or (isinstance(output, Tensor) and len(set(layouts)) == 1)
    total = sum(map(_number, bits))
    return SharedBatch(processes, weight, total, sum(counts), samples, outputs, alike, max(wishes), device)


def join_batches(batches: Sequence[SharedBatch]) -> SharedBatch:
    """Several batches, one after the other, as one; labels are not drawn for all of it at once.

    Args:
        batches: The batches. Where all have equally many samples, these stand for the samples of a call of a layer.
    """
    first = batches[0]
    alike = all(batch.samples == first.samples for batch in batches)
    sizes = zip(*(batch.samples for batch in batches), strict=True)
    return first._replace(
        own=sum(batch.own for batch in batches),
        weight=sum(batch.weight for batch in batches),
        terms=sum(batch.terms for batch in batches),
        samples=first.samples if alike else [sum(size) for size in sizes],
        wish=max(batch.wish for batch in batches),
    )


def _bits(number: float) -> int:
    """A number as a whole one, which is what processes exchange."""
    return int.from_bytes(pack("<d", number), "little", signed=True)


def _number(bits: int) -> float:
    """The inverse of ``_bits``."""
    number: float = unpack("<d", bits.to_bytes(8, "little", signed=True))[0]
    return number


def _length(x: Any) -> int:
    """Length of the first dimension of the first tensor."""
    return next((len(leaf) for leaf in tree_leaves(x) if isinstance(leaf, Tensor) and leaf.dim()), 1)


def _layout(output: Any) -> int:
    """A number of what outputs must have in common so that their rows can be joined."""
    return crc32(f"{output.shape[1:]} {output.dtype}".encode()) if isinstance(output, Tensor) else 0
