import pytest
import torch
from lightning.pytorch import seed_everything

from locoprop_lightning.data import Digits
from locoprop_lightning.data.base import fixed_permutation
from locoprop_lightning.errors import UserError


def ready(**arguments):
    data = Digits(**arguments)
    data.setup("fit")
    return data


def all_of(loader):
    batches = list(loader)
    return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])


def rows(images):
    return {tuple(row) for row in images.flatten(1).tolist()}


def test_split_and_range():
    data = ready()
    images, labels = all_of(data.train_dataloader())
    test_images, test_labels = all_of(data.test_dataloader())
    assert images.shape == (1500, 1, 8, 8) and test_images.shape == (297, 1, 8, 8)
    assert images.min() == 0.0 and images.max() == 1.0
    assert labels.unique().tolist() == test_labels.unique().tolist() == list(range(10))


def test_the_fixed_permutation_never_changes():
    # Splits of published numbers depend on it.
    assert fixed_permutation(10).tolist() == [2, 8, 4, 9, 1, 6, 7, 3, 0, 5]


def test_held_out_images_are_fixed_and_not_trained_on():
    first, second = ready(validation=200, seed=0), ready(validation=200, seed=1)
    held, labels = all_of(first.val_dataloader())
    assert len(labels) == 200
    assert torch.equal(held, all_of(second.val_dataloader())[0])
    train, _ = all_of(first.train_dataloader())
    assert len(train) == 1300
    # All of the digits are distinct images, so the sets can be compared by their pixels.
    assert rows(train).isdisjoint(rows(held))
    assert rows(train) | rows(held) == rows(all_of(ready().train_dataloader())[0])
    # The test images stay what they are.
    assert torch.equal(all_of(first.test_dataloader())[0], all_of(ready().test_dataloader())[0])


def test_without_held_out_images_validation_looks_at_the_test_images():
    data = ready()
    assert torch.equal(all_of(data.val_dataloader())[0], all_of(data.test_dataloader())[0])


def test_seed_orders_the_training_images():
    orders = [all_of(ready(seed=seed).train_dataloader())[1] for seed in (0, 0, 1)]
    assert torch.equal(orders[0], orders[1]) and not torch.equal(orders[0], orders[2])


def test_seed_none_takes_lightnings_seed_or_zero(monkeypatch):
    def labels(seed):
        return all_of(ready(seed=seed).train_dataloader())[1]

    assert torch.equal(labels(None), labels(0))
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # restored after the test, whatever seed_everything writes
    monkeypatch.setenv("PL_SEED_WORKERS", "0")
    seed_everything(7, verbose=False)
    assert torch.equal(labels(None), labels(7))
    assert not torch.equal(labels(7), labels(0))


def test_eval_batch_size():
    data = ready(batch_size=100, eval_batch_size=297)
    assert (len(data.train_dataloader()), len(data.val_dataloader()), len(data.test_dataloader())) == (15, 1, 1)
    assert len(ready(batch_size=100).test_dataloader()) == 3


def test_loaders_before_setup():
    with pytest.raises(UserError, match=r"setup\('fit'\)"):
        Digits().train_dataloader()


@pytest.mark.parametrize("arguments, message", [({"validation": 1500}, "1500 training images"), ({"seed": -1}, "seed")])
def test_arguments_are_checked(arguments, message):
    with pytest.raises(UserError, match=message):
        Digits(**arguments)
