"""Images in IDX files of one's own, named as those of the MNIST family."""

from pathlib import Path

from locoprop_lightning.data.base import ImageData, Samples
from locoprop_lightning.data.idx import IdxFile, find_idx, header_of, read_idx
from locoprop_lightning.errors import UserError, check_path

NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


class IdxImages(ImageData):
    """Grey images of any size in four IDX files: MNIST, KMNIST, or ones of one's own.

    The files are called ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``, ``t10k-images-idx3-ubyte`` and
    ``t10k-labels-idx1-ubyte``, raw or gzipped. Their headers say how many images there are and of what size. Pixels
    are scaled to 0..1.

    Args:
        root: Folder of the files.
        batch_size: Images in a training batch, of each process.
        validation: How many training images to hold out as the validation set, by a fixed choice. With 0, validation
            looks at the test images; select nothing on them.
        seed: Seed of the order of the training images; null takes that of Lightning (``seed_everything``), or else 0.
        eval_batch_size: Images in a batch of validation, test and prediction; null takes ``batch_size``.

    Raises:
        UserError: If an argument is out of range, and where files are missing, damaged, or do not fit together.
    """

    scale = 255.0

    def __init__(
        self,
        root: str,
        batch_size: int = 1024,
        validation: int = 0,
        seed: int | None = None,
        eval_batch_size: int | None = None,
    ) -> None:
        check_path("IdxImages", root=root)
        self.root = Path(root)
        if not self.root.is_dir():
            raise UserError(f"IdxImages(root={str(root)!r}): is no folder; name the one that holds {', '.join(NAMES)}.")
        missing = next((name for name in NAMES if find_idx(self.root, [IdxFile(name, ())]) is None), None)
        if missing is not None:
            way = "add it, or name another folder"
            raise UserError(f"IdxImages(root={str(root)!r}): has no {missing}, raw or with .gz; {way}.")
        self._paths = find_idx(self.root, [IdxFile(name, ()) for name in NAMES]) or []
        self._files = [header_of(path, dimensions) for path, dimensions in zip(self._paths, (3, 1, 3, 1), strict=True)]
        for images, labels in (self._files[:2], self._files[2:]):
            if images.shape[0] != labels.shape[0]:
                raise UserError(
                    f"IdxImages(root={str(root)!r}): {images.name} has {images.shape[0]} images, but {labels.name} "
                    f"{labels.shape[0]} labels; make them agree."
                )
        if self._files[0].shape[1:] != self._files[2].shape[1:]:
            raise UserError(f"IdxImages(root={str(root)!r}): training and test images differ in size; make them agree.")
        self.train_size = self._files[0].shape[0]
        super().__init__(batch_size, validation, seed, eval_batch_size)

    def read(self) -> tuple[Samples, Samples]:
        """Reads the four files."""
        train, labels, test, told = map(read_idx, self._paths, self._files)
        return (train.unsqueeze(1), labels.long()), (test.unsqueeze(1), told.long())
