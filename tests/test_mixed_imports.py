"""Who imports pytorch_lightning beside this package is told what does not go together."""

import logging
import sys
import types

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger

from locoprop_lightning import BackpropModule, LocoPropModule, UserError
from locoprop_lightning.callbacks import LocalLossHistory
from locoprop_lightning.data import Digits
from locoprop_lightning.networks import MLP
from locoprop_lightning.solvers import FixedPointIteration
from locoprop_lightning.tasks import Classification
from tests.support import quiet_trainer


def module():
    return LocoPropModule(MLP(64, 8, 1), Classification(), FixedPointIteration(2), 30.0, 5000.0)


def stranger(base, **members):
    """A class as pytorch_lightning has it, whether or not that is installed."""
    return type(base.__name__, (base,), {"__module__": "pytorch_lightning.callbacks", **members})


def test_a_module_says_that_the_other_trainer_does_not_take_it(monkeypatch, caplog):
    monkeypatch.delitem(sys.modules, "pytorch_lightning", raising=False)
    with caplog.at_level(logging.WARNING):
        module()
    assert not caplog.records
    monkeypatch.setitem(sys.modules, "pytorch_lightning", types.ModuleType("pytorch_lightning"))
    with caplog.at_level(logging.WARNING):
        BackpropModule(MLP(64, 8, 1), Classification(), torch.optim.SGD)
    (record,) = caplog.records
    assert record.getMessage().startswith(
        "pytorch_lightning is imported, whose Trainer does not take BackpropModule: it is a module of "
        "lightning.pytorch; write `from lightning.pytorch import Trainer`"
    )


def test_callbacks_and_loggers_of_the_other_package_are_named(tmp_path):
    other, logger = stranger(Callback), stranger(CSVLogger)(str(tmp_path))
    mine = type("Mine", (other,), {"__module__": __name__})
    for settings, said in [
        (
            {"callbacks": [other()]},
            "trainer: Callback is of pytorch_lightning, and the trainer is of lightning.pytorch; ",
        ),
        ({"callbacks": [mine()]}, "trainer: Mine derives from pytorch_lightning's Callback, and the trainer is of"),
        ({"logger": logger}, "trainer: CSVLogger is of pytorch_lightning"),
    ]:
        with pytest.raises(UserError) as refused:
            quiet_trainer(**settings, max_steps=1).fit(module(), Digits(batch_size=64))
        assert str(refused.value).startswith(said) and "from lightning.pytorch." in str(refused.value)


def test_a_history_of_a_module_without_local_layers_is_refused():
    other = BackpropModule(MLP(64, 8, 1), Classification(), torch.optim.SGD)
    with pytest.raises(UserError, match="LocalLossHistory: BackpropModule has no local layers; take it with LocoPropM"):
        quiet_trainer(callbacks=[LocalLossHistory()], max_steps=1).fit(other, Digits(batch_size=64))


@pytest.mark.filterwarnings("ignore")
def test_the_real_trainer_of_the_other_package_refuses_it():
    """What the line that a module says is for: if this ends, so may the line."""
    other = pytest.importorskip("pytorch_lightning", reason="pytorch_lightning is not installed")
    trainer = other.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, max_steps=1)
    with pytest.raises(TypeError, match="`model` must be a `LightningModule`"):
        trainer.fit(module(), Digits(batch_size=64))
