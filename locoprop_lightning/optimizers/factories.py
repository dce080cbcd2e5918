"""Optimizers and schedules, made by what the user chose."""

from collections.abc import Callable, Sequence
from typing import Any

from lightning.pytorch.cli import OptimizerCallable
from torch.optim import Optimizer

from locoprop_lightning.errors import UserError
from locoprop_lightning.optimizers.joined import JoinedOptimizer, NamesNeeded, OwnedParameter


def optimizer_from(setting: str, factory: OptimizerCallable, parameters: Sequence[OwnedParameter]) -> Optimizer:
    """Makes an optimizer; it is given the parameters' names and modules where it asks for them.

    Args:
        setting: Name of the setting.
        factory: What the user chose.
        parameters: The parameters.
    """
    try:
        optimizer: Optimizer = make_from(setting, factory, [entry.parameter for entry in parameters])
        wants_modules = isinstance(optimizer, JoinedOptimizer) and optimizer.wants_modules
    except NamesNeeded:
        wants_modules = True
    return make_from(setting, factory, list(parameters)) if wants_modules else optimizer


def make_from(setting: str, factory: Callable[..., Any], argument: Any) -> Any:
    """Calls a factory that the user chose; what it refuses is the user's to mend.

    Args:
        setting: Name of the setting.
        factory: The factory.
        argument: What it makes something from.

    Raises:
        UserError: What the factory says against it.
    """
    try:
        return factory(argument)
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        hint = "; SplitOptimizer gives matrices one rule and the rest another" if "2D" in str(error) else ""
        raise UserError(f"{setting}: {error}{hint}.") from error
