"""What a fit must have come to by its first batch and by the end of an epoch, as nothing would ever come of it else."""

from collections.abc import Set
from typing import Any

from lightning.pytorch import LightningModule
from torch import nn

from locoprop_lightning.errors import UserError
from locoprop_lightning.tasks import Task


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
