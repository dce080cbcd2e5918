import shutil

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from locoprop_lightning.data import Digits
from locoprop_lightning.data.loader import TensorLoader
from locoprop_lightning.errors import UserError


def make_loader(size=10, batch_size=4, shuffle=True, seed=0, rank=0, world_size=1, even=False):
    images = torch.arange(size, dtype=torch.uint8).view(size, 1, 1, 1)
    return TensorLoader(images, torch.arange(size), 2.0, batch_size, shuffle, seed, rank, world_size, even)


def seen(loader):
    return torch.cat([labels for _, labels in loader]).tolist()


def seen_in_epoch(loader, epoch):
    loader.sampler.set_epoch(epoch)
    return seen(loader)


def test_batches_are_scaled_floats_with_their_labels():
    for images, labels in make_loader():
        assert images.dtype == torch.float32 and labels.dtype == torch.int64
        assert torch.equal(images.flatten(), labels / 2.0)


def test_every_sample_comes_once_and_the_short_batch_is_kept():
    loader = make_loader(size=10, batch_size=4)
    assert [len(labels) for _, labels in loader] == [4, 4, 2]
    assert len(loader) == 3
    assert sorted(seen(loader)) == list(range(10))


def test_without_shuffle_the_order_is_that_of_the_data():
    assert seen(make_loader(shuffle=False)) == list(range(10))


def test_order_depends_on_seed_and_epoch_alone():
    first, second = make_loader(size=100), make_loader(size=100)
    torch.manual_seed(1)
    orders = [seen_in_epoch(first, epoch) for epoch in range(3)]
    torch.manual_seed(2)
    # In another order of epochs and from another global state, as after a resume.
    assert [seen_in_epoch(second, epoch) for epoch in (2, 0, 1)] == [orders[2], orders[0], orders[1]]
    # Neither the next epoch nor the next seed repeats an order: seed 1, epoch 0 is not seed 0, epoch 1.
    other = [seen_in_epoch(make_loader(size=100, seed=1), epoch) for epoch in range(3)]
    assert len({tuple(order) for order in orders + other}) == 6


def test_the_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    seen(make_loader())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("size, world_size", [(10, 2), (10, 3), (11, 2), (13, 3), (2, 5), (9, 2)])
def test_ranks_that_train_have_the_batches_of_one_process(size, world_size, shuffle):
    (whole,) = (make_loader(size, 4 * world_size, shuffle),)
    loaders = [make_loader(size, 4, shuffle, rank=rank, world_size=world_size, even=True) for rank in range(world_size)]
    for loader in (whole, *loaders):
        if shuffle:
            loader.sampler.set_epoch(1)
    expected = [labels.tolist() for _, labels in whole]
    parts = [[labels.tolist() for _, labels in loader] for loader in loaders]
    assert {len(part) for part in parts} == {len(expected)} and all(len(one) == len(expected) for one in loaders)
    for batch, *shares in zip(expected, *parts, strict=True):
        together = [sample for share in shares for sample in share]
        # no rank is without a sample, if need be by taking the epoch's first one again
        assert all(shares) and set(together) - set(batch) <= {expected[0][0]} and set(batch) <= set(together)
        if len(batch) >= world_size:
            assert sorted(together) == sorted(batch)


@pytest.mark.parametrize("size, world_size", [(10, 2), (10, 3), (2, 5)])
def test_unshuffled_ranks_share_the_samples_without_repeats(size, world_size):
    loaders = [make_loader(size, 2, shuffle=False, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert sorted(sample for loader in loaders for _, labels in loader for sample in labels.tolist()) == list(
        range(size)
    )
    # A rank without samples (2 samples, 5 ranks) has no batches, rather than an empty one.
    assert all(len(loader) == len(list(loader)) for loader in loaders)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"batch_size": 0}, "batch_size=0: must be at least 1"),
        ({"rank": 2, "world_size": 2}, "rank=2: .* world_size=2"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(UserError, match=message):
        make_loader(**arguments)


def test_tensors_that_do_not_fit():
    images, labels = torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64)
    for bad_images, bad_labels, name in [(images.float(), labels, "images"), (images, labels[:2], "labels")]:
        with pytest.raises(UserError, match=f"{name} must be"):
            TensorLoader(bad_images, bad_labels, 1.0, 1, False, 0)
    with pytest.raises(UserError, match=r"scale=0\.0: must be positive"):
        TensorLoader(images, labels, 0.0, 1, False, 0)


class Recorder(LightningModule):
    """Trains one number and records the labels of every training epoch."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.epochs = {}

    def training_step(self, batch, batch_index):
        images, labels = batch
        self.epochs.setdefault(self.current_epoch, []).extend(labels.tolist())
        return (self.weight - images.mean()).square()

    def validation_step(self, batch, batch_index):
        self.log("val/size", float(len(batch[1])))

    def predict_step(self, batch, batch_index):
        return batch[1]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Data(LightningDataModule):
    def train_dataloader(self):
        return make_loader()

    def val_dataloader(self):
        return make_loader(shuffle=False)

    predict_dataloader = val_dataloader


def make_trainer(folder, max_epochs, callbacks, overfit_batches=0):
    return Trainer(
        max_epochs=max_epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=callbacks,
        overfit_batches=overfit_batches,
    )


def test_lightning_chooses_the_epoch(tmp_path):
    module = Recorder()
    trainer = make_trainer(tmp_path, 3, [ModelCheckpoint(tmp_path)])
    trainer.fit(module, Data())
    assert module.epochs == {epoch: seen_in_epoch(make_loader(), epoch) for epoch in range(3)}
    assert torch.cat(trainer.predict(module, Data())).tolist() == list(range(10))


@pytest.mark.parametrize("save_on_train_epoch_end", [True, False])
def test_a_resumed_fit_sees_the_remaining_epochs(tmp_path, save_on_train_epoch_end):
    def train(max_epochs, ckpt_path=None):
        checkpoint = ModelCheckpoint(tmp_path / "run", save_on_train_epoch_end=save_on_train_epoch_end)
        module = Recorder()
        make_trainer(tmp_path, max_epochs, [checkpoint]).fit(module, Data(), ckpt_path=ckpt_path)
        return module.epochs, checkpoint.best_model_path

    _, saved = train(2)
    # Out of the folder: ModelCheckpoint warns of files that it finds there.
    saved = shutil.move(saved, tmp_path / "saved.ckpt")
    epochs, _ = train(4, saved)
    assert epochs == {epoch: seen_in_epoch(make_loader(), epoch) for epoch in (2, 3)}


def test_overfit_batches_are_the_same_every_epoch(tmp_path):
    module = Recorder()
    trainer = make_trainer(tmp_path, 2, [ModelCheckpoint(tmp_path)], overfit_batches=2)
    trainer.fit(module, Digits(batch_size=4))
    assert len(module.epochs[0]) == 8 and module.epochs[0] == module.epochs[1]
