"""What a fit must have come to by its first batch and by the end of an epoch, as nothing would ever come of it else."""

from collections.abc import Set
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from locoprop_lightning.errors import BATCHES, UserError, check_object, shown
from locoprop_lightning.tasks import Task


def check_data(trainer: Trainer) -> None:
    """Refuses no data, the class of data in place of an object, and tensors whose entries are no batches.

    Args:
        trainer: The trainer, with what it was called with.

    Raises:
        UserError: Names what was given.
    """
    loops: list[Any] = [trainer._active_loop]
    if trainer.state.fn == TrainerFn.FITTING:
        loops.append(trainer.fit_loop.epoch_loop.val_loop)
    for loop in loops:
        given = loop._data_source.instance
        if loop is loops[0] and isinstance(given, LightningModule) and not loop._data_source.is_defined():
            verb = loop._data_source.name.removesuffix("_dataloader").replace("train", "fit").replace("val", "validate")
            raise UserError(f"data: {verb} was given none; give a loader, or a data module such as Digits().")
        check_object("", object, "data", data=given)
        single = [one for one in tree_leaves(given) if isinstance(one, Tensor | np.ndarray) and one.ndim < 2]
        if single:
            raise UserError(f"data={shown(given)}: the entries of {shown(single[0])} are single samples; {BATCHES}.")


class _Refused(Callback):
    """Stands for what is no callback, so that the next fit refuses it, too."""

    def __init__(self, given: Any) -> None:
        self.given = given


def check_callbacks(trainer: Trainer) -> None:
    """Refuses what is no callback, such as the class of one, which another stands for, as all are told of a refusal.

    Args:
        trainer: The trainer.

    Raises:
        UserError: Names what was given.
    """
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    for index, one in enumerate(callbacks):
        given = one.given if isinstance(one, _Refused) else one
        if not isinstance(given, Callback):
            callbacks[index] = _Refused(given)
            check_object("", Callback, "a callback", callbacks=given)


def check_fit(trainer: Trainer) -> None:
    """Refuses a fit that had no batch.

    Args:
        trainer: The trainer, after the fit.

    Raises:
        UserError: Names the limit.
    """
    limit = trainer.limit_train_batches
    if limit == 0 or trainer.num_training_batches == 0:
        way = f"trainer.limit_train_batches={limit}); give data, and a limit above 0"
        raise UserError(f"data: there is no batch to train on ({way}.")


def check_batch(module: LightningModule, outputs: Any) -> None:
    """Refuses a training step of the user's that returns a loss of which nothing is made.

    Args:
        module: The module, after a batch.
        outputs: What its training step has returned.

    Raises:
        UserError: Names its class.
    """
    if module.global_step or module.automatic_optimization or not outputs:
        return
    if _overrides(module) and all(p.grad is None for p in module.parameters()):
        raise UserError(_no_step(module))


def check_epoch(module: LightningModule, network: nn.Module, task: Task, untouched: Set[str]) -> None:
    """Refuses data that would be asked for for ever, and a loss that never reaches the network.

    Args:
        module: The module, at the end of an epoch.
        network: Its network.
        task: Its task.
        untouched: Names of the network's parameters that no backward pass has reached.

    Raises:
        UserError: After an epoch without a batch, and a first one without a step or a gradient.
    """
    trainer = module.trainer
    begun = trainer.fit_loop.epoch_loop.batch_progress.current.ready
    if begun and trainer.global_step == 0 and not module.automatic_optimization and _overrides(module):
        raise UserError(_no_step(module))
    if not begun or trainer.global_step == 0:
        why = "its batches were None, or a hook has skipped them" if begun else "iterators last for one pass"
        raise UserError(f"data: no step was taken in an epoch: {why}.")
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    if trained and untouched >= trained.keys() and all(p.grad is None for p in trained.values()):
        raise UserError(
            f"{type(task).__name__}.loss: no gradient has reached the network in an epoch; make it of the output by "
            "functions of torch, undetached."
        )


def _overrides(module: LightningModule) -> bool:
    """Whether the module's training step is the user's, in the place of one of this package."""
    kinds = [kind for kind in type(module).__mro__ if "training_step" in vars(kind)]
    own = [kind.__module__.partition(".")[0] == __package__ for kind in kinds]
    return any(own) and not own[0]


def _no_step(module: LightningModule) -> str:
    return f"{type(module).__name__}.training_step took no step: call super().training_step(batch, batch_idx) in it."
