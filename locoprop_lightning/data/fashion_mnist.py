"""Fashion-MNIST: 60,000 training and 10,000 test images of clothing, 28 x 28 pixels, in 10 classes."""

import sys
from pathlib import Path

from locoprop_lightning.data.base import ImageData, Samples, place
from locoprop_lightning.data.idx import IdxFile, find_idx, read_idx
from locoprop_lightning.errors import UserError, check_flags, check_path

DEFAULT_ROOT = "data"
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")

FILES = [
    IdxFile(
        "train-images-idx3-ubyte",
        (60_000, 28, 28),
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    ),
    IdxFile(
        "train-labels-idx1-ubyte",
        (60_000,),
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    ),
    IdxFile(
        "t10k-images-idx3-ubyte",
        (10_000, 28, 28),
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    ),
    IdxFile(
        "t10k-labels-idx1-ubyte",
        (10_000,),
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
]


class FashionMNIST(ImageData):
    """Fashion-MNIST, from files on this machine or downloaded.

    The four IDX files are looked for, raw or gzipped, in ``root``, in ``root/FashionMNIST/raw`` (where torchvision puts
    them), and in the folder of Debian's package ``dataset-fashion-mnist``. The first folder that has all four is used,
    and every file is checked. Pixels are scaled to 0..1. See Xiao, Rasul and Vollgraf, 2017, arXiv:1708.07747.

    Args:
        root: Folder for the data, relative to the working directory.
        batch_size: Images in a training batch, of each process.
        validation: How many of the 60,000 training images to hold out as the validation set. The choice is fixed: it
            depends neither on the seed nor on the run. With 0, validation looks at the test images; select nothing on
            them.
        seed: Seed of the order of the training images; ``None`` takes that of Lightning (``seed_everything``),
            or else 0.
        download: Whether torchvision may download the data into ``root`` if no folder has it.
        eval_batch_size: Images in a batch of validation, test and prediction; ``None`` takes ``batch_size``.

    Raises:
        UserError: If an argument is out of range; from ``prepare_data`` and ``setup``, if data are missing or damaged.

    Example:
        >>> data = FashionMNIST(root="data", batch_size=1024, validation=5000)
        >>> data.train_size - data.validation
        55000
    """

    train_size = 60_000
    scale = 255.0

    def __init__(
        self,
        root: str = DEFAULT_ROOT,
        batch_size: int = 1024,
        validation: int = 0,
        seed: int | None = None,
        download: bool = True,
        eval_batch_size: int | None = None,
    ) -> None:
        super().__init__(batch_size, validation, seed, eval_batch_size)
        check_path("FashionMNIST", root=root)
        check_flags("FashionMNIST", download=download)
        self.root = Path(root)
        self.download = download

    def find(self) -> list[Path] | None:
        """Returns the paths of the four files, in the order of ``FILES``, or ``None`` if no folder has them all."""
        for folder in (self.root, self.root / "FashionMNIST" / "raw", DEBIAN_FOLDER):
            paths = find_idx(folder, FILES)
            if paths is not None:
                return paths
        return None

    def prepare_data(self) -> None:
        """Downloads the data if they are nowhere on this machine and ``download`` allows it.

        Raises:
            UserError: if the download fails.
        """
        if not self.download or self.find() is not None:
            return
        # Imported here because torchvision takes seconds to import and is needed for this alone.
        from torchvision import datasets

        try:
            datasets.FashionMNIST(str(self.root), download=True)
        except (OSError, RuntimeError) as error:
            raise UserError(f"Downloading Fashion-MNIST failed ({error}); {self._ways()}") from error

    def read(self) -> tuple[Samples, Samples]:
        """Reads and checks the four files.

        Returns:
            Training and test samples, each images, uint8 [N, 1, 28, 28], and labels, int64 [N].

        Raises:
            UserError: if the data are missing or damaged.
        """
        paths = self.find()
        if paths is None:
            raise UserError(f"Fashion-MNIST is neither under root={self.root} nor in {DEBIAN_FOLDER}; {self._ways()}")
        self._tell(paths[0].parent)
        try:
            train_images, train_labels, test_images, test_labels = map(read_idx, paths, FILES)
        except UserError as error:
            meant = "name another root if it is not meant to be Fashion-MNIST, else remove it, then"
            raise UserError(f"{error}; {meant} {self._ways()}") from error
        return (train_images.unsqueeze(1), train_labels.long()), (test_images.unsqueeze(1), test_labels.long())

    def _tell(self, folder: Path) -> None:
        """Says where the data are read from, where that is not the folder that was named."""
        own = self.root in (folder, *folder.parents)
        lacking = next((file.name for file in FILES if find_idx(self.root, [file]) is None), None)
        if not own and (self.root.exists() or str(self.root) != DEFAULT_ROOT) and place(self)[0] == 0:
            print(
                f"FashionMNIST: root={self.root} has no {lacking}, so that {folder} is read instead.", file=sys.stderr
            )

    def _ways(self) -> str:
        return (
            f"put the four IDX files into {self.root}, or install Debian's package dataset-fashion-mnist, or let "
            "torchvision download them (download=True, with a network)."
        )
