"""Batches of samples that are in memory, sliced as tensors, in an order that can be taken up within an epoch."""

import hashlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler, SequentialSampler

from locoprop_lightning.errors import UserError, check_counts


class EpochShuffle(Sampler[int]):
    """A permutation of the samples that depends on seed and epoch alone.

    The global random state is neither read nor changed, so a resumed run sees the batches that the uninterrupted run
    would have seen. Lightning calls ``set_epoch`` before every training epoch, and after a resume.

    Args:
        size: Number of samples.
        seed: Seed of all epochs' permutations.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the permutation of ``epoch``, counted from 0."""
        self.epoch = epoch

    def order(self) -> Tensor:
        """Returns the current epoch's permutation, int64 [size]."""
        # Seed and epoch are hashed: with their sum, seed 1 would repeat seed 0 one epoch later. Four bytes, because
        # torch's CPU generator uses only the low 32 bits of its seed.
        digest = hashlib.sha256(f"{self.seed}/{self.epoch}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))
        return torch.randperm(self.size, generator=generator)

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        return iter(self.order().tolist())


def order_of(sampler: Sampler[int], size: int, rank: int, world_size: int, batch_size: int | None = None) -> Tensor:
    """The samples of one process in the current epoch: every ``world_size``-th of the common order.

    Args:
        sampler: An ``EpochShuffle``, or a sampler that leaves the samples in order.
        size: Number of samples.
        rank: Index of the process.
        world_size: Number of processes.
        batch_size: Samples in a batch of each process, if they must have equally many batches: one that would have one
            batch less than another then takes the first sample of the order again.

    Returns:
        Indices, int64 [at most ceil(size / world_size)].
    """
    order = sampler.order() if isinstance(sampler, EpochShuffle) else torch.arange(size)
    own = order[rank::world_size]
    return torch.cat([own, order[:1]]) if len(own) < count_of(size, rank, world_size, batch_size) else own


def count_of(size: int, rank: int, world_size: int, batch_size: int | None = None) -> int:
    """How many samples ``order_of`` gives."""
    own, most = math.ceil((size - rank) / world_size), math.ceil(size / world_size)
    short = batch_size is not None and math.ceil(own / batch_size) < math.ceil(most / batch_size)
    return own + short


class Loader:
    """Batches of samples by their indices, in an order that can be left within an epoch and taken up there again.

    With several processes see ``order_of``.

    Args:
        size: Number of samples.
        batch_size: Samples in a batch of this process.
        seed: Seed of an order that changes with the epoch; null leaves the samples in order.
        rank: Index of this process.
        world_size: Number of processes.
        even: Whether all processes must have equally many batches, as training asks.
    """

    def __init__(
        self, size: int, batch_size: int, seed: int | None, rank: int = 0, world_size: int = 1, even: bool = False
    ) -> None:
        check_counts("", 1, batch_size=batch_size)
        if not 0 <= rank < world_size:
            raise UserError(f"rank={rank}: must be at least 0 and less than world_size={world_size}.")
        self.size = size
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self._even = batch_size if even else None
        # Lightning calls `set_epoch` on a sampler that has it, and knows a sequential one.
        self.sampler = SequentialSampler(range(size)) if seed is None else EpochShuffle(size, seed)
        self.batch_sampler: None = None  # Lightning reads this of everything that has a `sampler`
        self._given = 0  # batches of the current epoch
        self._left: tuple[int, int] | None = None  # epoch and batches of it, where a checkpoint was written

    @property
    def epoch(self) -> int:
        """The epoch whose order is given, from 0; always 0 without an order of its own."""
        return self.sampler.epoch if isinstance(self.sampler, EpochShuffle) else 0

    def order(self) -> Tensor:
        """Returns this process's samples in the current epoch's order, int64 [at most ceil(size / world_size)]."""
        return order_of(self.sampler, self.size, self.rank, self.world_size, self._even)

    def __len__(self) -> int:
        return math.ceil(count_of(self.size, self.rank, self.world_size, self._even) / self.batch_size)

    def left(self) -> list[Tensor]:
        """The indices of each batch that is left of the epoch, int64 [at most batch_size]."""
        order, left = self.order(), self._left
        self._left = None
        self._given = left[1] % len(self) if left is not None and left[0] == self.epoch else 0
        starts = range(self._given * self.batch_size, len(order), self.batch_size)
        return [order[start : start + self.batch_size] for start in starts]

    def given(self) -> None:
        """Counts a batch as given, before it is."""
        self._given += 1

    def indices(self) -> Iterator[Tensor]:
        """Yields the indices of each batch; begins where a checkpoint was left."""
        for index in self.left():
            self.given()
            yield index

    def state_dict(self) -> dict[str, Any]:
        """How far the epoch has come, and what its order depends on; Lightning saves and loads it."""
        return {"epoch": self.epoch, "batches": self._given} | self._order()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from there with the next iteration, if that is of the same epoch.

        Raises:
            UserError: Where another order is left within an epoch.
        """
        self._left = state_dict["epoch"], state_dict["batches"]
        for name, value in self._order().items():
            if state_dict["batches"] and state_dict[name] != value:
                raise UserError(
                    f"ckpt_path: was written within an epoch with data.{name}={state_dict[name]}, but it is {value} "
                    f"now; resume with {state_dict[name]}, or from a checkpoint of an epoch's end."
                )

    def _order(self) -> dict[str, Any]:
        return {"seed": self.seed, "size": self.size, "batch_size": self.batch_size, "processes": self.world_size}


class TensorLoader(Loader):
    """Iterates over in-memory images and labels in batches.

    Every sample comes once an epoch and the last, short batch is kept; with several processes see ``order_of``.

    Args:
        images: uint8 [N, 1, H, W].
        labels: int64 [N].
        scale: The pixel value that becomes 1.0.
        batch_size: Samples in a batch of this process.
        shuffle: Whether the order changes with the epoch; if not, it is the order of ``images``.
        seed: Seed of the order; unused without ``shuffle``.
        rank: Index of this process.
        world_size: Number of processes.
        even: Whether all processes must have equally many batches, as training asks; see ``order_of``.

    Raises:
        UserError: If an argument is out of range, or the tensors do not fit together.

    Example:
        >>> images, labels = torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1), torch.arange(5)
        >>> loader = TensorLoader(images, labels, scale=4.0, batch_size=2, shuffle=True, seed=0)
        >>> loader.sampler.set_epoch(3)
        >>> [len(y) for x, y in loader]
        [2, 2, 1]
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        scale: float,
        batch_size: int,
        shuffle: bool,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        even: bool = False,
    ) -> None:
        check_samples(images, labels)
        if not scale > 0:
            raise UserError(f"scale={scale}: must be positive.")
        super().__init__(len(labels), batch_size, seed if shuffle else None, rank, world_size, even)
        self.images = images
        self.labels = labels
        self.scale = scale

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields images, float32 [B, 1, H, W], and labels, int64 [B]."""
        for index in self.indices():
            yield self.images[index].float().div_(self.scale), self.labels[index]


def check_samples(images: Tensor, labels: Tensor, owner: str = "") -> None:
    """Refuses images that are no bytes [N, 1, H, W], and labels that are not one whole number each.

    Args:
        images: The images.
        labels: Their labels.
        owner: What gave them, which the sentence begins with.

    Raises:
        UserError: Says what they are.
    """
    if images.ndim != 4 or images.dtype != torch.uint8:
        raise UserError(f"{owner}images must be uint8 [N, 1, H, W], got {images.dtype} {list(images.shape)}.")
    if labels.shape != images.shape[:1] or labels.dtype != torch.int64:
        got = f"{labels.dtype} {list(labels.shape)}"
        raise UserError(f"{owner}labels must be int64 [{len(images)}], one of each image, got {got}.")
