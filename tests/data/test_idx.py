import gzip
import hashlib

import pytest
import torch

from locoprop_lightning.data.idx import IdxFile, find_idx, read_idx
from locoprop_lightning.errors import UserError

CONTENT = bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3, 10, 11, 12, 13, 14, 15])
FILE = IdxFile("six-idx2-ubyte", (2, 3), hashlib.sha256(CONTENT).hexdigest())


def replaced(position, value):
    return CONTENT[:position] + bytes([value]) + CONTENT[position + 1 :]


@pytest.mark.parametrize("suffix, pack", [("", bytes), (".gz", gzip.compress)])
def test_raw_and_gzipped_files_are_read(tmp_path, suffix, pack):
    path = tmp_path / (FILE.name + suffix)
    path.write_bytes(pack(CONTENT))
    assert find_idx(tmp_path, [FILE]) == [path]
    tensor = read_idx(path, FILE)
    assert tensor.dtype == torch.uint8
    assert tensor.tolist() == [[10, 11, 12], [13, 14, 15]]


@pytest.mark.parametrize("suffix, pack", [("", bytes), (".gz", gzip.compress)])
@pytest.mark.parametrize(
    "content, message",
    [
        (replaced(15, 99), "its SHA-256 checksum is"),
        (replaced(2, 9), "its magic number is 0x00000902, not 0x00000802"),
        (replaced(7, 3), r"its dimensions are \[3, 3\], not \[2, 3\]"),
        (CONTENT[:-1], "it has 17 bytes where 18 are expected"),
        (CONTENT[:5], "it has 5 bytes where 18 are expected"),
        (CONTENT + b"x", "it has more than 18 bytes where 18 are expected"),
        (b"", "it has 0 bytes"),
    ],
)
def test_damage_is_named(tmp_path, suffix, pack, content, message):
    path = tmp_path / (FILE.name + suffix)
    path.write_bytes(pack(content))
    with pytest.raises(UserError, match=f"{path} is (another data set, or )?damaged: {message}"):
        read_idx(path, FILE)


@pytest.mark.parametrize(
    "packed",
    [
        gzip.compress(CONTENT)[:-9],
        gzip.compress(CONTENT)[:-8] + bytes(8),
        CONTENT,
        gzip.compress(b"")[:10] + b"\xff",
    ],
    ids=["truncated", "wrong CRC", "not gzipped", "not deflated"],
)
def test_a_broken_gzip_file_is_named(tmp_path, packed):
    path = tmp_path / f"{FILE.name}.gz"
    path.write_bytes(packed)
    with pytest.raises(UserError, match=f"{path} is damaged: it is not an intact gzip file"):
        read_idx(path, FILE)


def test_an_unreadable_file_is_named(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path / 'none'} cannot be read"):
        read_idx(tmp_path / "none", FILE)


def test_an_incomplete_folder_is_passed_over(tmp_path):
    (tmp_path / FILE.name).write_bytes(CONTENT)
    assert find_idx(tmp_path, [FILE, FILE._replace(name="other")]) is None
    assert find_idx(tmp_path / "none", [FILE]) is None
