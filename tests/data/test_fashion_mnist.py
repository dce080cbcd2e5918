import gzip
import shutil

import pytest
import torch
from torchvision import datasets

from locoprop_lightning.data import FashionMNIST
from locoprop_lightning.data import fashion_mnist as fashion_mnist_module
from locoprop_lightning.data.fashion_mnist import FILES
from locoprop_lightning.errors import UserError

THREE_WAYS = r"put the four IDX files into .*Debian's package dataset-fashion-mnist.*torchvision download"


@pytest.fixture
def no_debian(monkeypatch, tmp_path):
    """A machine without Debian's package."""
    monkeypatch.setattr(fashion_mnist_module, "DEBIAN_FOLDER", tmp_path / "not-installed")


def pretend_files(folder, suffix=""):
    """Empty files in place of the four IDX files: enough to be found."""
    folder.mkdir(parents=True)
    paths = [folder / (file.name + suffix) for file in FILES]
    for path in paths:
        path.touch()
    return paths


def copy_files(fashion_mnist, folder):
    folder.mkdir()
    return [shutil.copy(path, folder / path.name) for path in fashion_mnist.find()]


def test_an_epoch_is_59_batches_and_the_last_has_608_images(fashion_mnist):
    loader = fashion_mnist.train_dataloader()
    sizes, counts, low, high = [], torch.zeros(10, dtype=torch.int64), 1.0, 0.0
    for images, labels in loader:
        assert images.shape == (len(labels), 1, 28, 28)
        sizes.append(len(labels))
        counts += labels.bincount(minlength=10)
        low, high = min(low, images.min().item()), max(high, images.max().item())
    assert len(loader) == 59
    assert sizes == [1024] * 58 + [608]
    assert counts.tolist() == [6000] * 10
    assert (low, high) == (0.0, 1.0)


def test_the_other_loaders_give_the_test_images_in_order(fashion_mnist):
    loaders = [fashion_mnist.val_dataloader(), fashion_mnist.test_dataloader(), fashion_mnist.predict_dataloader()]
    for loader in loaders:
        labels = torch.cat([labels for _, labels in loader])
        assert len(labels) == 10_000
        assert labels[:8].tolist() == [9, 2, 1, 1, 6, 1, 4, 6]


def test_root_comes_first_then_torchvisions_folder_then_debians(monkeypatch, tmp_path):
    debian = pretend_files(tmp_path / "debian", ".gz")
    monkeypatch.setattr(fashion_mnist_module, "DEBIAN_FOLDER", tmp_path / "debian")
    data = FashionMNIST(root=str(tmp_path / "root"))
    assert data.find() == debian
    torchvisions = pretend_files(tmp_path / "root" / "FashionMNIST" / "raw")
    assert data.find() == torchvisions
    gzipped = [file.with_name(file.name + ".gz") for file in torchvisions]
    for path in gzipped:
        (tmp_path / "root" / path.name).touch()
    assert data.find() == [tmp_path / "root" / path.name for path in gzipped]
    (tmp_path / "root" / gzipped[0].name).unlink()
    assert data.find() == torchvisions


def test_missing_data_names_the_three_ways(no_debian, tmp_path):
    data = FashionMNIST(root=str(tmp_path), download=False)
    data.prepare_data()
    with pytest.raises(UserError, match=f"under root={tmp_path} .*{THREE_WAYS}"):
        data.setup("fit")


def test_download_only_if_nothing_is_found(no_debian, monkeypatch, tmp_path):
    calls = []

    def download(root, download):
        calls.append((root, download))
        raise RuntimeError("no network")

    monkeypatch.setattr(datasets, "FashionMNIST", download)
    data = FashionMNIST(root=str(tmp_path / "root"))
    with pytest.raises(UserError, match=rf"failed \(no network\); {THREE_WAYS}"):
        data.prepare_data()
    assert calls == [(str(tmp_path / "root"), True)]
    pretend_files(tmp_path / "root")
    data.prepare_data()
    assert len(calls) == 1


def flip_byte(content):
    return content[:5000] + bytes([content[5000] ^ 1]) + content[5001:]


@pytest.mark.parametrize(
    "damage, message",
    [
        (flip_byte, "SHA-256"),
        (lambda content: content[:-100], "9908 bytes where 10008"),
        (lambda content: b"\0\0\x08\x03" + content[4:], "magic number is 0x00000803, not 0x00000801"),
    ],
    ids=["flipped byte", "truncated", "wrong magic"],
)
def test_a_damaged_file_is_named_with_the_three_ways(fashion_mnist, tmp_path, damage, message):
    path = copy_files(fashion_mnist, tmp_path / "root")[-1]
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    path.write_bytes(gzip.compress(damage(raw)) if path.suffix == ".gz" else damage(raw))
    with pytest.raises(UserError, match=f"^{path} is (another data set, or )?damaged: .*{message}.*{THREE_WAYS}"):
        FashionMNIST(root=str(tmp_path / "root")).setup("fit")


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"validation": 60_000}, "validation=60000.: .* 60000 training images"),
        ({"validation": -1}, "validation=-1"),
        ({"seed": -1}, "seed=-1"),
        ({"eval_batch_size": 0}, "eval_batch_size=0"),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(UserError, match=message):
        FashionMNIST(**arguments)
