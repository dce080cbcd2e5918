"""Reading IDX files, the format of the MNIST family, raw or gzipped, checked before use."""

import gzip
import hashlib
import math
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from locoprop_lightning.errors import UserError


class IdxFile(NamedTuple):
    """What an IDX file of unsigned bytes has to hold.

    Attributes:
        name: File name without ``.gz``.
        shape: Length of every dimension.
        sha256: checksum of the uncompressed file, in hexadecimal; not checked if not given.
    """

    name: str
    shape: tuple[int, ...]
    sha256: str | None = None

    @property
    def header(self) -> bytes:
        """The magic number (two zeros, 8 for unsigned bytes, the number of dimensions), then the dimensions."""
        return struct.pack(f">4B{len(self.shape)}I", 0, 0, 8, len(self.shape), *self.shape)

    @property
    def size(self) -> int:
        """Length of the uncompressed file in bytes."""
        return len(self.header) + math.prod(self.shape)


def find_idx(folder: Path, files: list[IdxFile]) -> list[Path] | None:
    """Looks for a complete set of IDX files in one folder.

    Args:
        folder: Where to look; it need not exist.
        files: The files to look for, each raw or with ``.gz``; a raw one is preferred, as the faster to read.

    Returns:
        The paths in the order of ``files``, or ``None`` if one is missing.
    """
    paths = []
    for file in files:
        candidates = (folder / file.name, folder / f"{file.name}.gz")
        path = next((candidate for candidate in candidates if candidate.is_file()), None)
        if path is None:
            return None
        paths.append(path)
    return paths


def read_idx(path: Path, file: IdxFile) -> Tensor:
    """Reads and checks an IDX file.

    Args:
        path: The file, gzipped if it ends in ``.gz``.
        file: What it has to hold.

    Returns:
        The content, uint8 of shape ``file.shape``.

    Raises:
        UserError: If the file cannot be read, or differs from ``file`` in magic number, dimensions, size or checksum.
    """
    # One byte more than expected: enough to see that a file is too long, without reading all of it.
    content = _start(path, file.size + 1)
    if len(content) < len(file.header):
        raise UserError(f"{path} is damaged: it has {len(content)} bytes where {file.size} are expected")
    if content[:4] != file.header[:4]:
        raise UserError(f"{path} is damaged: its magic number is 0x{content[:4].hex()}, not 0x{file.header[:4].hex()}")
    if content[: len(file.header)] != file.header:
        shape = struct.unpack(f">{len(file.shape)}I", content[4 : len(file.header)])
        raise UserError(
            f"{path} is another data set, or damaged: its dimensions are {list(shape)}, not {list(file.shape)}"
        )
    if len(content) != file.size:
        found = f"{len(content)} bytes" if len(content) < file.size else f"more than {file.size} bytes"
        raise UserError(f"{path} is damaged: it has {found} where {file.size} are expected")
    digest = hashlib.sha256(content).hexdigest() if file.sha256 is not None else None
    if digest != file.sha256:
        raise UserError(f"{path} is another data set, or damaged: its SHA-256 checksum is {digest}, not {file.sha256}")
    # Copied into a bytearray because torch warns about memory that it may not write to.
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)[len(file.header) :].view(file.shape)


def header_of(path: Path, dimensions: int) -> IdxFile:
    """What the header of an IDX file of unsigned bytes says that it holds.

    Args:
        path: The file, gzipped if it ends in ``.gz``.
        dimensions: How many it must have.

    Raises:
        UserError: If it cannot be read, or is no such file.
    """
    content = _start(path, 4 + 4 * dimensions)
    if content[:4] != bytes((0, 0, 8, dimensions)) or len(content) < 4 + 4 * dimensions:
        raise UserError(f"{path} is no IDX file of unsigned bytes with {dimensions} dimensions")
    return IdxFile(path.name, struct.unpack(f">{dimensions}I", content[4:]))


def _start(path: Path, size: int) -> bytes:
    """The first bytes of a file, uncompressed.

    Raises:
        UserError: If it cannot be read.
    """
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as stream:
            return stream.read(size)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is damaged: it is not an intact gzip file ({error}); copy it again") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
