"""Several batches of the data as one step, and bounded displacements."""

import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from torch import nn
from torch.utils.data import DataLoader

from locoprop_lightning import LocoPropModule
from locoprop_lightning.callbacks import RunCheckpoints
from locoprop_lightning.data import Digits
from locoprop_lightning.errors import UserError
from locoprop_lightning.networks import MLP
from locoprop_lightning.optimizers import LinearDecay
from locoprop_lightning.oracles import RMSOracle, SpectralOracle, WhitenedOracle
from locoprop_lightning.solvers import AndersonAcceleration, ClosedForm, Majorization
from locoprop_lightning.tasks import Classification
from tests.support import close, quiet_trainer, same

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]
SQUARED = dict(objective="squared", damping="relative", lambda_a=0.1, lambda_r=0.1)
METHODS = {
    "rms": (lambda: ClosedForm(), lambda: RMSOracle(), SQUARED),
    "whitened": (lambda: ClosedForm(0.9, 2), lambda: WhitenedOracle(samples=0, damping=0.1), SQUARED),
    "spectral": (lambda: ClosedForm(0.9, 2), lambda: SpectralOracle(0.5), SQUARED | dict(step_length="activations")),
    "majorization": (lambda: Majorization(2), lambda: RMSOracle(), dict(lambda_a=0.1, lambda_r=1.0)),
    "anderson": (lambda: AndersonAcceleration(3), lambda: None, dict(lambda_a=20.0, lambda_r=50.0)),
}


class Patches(nn.Module):
    """Tokens of a convolution, an embedding of their own, and a head."""

    def __init__(self):
        super().__init__()
        self.enter, self.inner, self.head = nn.Conv1d(2, 6, 3, padding=1), nn.Linear(6, 5), nn.Linear(5, 3)
        self.scale = nn.Parameter(torch.ones(5))

    def forward(self, x):
        return self.head(self.inner(self.enter(x).tanh().mT).relu() * self.scale).mT


def data(n=36, holes=False):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 2, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (n, 4), generator=generator)
    if holes:
        y[torch.rand(n, 4, generator=generator) < 0.4] = -100
    return list(zip(x, y, strict=True))


def fit(samples, batch_size, solver, oracle, settings, callbacks=(), epochs=2, **options):
    seed_everything(0, verbose=False)
    network = Patches().double()
    rest = dict(rest_optimizer=lambda p: torch.optim.SGD(p, lr=0.1), lr_scheduler=LinearDecay)
    module = LocoPropModule(network, Classification(3), solver(), oracle=oracle(), **settings | rest)
    trainer = quiet_trainer(
        max_epochs=epochs, precision="64-true", callbacks=list(callbacks), log_every_n_steps=1, **options
    )
    trainer.fit(module, DataLoader(samples, batch_size))
    return module, trainer


@pytest.mark.parametrize("holes", [False, True], ids=["whole", "holes"])
@pytest.mark.parametrize("name", METHODS)
def test_three_batches_are_one_of_their_samples(name, holes):
    """Also where they count differently, and at the end of an epoch, which has a whole and a short batch left."""
    solver, oracle, settings = METHODS[name]
    samples = data(34, holes)
    whole, trainer = fit(samples, 12, solver, oracle, settings)
    joined, other = fit(samples, 4, solver, oracle, settings | dict(accumulate=3))
    assert trainer.global_step == other.global_step == 6
    for key, value in whole.network.named_parameters():
        close(joined.network.get_parameter(key), value, 1e-9)
    start = Patches()
    assert all((p - q).norm() > 1e-3 for p, q in zip(whole.network.parameters(), start.parameters(), strict=True))
    for key in ("train/loss", "train/accuracy", "lr"):
        close(other.callback_metrics[key].double(), trainer.callback_metrics[key].double(), 1e-6)


def test_labels_for_the_fisher_are_drawn_for_every_batch():
    """Their second moment over many draws is that of one batch."""
    found = []
    for size, accumulate in ((36, 1), (12, 3)):
        module, _ = fit(
            data(36),
            size,
            ClosedForm,
            lambda: WhitenedOracle(samples=300, warmup=0, refresh_every=100),
            SQUARED | dict(accumulate=accumulate),
            epochs=1,
        )
        state = module.engine.layers["inner"].oracle_state["preconditioner"]["average"]
        found.append(state["value"] / state["weight"])
    assert (found[0] - found[1]).norm() < 0.1 * found[0].norm()


class Watch(Callback):
    def __init__(self):
        self.steps = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.steps.append((trainer.global_step, pl_module.within_step))


def test_a_checkpoint_is_written_between_steps_and_goes_on_exactly(tmp_path):
    solver, oracle, settings = METHODS["whitened"]
    found, watch = [], Watch()
    for folder, checkpoint in (("whole", None), ("resumed", "step=3.ckpt")):
        seed_everything(0, verbose=False)
        module = LocoPropModule(MLP(64, 16, 1), Classification(), solver(), oracle=oracle(), accumulate=3, **settings)
        trainer = quiet_trainer(
            max_epochs=1,
            enable_checkpointing=True,
            default_root_dir=tmp_path / folder,
            callbacks=[RunCheckpoints(None, 3), *([] if checkpoint else [watch])],
            limit_val_batches=0,
        )
        path = checkpoint and next((tmp_path / "whole").rglob(checkpoint))
        trainer.fit(module, datamodule=Digits(batch_size=150), ckpt_path=path, weights_only=True)
        found.append((trainer.global_step, module.network.state_dict()))
    assert watch.steps == [(i // 3, i % 3 > 0) for i in range(1, 10)] + [(4, False)]  # ten batches
    assert found[0][0] == found[1][0] == 4 and same(found[0][1], found[1][1])


@pytest.mark.parametrize("bound", [1e-3, 1e3])
def test_a_displacement_is_bounded_relative_to_the_weights(bound):
    moved = {}
    for limit in (None, bound):
        solver, oracle, settings = METHODS["rms"]
        module, _ = fit(
            data(), 36, solver, oracle, settings | dict(max_displacement=limit, lr_scheduler=None), epochs=1
        )
        seed_everything(0, verbose=False)
        start = Patches().double()
        for name in ("enter", "inner", "head"):
            own, first = module.network.get_submodule(name), start.get_submodule(name)
            size = torch.cat([(a - b).flatten() for a, b in zip(own.parameters(), first.parameters(), strict=True)])
            weights = torch.cat([p.flatten() for p in first.parameters()]).norm()
            moved.setdefault(name, []).append((size.norm() / max(weights, (len(own.weight) / 3) ** 0.5)).item())
    for free, held in moved.values():
        assert held == pytest.approx(min(free, bound), rel=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(accumulate=0), "accumulate=0"),
        (dict(max_displacement=-1.0), "max_displacement=-1.0"),
        (dict(accumulate=2, shared_rows="reduce", objective="squared"), "accumulate=2: joins rows as they are"),
    ],
)
def test_mistakes(settings, message):
    with pytest.raises(UserError, match=message):
        LocoPropModule(Patches(), Classification(3), ClosedForm(), 0.1, 0.1, **dict(objective="squared") | settings)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(gradient_clip_val=1.0), r"trainer.gradient_clip_val=1.0: .* set model.max_displacement"),
        (dict(accumulate_grad_batches=2), r"trainer.accumulate_grad_batches=2: .* set model.accumulate"),
    ],
)
def test_what_lightning_does_to_gradients_has_another_name_here(options, message):
    solver, oracle, settings = METHODS["rms"]
    with pytest.raises(UserError, match=message):
        fit(data(), 12, solver, oracle, settings, **options)
