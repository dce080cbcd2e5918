"""Scikit-learn's handwritten digits: 1,797 images of 8 x 8 pixels, no download. For tests and quick trials."""

import torch

from locoprop_lightning.data.base import ImageData, Samples, fixed_permutation


class Digits(ImageData):
    """Scikit-learn's handwritten digits, split once and for all into 1,500 training and 297 test images.

    Pixels, 0 to 16 in the data set, are scaled to 0..1.

    Args:
        batch_size: Images in a training batch, of each process.
        validation: How many of the 1,500 training images to hold out as the validation set. The choice is fixed: it
            depends neither on the seed nor on the run. With 0, validation looks at the test images; select nothing on
            them.
        seed: Seed of the order of the training images; ``None`` takes that of Lightning (``seed_everything``),
            or else 0.
        eval_batch_size: Images in a batch of validation, test and prediction; ``None`` takes ``batch_size``.

    Raises:
        UserError: If an argument is out of range.

    Example:
        >>> data = Digits(batch_size=500, seed=0)
        >>> data.setup("fit")
        >>> [tuple(images.shape) for images, labels in data.train_dataloader()]
        [(500, 1, 8, 8), (500, 1, 8, 8), (500, 1, 8, 8)]
    """

    train_size = 1_500
    scale = 16.0

    def __init__(
        self,
        batch_size: int = 128,
        validation: int = 0,
        seed: int | None = None,
        eval_batch_size: int | None = None,
    ) -> None:
        super().__init__(batch_size, validation, seed, eval_batch_size)

    def read(self) -> tuple[Samples, Samples]:
        """Reads the digits that come with scikit-learn.

        Returns:
            Training and test samples, each images, uint8 [N, 1, 8, 8], and labels, int64 [N].
        """
        # Imported here because scikit-learn takes a second to import and other data modules do without.
        from sklearn.datasets import load_digits

        digits = load_digits()
        # The data set is ordered by writer, so the split is a permutation, not a cut.
        order = fixed_permutation(len(digits.target))
        images = torch.from_numpy(digits.images).to(torch.uint8).unsqueeze(1)[order]
        labels = torch.from_numpy(digits.target).long()[order]
        n = self.train_size
        return (images[:n], labels[:n]), (images[n:], labels[n:])
