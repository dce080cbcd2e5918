"""Data sets of torch, as they are: torchvision's, folders of images, one's own."""

from collections.abc import Iterator, Sized
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader, Dataset, Subset, default_collate

from locoprop_lightning.data.base import check_batches, fixed_permutation, order_seed, overfits, place
from locoprop_lightning.data.loader import Loader
from locoprop_lightning.errors import UserError, check_counts, check_object
from locoprop_lightning.reprs import Shown


class DatasetLoader(Loader):
    """Batches of a data set in an order that depends on seed and epoch alone, and that is taken up within an epoch.

    Args:
        dataset: The data set; its samples are whatever ``torch.utils.data.default_collate`` joins. Images of PIL become
            tensors [channels, H, W] of numbers in [0, 1].
        batch_size: Samples in a batch of this process.
        seed: Seed of an order that changes with the epoch; null leaves the samples in order.
        workers: Processes that read samples ahead; 0 for none.
        rank: Index of this process.
        world_size: Number of processes.
        even: Whether all processes must have equally many batches, as training asks.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        batch_size: int,
        seed: int | None,
        workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
        even: bool = False,
    ) -> None:
        super().__init__(_size(dataset), batch_size, seed, rank, world_size, even)
        self.dataset = dataset
        self.workers = workers

    def __iter__(self) -> Iterator[Any]:
        """Yields the batches that are left of the epoch."""
        batches = [index.tolist() for index in self.left()]
        seeds = torch.Generator().manual_seed(1_000_003 * (self.seed or 0) + self.epoch)  # of workers, not the run's
        arguments: dict[str, Any] = {"num_workers": self.workers, "collate_fn": joined, "generator": seeds}
        for batch in DataLoader(self.dataset, batch_sampler=batches, **arguments):
            self.given()
            yield batch


class Datasets(Shown, LightningDataModule):
    """Data sets of torch, such as torchvision's by their class path.

    Args:
        train: Training samples, of any make that the task knows to read: pairs of image and label, dictionaries, and so
            on. It must know its length.
        test: Test samples.
        batch_size: Samples in a training batch, of each process.
        validation: How many training samples to hold out as the validation set; the choice is fixed. With 0, validation
            looks at the test samples, where there are any; select nothing on them.
        seed: Seed of the order of the training samples; null takes that of Lightning (``seed_everything``), or else 0.
        eval_batch_size: Samples in a batch of validation, test and prediction; null takes ``batch_size``.
        workers: Processes that read samples ahead, for data that take long to read, such as images in files; 0 for
            none. Samples that are drawn at random, as by augmentation, are the same again after a resume without
            workers alone.

    Raises:
        UserError: If an argument is out of range.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> data = Datasets(TensorDataset(torch.rand(10, 3), torch.arange(10)), batch_size=4, validation=2)
        >>> [len(y) for x, y in data.train_dataloader()], [len(y) for x, y in data.val_dataloader()]
        ([4, 4], [2])
    """

    def __init__(
        self,
        train: Dataset,
        test: Dataset | None = None,
        batch_size: int = 128,
        validation: int = 0,
        seed: int | None = None,
        eval_batch_size: int | None = None,
        workers: int = 0,
    ) -> None:
        super().__init__()
        way = "a data set with a length, such as TensorDataset(inputs, labels), or a list of samples"
        own = type(self).__name__
        check_object(own, Dataset, way, train=train, **({} if test is None else {"test": test}))
        check_counts(own, 0, workers=workers)
        size = _size(train)
        check_batches(own, size, "samples", batch_size, validation, seed, eval_batch_size)
        order = fixed_permutation(size).tolist()
        held = Subset(train, order[:validation]) if validation else None
        self.train: Dataset[Any] = Subset(train, sorted(order[validation:])) if validation else train
        self.validation, self.test = test if held is None else held, test
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size or batch_size
        self.seed, self.workers = seed, workers

    def train_dataloader(self) -> DatasetLoader:
        """Returns the training batches, in an order that depends on seed and epoch alone."""
        seed = None if overfits(self) else order_seed(self.seed)
        return DatasetLoader(self.train, self.batch_size, seed, self.workers, *place(self), even=True)

    def val_dataloader(self) -> Any:
        """Returns the held-out training samples or, if none are held out, the test samples; none without any."""
        return self._in_order(self.validation)

    def test_dataloader(self) -> Any:
        """Returns the test samples."""
        if self.test is None:
            raise UserError("data: Datasets has no test samples; give it `test`.")
        return self._in_order(self.test)

    def predict_dataloader(self) -> Any:
        """Returns the test samples, in the order of the data set."""
        return self.test_dataloader()

    def _in_order(self, dataset: Dataset[Any] | None) -> Any:
        size = self.eval_batch_size
        return [] if dataset is None else DatasetLoader(dataset, size, None, self.workers, *place(self))


def joined(samples: list[Any]) -> Any:
    """Samples as a batch, images of PIL as tensors.

    Args:
        samples: The samples.

    Raises:
        UserError: Where they do not make one.
    """
    made = [tree_map(_as_tensor, sample) for sample in samples]
    try:
        return default_collate(made)
    except (RuntimeError, TypeError, KeyError) as error:
        raise UserError(
            f"data: samples do not make a batch ({' '.join(str(error).split())}); give all the same shape and kind."
        ) from error


def _as_tensor(leaf: Any) -> Any:
    if type(leaf).__module__.partition(".")[0] != "PIL":
        return leaf
    from torchvision.transforms.functional import to_tensor  # which takes seconds to import

    image: Tensor = to_tensor(leaf)
    return image


def _size(dataset: Dataset[Any]) -> int:
    """The length of a data set.

    Raises:
        UserError: Where it has none, or is empty.
    """
    if not isinstance(dataset, Sized):
        raise UserError(f"data: {type(dataset).__name__} has no length; give the trainer a DataLoader of it.")
    if not len(dataset):
        raise UserError(f"data: {type(dataset).__name__} is empty; give it samples.")
    return len(dataset)
