from types import SimpleNamespace

import pytest
import torch

from locoprop_lightning.data import TextFiles
from locoprop_lightning.errors import UserError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "b.txt").write_text("0123456789" * 30)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c.txt").write_text("äb")
    (tmp_path / "a.txt").write_text("abcdefghij" * 30)
    (tmp_path / "other.md").write_text("not read")
    return tmp_path


def load(folder, **arguments):
    data = TextFiles(str(folder), "*.txt", **{"length": 8, "batch_size": 5, "seed": 3} | arguments)
    data.setup("fit")
    return data


def test_every_sequence_comes_once_with_the_next_tokens(folder):
    data = load(folder)
    loader = data.train_dataloader()
    batches = list(loader)
    assert len(batches) == len(loader)
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert torch.equal(x[:, 1:], y[:, :-1])
    text = ("abcdefghij" * 30 + "\n" + "0123456789" * 30 + "\n??b").encode()  # two bytes of an umlaut
    train = text[: len(text) - len(text) // 10]
    expected = [train[i : i + 8] for i in range(0, len(train) - 8, 8)]
    assert sorted(bytes(row.tolist()) for row in x) == sorted(expected)
    held = torch.cat([x for x, _ in data.val_dataloader()])
    assert bytes(held[0].tolist()) == text[len(train) : len(train) + 8]


def test_the_order_depends_on_seed_and_epoch(folder):
    def order(seed, epoch):
        loader = load(folder, seed=seed).train_dataloader()
        loader.sampler.set_epoch(epoch)
        return torch.cat([x for x, _ in loader])

    assert torch.equal(order(0, 1), order(0, 1))
    assert not torch.equal(order(0, 1), order(0, 2))
    assert not torch.equal(order(0, 1), order(1, 1))


def test_processes_share_the_sequences(folder):
    def loaders(split, size):
        for rank in range(size):
            data = load(folder)
            data.trainer = SimpleNamespace(global_rank=rank, world_size=size, overfit_batches=0.0)
            yield getattr(data, f"{split}_dataloader")()

    for split in ("train", "val"):
        (whole,) = loaders(split, 1)
        parts = list(loaders(split, 2))
        assert all(len(list(part)) == len(part) for part in parts)
        first, second = (torch.cat([x for x, _ in part]) for part in parts)
        expected = torch.cat([x for x, _ in whole])
        assert torch.equal(first, expected[::2]) and torch.equal(second, expected[1::2]) and len(second) > 1
        assert len(first) + len(second) == len(expected)


def test_the_default_is_the_standard_library():
    data = TextFiles(limit=50_000)
    data.setup("fit")
    x, y = next(iter(data.train_dataloader()))
    assert x.shape == y.shape == (64, 64) and x.dtype == torch.int64 and x.max() < 128
    assert any(path.name == "argparse.py" for path in data.files())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"length": 0}, "length=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"length": 900}, "605 characters are too few"),
        ({"pattern": "*.rst"}, "no file there matches"),
    ],
)
def test_mistakes(folder, arguments, message):
    with pytest.raises(UserError, match=message):
        data = TextFiles(**{"root": str(folder), "pattern": "*.txt"} | arguments)
        data.setup("fit")
