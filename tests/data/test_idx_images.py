"""Own images in IDX files."""

import gzip
import struct

import pytest
import torch

from locoprop_lightning import UserError
from locoprop_lightning.data import IdxImages
from locoprop_lightning.data.idx_images import NAMES


def write(folder, name, content, compressed=False):
    data = struct.pack(f">4B{content.dim()}I", 0, 0, 8, content.dim(), *content.shape) + content.numpy().tobytes()
    path = folder / (f"{name}.gz" if compressed else name)
    path.write_bytes(gzip.compress(data) if compressed else data)
    return path


@pytest.fixture
def files(tmp_path):
    """Four files: 12 images and 5, of 6 by 4 pixels."""
    images = [torch.randint(256, (n, 6, 4), dtype=torch.uint8) for n in (12, 5)]
    labels = [torch.arange(n, dtype=torch.uint8) % 3 for n in (12, 5)]
    parts = [images[0], labels[0], images[1], labels[1]]
    for index, (name, content) in enumerate(zip(NAMES, parts, strict=True)):
        write(tmp_path, name, content, index % 2 == 1)
    return tmp_path, parts


def test_images_are_those_of_the_files(files):
    folder, (images, labels, test, told) = files
    data = IdxImages(str(folder), batch_size=5, validation=4)
    data.setup("fit")
    (x, y), (z, _) = next(iter(data.test_dataloader())), next(iter(data.val_dataloader()))
    assert torch.equal(x, test[:, None].float() / 255) and torch.equal(y, told.long())
    assert z.shape == (4, 1, 6, 4) and sum(len(y) for _, y in data.train_dataloader()) == 8
    whole = IdxImages(str(folder))
    whole.setup("fit")
    read, its = whole._splits["train"]
    assert torch.equal(read, images[:, None]) and torch.equal(its, labels.long())


def test_what_is_refused(files):
    folder, (images, labels, test, told) = files
    with pytest.raises(UserError, match="validation=12.: must be a whole number, at least 0 and less than the 12"):
        IdxImages(str(folder), validation=12)
    write(folder, NAMES[2], test[:4])
    with pytest.raises(UserError, match="t10k-images-idx3-ubyte has 4 images, but t10k-labels-idx1-ubyte.gz 5 labels"):
        IdxImages(str(folder))
    write(folder, NAMES[2], test[:, :5])
    with pytest.raises(UserError, match="training and test images differ in size; make them agree"):
        IdxImages(str(folder))
    path = write(folder, NAMES[2], test)
    path.write_bytes(path.read_bytes()[:-3])
    data = IdxImages(str(folder))
    with pytest.raises(UserError, match="is damaged: it has 133 bytes where 136 are expected"):
        data.setup("fit")
    write(folder, NAMES[2], told)
    with pytest.raises(UserError, match="is no IDX file of unsigned bytes with 3 dimensions"):
        IdxImages(str(folder))
    path.unlink()
    with pytest.raises(UserError, match=r"IdxImages\(root='.*'\): has no t10k-images-idx3-ubyte, raw or with .gz"):
        IdxImages(str(folder))
    with pytest.raises(UserError, match="is no folder; name the one that holds train-images-idx3-ubyte, "):
        IdxImages(str(folder / "nowhere"))
    with pytest.raises(UserError, match="root=3"):
        IdxImages(3)
