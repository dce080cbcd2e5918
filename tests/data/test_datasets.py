"""Data sets of torch in batches whose order can be taken up again."""

import pytest
import torch
from torch.utils.data import Dataset, IterableDataset, TensorDataset
from torchvision.datasets import FakeData

from locoprop_lightning import BackpropModule, UserError
from locoprop_lightning.callbacks import RunCheckpoints
from locoprop_lightning.data import Datasets
from locoprop_lightning.data.datasets import DatasetLoader
from locoprop_lightning.networks import MLP
from locoprop_lightning.tasks import Classification
from tests.support import quiet_trainer, same


class Numbers(Dataset):
    """Dictionaries."""

    def __init__(self, size=10):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return {"x": torch.tensor([float(index)]), "name": f"n{index}"}


def seen(loader):
    return [int(x) for batch in loader for x in batch["x"]]


def test_the_order_depends_on_seed_and_epoch_and_every_sample_comes_once():
    loader, again, other = (DatasetLoader(Numbers(), 4, seed) for seed in (0, 0, 1))
    first = seen(loader)
    assert sorted(first) == list(range(10)) and first == seen(again) != seen(other) and len(loader) == 3
    loader.sampler.set_epoch(1)
    assert sorted(seen(loader)) == list(range(10)) and seen(loader) != first
    assert seen(DatasetLoader(Numbers(), 4, None)) == list(range(10))


@pytest.mark.parametrize("workers", [0, 1])
def test_it_goes_on_within_an_epoch(workers):
    whole = seen(DatasetLoader(Numbers(), 3, 0, workers))
    loader = DatasetLoader(Numbers(), 3, 0, workers)
    iterator = iter(loader)
    batch = [next(iterator) for _ in range(2)][-1]
    state = loader.state_dict()
    assert state["batches"] == 2 and batch["name"] == [f"n{i}" for i in whole[3:6]]
    again = DatasetLoader(Numbers(), 3, 0, workers)
    again.load_state_dict(state)
    assert seen(again) == whole[6:] and seen(again) == whole


def test_reading_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    seen(DatasetLoader(Numbers(), 3, 0))
    assert torch.equal(before, torch.get_rng_state())


class Noisy(Numbers):
    def __getitem__(self, index):
        return {"x": torch.rand(1)}


def test_workers_draw_other_numbers_in_another_epoch():
    loader = DatasetLoader(Noisy(), 10, 0, 1)
    (first,) = loader
    (again,) = loader
    loader.sampler.set_epoch(1)
    (other,) = loader
    assert torch.equal(first["x"], again["x"]) and not torch.equal(first["x"], other["x"])


def test_splits():
    data = Datasets(Numbers(), Numbers(4), batch_size=4, validation=3, eval_batch_size=2)
    held, kept = seen(data.val_dataloader()), seen(data.train_dataloader())
    assert len(held) == 3 and sorted(held + kept) == list(range(10))
    more = seen(Datasets(Numbers(), validation=5).val_dataloader())
    assert {*held} < {*more} and [len(b["x"]) for b in data.test_dataloader()] == [2, 2]
    assert seen(Datasets(Numbers(), Numbers(4)).val_dataloader()) == seen(data.predict_dataloader()) == [0, 1, 2, 3]
    assert Datasets(Numbers()).val_dataloader() == []


def module():
    torch.manual_seed(0)
    return BackpropModule(MLP(64, 8, 1), Classification(), lambda p: torch.optim.SGD(p, lr=0.1))


def test_a_fit_within_an_epoch_goes_on_bit_for_bit(tmp_path):
    def fit(steps, name, **settings):
        own, folder = module(), tmp_path / name
        kept = {"enable_checkpointing": True, "default_root_dir": folder}
        trainer = quiet_trainer(max_steps=steps, callbacks=[RunCheckpoints(None, 1)], **kept)
        data = Datasets(FakeData(50, (1, 8, 8)), FakeData(10, (1, 8, 8)), batch_size=10, seed=3)
        trainer.fit(own, data, weights_only=True, **settings)
        return own, folder / "checkpoints" / f"step={steps}.ckpt"

    whole, _ = fit(8, "whole")
    _, path = fit(3, "part")
    resumed, _ = fit(8, "resumed", ckpt_path=path)
    assert same(dict(whole.state_dict()), dict(resumed.state_dict()))


def test_pictures_become_numbers():
    images, labels = next(iter(Datasets(FakeData(5, (3, 4, 6)), batch_size=5).train_dataloader()))
    assert images.shape == (5, 3, 4, 6) and 0 <= images.min() < 0.1 < 0.9 < images.max() <= 1 and labels.shape == (5,)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(3))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: Datasets([1, 2]), "Datasets.train=.1, 2..: must be a data set"),
        (lambda: Datasets(Numbers), r"train=Numbers.: give an object, Numbers\(...\), not the class"),
        (lambda: Datasets(Stream()), "Stream has no length; give the trainer a DataLoader of it"),
        (lambda: Datasets(TensorDataset(torch.empty(0))), "TensorDataset is empty"),
        (lambda: Datasets(Numbers(), validation=10), "validation=10.: must be .* less than the 10 training samples"),
        (lambda: Datasets(Numbers(), batch_size=0), "batch_size=0.: must be at least 1"),
        (lambda: Datasets(Numbers(), workers=-1), "workers=-1.: must be at least 0"),
        (lambda: Datasets(Numbers()).test_dataloader(), "Datasets has no test samples; give it `test`"),
    ],
)
def test_what_is_refused(call, said):
    with pytest.raises(UserError, match=said):
        call()
