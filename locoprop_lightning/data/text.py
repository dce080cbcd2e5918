"""Text as sequences of characters, from files on this machine."""

import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from locoprop_lightning.data.base import check_seed, order_seed, overfits, place
from locoprop_lightning.data.loader import Loader
from locoprop_lightning.errors import UserError, check_counts, check_object, check_path
from locoprop_lightning.reprs import Shown

VOCABULARY = 128  # of ASCII


class TextFiles(Shown, LightningDataModule):
    """Characters of text files, cut into sequences; each token's target is the next one.

    Characters are ASCII codes; all others become "?". The files are joined in the order of their names, and the last
    tenth of the text is held out for validation and test. A batch is tokens and next tokens, int64 [n, length] both.

    Args:
        root: Folder that is searched, with its subfolders; null takes the modules of Python's standard library at its
            top level, a few megabytes of text that differ with the version of Python.
        pattern: Which files are read.
        length: Tokens in a sequence.
        batch_size: Sequences in a batch, of each process.
        limit: Characters that are kept of the joined text; null keeps all.
        seed: Seed of the order of the training sequences; null takes the seed given to Lightning, or else 0.

    Raises:
        UserError: If an argument is out of range, no file is found, or the text is too short.
    """

    def __init__(
        self,
        root: str | None = None,
        pattern: str = "*.py",
        length: int = 64,
        batch_size: int = 64,
        limit: int | None = 2_000_000,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        check_counts("TextFiles", 1, length=length, batch_size=batch_size)
        if limit is not None:
            check_counts("TextFiles", 1, limit=limit)
        check_seed("TextFiles", seed)
        check_object("TextFiles", str, "a pattern of names within root, such as '*.txt'", pattern=pattern)
        if root is not None:
            check_path("TextFiles", root=root)
        self.root = root
        self.pattern = pattern
        self.length = length
        self.batch_size = batch_size
        self.limit = limit
        self.seed = seed
        self._text: Tensor | None = None

    def files(self) -> list[Path]:
        """The files that are read, in the order of their names.

        Raises:
            UserError: If there are none.
        """
        setting = f"TextFiles(root={self.root!r}, pattern={self.pattern!r})"
        try:
            if self.root is None:
                paths = Path(sysconfig.get_path("stdlib")).glob(self.pattern)
            else:
                paths = Path(self.root).rglob(self.pattern)
            found = sorted(path for path in paths if path.is_file())
        except (ValueError, NotImplementedError) as error:
            raise UserError(f"{setting}: takes a pattern of names within root, such as '*.txt' ({error}).") from error
        if not found:
            raise UserError(f"{setting}: no file there matches; name a folder, and a pattern such as '*.txt'.")
        return found

    def setup(self, stage: str) -> None:
        """Reads the files, once."""
        if self._text is not None:
            return
        text = b"\n".join(_text_of(path) for path in self.files())[: self.limit]
        codes = np.frombuffer(text, dtype=np.uint8)
        self._text = torch.from_numpy(np.where(codes < VOCABULARY, codes, ord("?")).astype(np.uint8))
        if len(self._part("validation")) <= self.length:
            raise UserError(
                f"TextFiles(length={self.length}): {len(codes)} characters are too few; at least "
                f"{10 * (self.length + 1)} are needed."
            )

    def _part(self, split: str) -> Tensor:
        if self._text is None:
            raise UserError("TextFiles holds no data yet: call setup('fit') before asking for batches.")
        cut = len(self._text) - len(self._text) // 10
        return self._text[:cut] if split == "train" else self._text[cut:]

    def _loader(self, split: str) -> "SequenceLoader":
        seed = order_seed(self.seed) if split == "train" and not overfits(self) else None
        return SequenceLoader(self._part(split), self.length, self.batch_size, seed, *place(self), split == "train")

    def train_dataloader(self) -> "SequenceLoader":
        """Training batches, in an order that depends on seed and epoch alone."""
        return self._loader("train")

    def val_dataloader(self) -> "SequenceLoader":
        """Batches of the text held out."""
        return self._loader("validation")

    def test_dataloader(self) -> "SequenceLoader":
        """The same as for validation."""
        return self._loader("validation")

    def predict_dataloader(self) -> "SequenceLoader":
        """The same as for validation."""
        return self._loader("validation")


def _text_of(path: Path) -> bytes:
    """What a file holds.

    Raises:
        UserError: Where it holds zeros, as no text does.
    """
    content = path.read_bytes()
    if b"\0" in content:
        raise UserError(f"TextFiles: {path} is no text, as it holds zeros; name another root, or a narrower pattern.")
    return content


class SequenceLoader(Loader):
    """Batches of tokens and next tokens; every sequence comes once an epoch, with several processes see ``order_of``.

    Args:
        text: Codes, uint8 [characters].
        length: Tokens in a sequence.
        batch_size: Sequences in a batch of this process.
        seed: Seed of the order; null leaves the sequences in the order of the text.
        rank: Index of this process.
        world_size: Number of processes.
        even: Whether all processes must have equally many batches.
    """

    def __init__(
        self,
        text: Tensor,
        length: int,
        batch_size: int,
        seed: int | None,
        rank: int = 0,
        world_size: int = 1,
        even: bool = False,
    ) -> None:
        super().__init__((len(text) - 1) // length, batch_size, seed, rank, world_size, even)
        self.text = text
        self.length = length

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields tokens and next tokens, int64 [at most batch_size, length] both."""
        steps = torch.arange(self.length + 1)
        for index in self.indices():
            sequences = self.text[index[:, None] * self.length + steps].long()
            yield sequences[:, :-1], sequences[:, 1:]
