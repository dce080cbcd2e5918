"""What the data modules of images have in common: splits, seeds and loaders."""

from abc import ABC, abstractmethod

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from locoprop_lightning.data.loader import TensorLoader, check_samples
from locoprop_lightning.errors import UserError, check_counts, shown
from locoprop_lightning.reprs import Shown
from locoprop_lightning.seed import run_seed

Samples = tuple[Tensor, Tensor]
"""Images, uint8 [N, 1, H, W], and labels, int64 [N]."""


def fixed_permutation(size: int) -> Tensor:
    """Returns a permutation that is the same in every run and release, int64 [size].

    It is drawn from NumPy's legacy generator, whose stream is frozen; torch promises no such thing between releases.
    """
    return torch.from_numpy(np.random.RandomState(0).permutation(size)).long()


def order_seed(seed: int | None) -> int:
    """Seed of the order of training samples: the data module's own, or the run's."""
    return run_seed() if seed is None else seed


def check_batches(
    owner: str, size: int, samples: str, batch_size: int, validation: int, seed: int | None, eval_batch_size: int | None
) -> None:
    """Refuses what does not cut the training samples into batches.

    Args:
        owner: Name of the data module.
        size: How many training samples there are.
        samples: What they are called.
        batch_size: Samples in a training batch.
        validation: How many are held out.
        seed: Seed of their order, None for Lightning's.
        eval_batch_size: Samples in a batch of an evaluation, None for ``batch_size``.

    Raises:
        UserError: Names the argument.
    """
    check_counts(owner, 1, batch_size=batch_size)
    if not isinstance(validation, int) or isinstance(validation, bool) or not 0 <= validation < size:
        raise UserError(
            f"{owner}(validation={shown(validation)}): must be a whole number, at least 0 and less than the {size} "
            f"training {samples}."
        )
    check_seed(owner, seed)
    if eval_batch_size is not None:
        check_counts(owner, 1, eval_batch_size=eval_batch_size)


def check_seed(owner: str, seed: int | None) -> None:
    """Refuses a seed of the order of training samples that is none."""
    if seed is not None:
        check_counts(owner, 0, seed=seed)


def overfits(data: LightningDataModule) -> bool:
    """Whether Lightning wants the same few batches every epoch; it cannot turn our shuffling off."""
    return data.trainer is not None and data.trainer.overfit_batches > 0  # type: ignore[attr-defined]


def place(data: LightningDataModule) -> tuple[int, int]:
    """Index of this process and number of processes."""
    return (0, 1) if data.trainer is None else (data.trainer.global_rank, data.trainer.world_size)


class ImageData(Shown, LightningDataModule, ABC):
    """Training and test images held in memory as bytes.

    Subclasses set ``train_size`` and ``scale`` and say how to read the samples.

    Args:
        batch_size: Images in a training batch, of each process.
        validation: How many training images to hold out as the validation set. The choice is fixed: it depends
            neither on the seed nor on the run. With 0, validation looks at the test images; select nothing on them.
        seed: Seed of the order of the training images; ``None`` takes that of Lightning (``seed_everything``),
            or else 0.
        eval_batch_size: Images in a batch of validation, test and prediction; ``None`` takes ``batch_size``.

    Raises:
        UserError: If an argument is out of range.
    """

    train_size: int  # training images before any are held out
    scale: float  # the pixel value that becomes 1.0

    def __init__(
        self,
        batch_size: int,
        validation: int = 0,
        seed: int | None = None,
        eval_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        own = type(self).__name__
        check_batches(own, self.train_size, "images", batch_size, validation, seed, eval_batch_size)
        self.batch_size = batch_size
        self.validation = validation
        self.seed = seed
        self.eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        self._splits: dict[str, Samples] = {}

    @abstractmethod
    def read(self) -> tuple[Samples, Samples]:
        """Reads the training samples and the test samples."""

    def setup(self, stage: str) -> None:
        """Reads the samples, once, and holds out the validation set.

        Args:
            stage: "fit", "validate", "test" or "predict"; all need the same samples.

        Raises:
            UserError: If ``read`` gave others than it should.
        """
        if self._splits:
            return
        (images, labels), test = self.read()
        for split, samples in (("training", (images, labels)), ("test", test)):
            check_samples(*samples, f"{type(self).__name__}.read: {split} ")
        train, validation = (images, labels), test
        if self.validation:
            # A larger validation set contains the smaller ones; the rest stays in the order of the files.
            order = fixed_permutation(len(labels))
            held, kept = order[: self.validation], order[self.validation :].sort().values
            train, validation = (images[kept], labels[kept]), (images[held], labels[held])
        self._splits = {"train": train, "validation": validation, "test": test}

    def train_dataloader(self) -> TensorLoader:
        """Returns the training batches, in an order that depends on seed and epoch alone."""
        return self._loader("train", self.batch_size, shuffle=not overfits(self))

    def val_dataloader(self) -> TensorLoader:
        """Returns the held-out training images or, if none are held out, the test images."""
        return self._loader("validation", self.eval_batch_size, shuffle=False)

    def test_dataloader(self) -> TensorLoader:
        """Returns the test images and labels."""
        return self._loader("test", self.eval_batch_size, shuffle=False)

    def predict_dataloader(self) -> TensorLoader:
        """Returns the test images and labels, in the order of the data set."""
        return self._loader("test", self.eval_batch_size, shuffle=False)

    def _loader(self, split: str, batch_size: int, shuffle: bool) -> TensorLoader:
        if not self._splits:
            raise UserError(f"{type(self).__name__} holds no data yet: call setup('fit') before asking for batches.")
        images, labels = self._splits[split]
        seed, even = order_seed(self.seed), split == "train"
        return TensorLoader(images, labels, self.scale, batch_size, shuffle, seed, *place(self), even)
