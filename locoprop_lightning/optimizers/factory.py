"""Optimizers and schedules from what the user chose to make them with."""

import inspect
import logging
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from torch.optim import LBFGS, SGD, Optimizer, SparseAdam
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from locoprop_lightning.errors import UserError, check_counts, listed
from locoprop_lightning.optimizers.joined import JoinedOptimizer, NamesNeeded, OwnedParameter, check_maker
from locoprop_lightning.optimizers.objects import save_objects_plainly

_log = logging.getLogger(__name__)


def optimizer_from(
    setting: str, factory: Callable[..., Any], parameters: Sequence[OwnedParameter], closures: bool = True
) -> Optimizer:
    """Makes an optimizer; it is given the parameters' names and modules where it asks for them.

    Args:
        setting: Name of the setting.
        factory: What the user chose.
        parameters: The parameters.
        closures: Whether it may evaluate the loss several times a step.

    Raises:
        UserError: For what is no optimizer of these parameters, or has a rate that is no finite number.
    """
    try:
        optimizer: Optimizer = make_from(setting, factory, [entry.parameter for entry in parameters])
        wants_modules = isinstance(optimizer, JoinedOptimizer) and optimizer.wants_modules
    except NamesNeeded:
        wants_modules = True
    optimizer = make_from(setting, factory, list(parameters)) if wants_modules else optimizer
    name = type(optimizer).__name__
    if not isinstance(optimizer, Optimizer):
        raise UserError(f"{setting}: makes a {name}, not a torch.optim.Optimizer; return one.")
    if isinstance(optimizer, LBFGS) and not closures:
        raise UserError(f"{setting}=LBFGS evaluates the loss several times a step; take one that does not.")
    if isinstance(optimizer, SparseAdam):
        raise UserError(f"{setting}=SparseAdam takes no dense gradients; take Adam.")
    known = {entry.parameter for entry in parameters}
    for group in optimizer.param_groups:
        if not known.issuperset(group["params"]):
            raise UserError(f"{setting}={name}: has parameters of something else; take those that it is called with.")
        if not math.isfinite(group.get("lr", 0)):
            raise UserError(f"{setting}={name}: lr={group['lr']}: must be a finite number.")
    save_objects_plainly(optimizer)
    return optimizer


def check_all(setting: str, optimizer: Optimizer, parameters: Sequence[OwnedParameter]) -> None:
    """Refuses an optimizer that lacks some of the parameters that only it would step.

    Args:
        setting: Name of the setting.
        optimizer: What it has made.
        parameters: The parameters, of which frozen ones may be left out.

    Raises:
        UserError: Names those that it has not.
    """
    has = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    if lacking := [one.name for one in parameters if one.parameter.requires_grad and one.parameter not in has]:
        raise UserError(
            f"{setting}={type(optimizer).__name__}: has not the parameters {listed(lacking, 4)}; take all that it is "
            "called with, or freeze those that shall stay as they are by requires_grad_(False)."
        )


def tell_default_rate(optimizer: Optimizer) -> None:
    """Says where displacements go through torch's SGD at a rate that was not chosen, which is far below 1.

    Args:
        optimizer: Applies the displacements.
    """
    default = inspect.signature(SGD).parameters["lr"].default
    if type(optimizer) is SGD and any(group["lr"] == default for group in optimizer.param_groups):
        _log.warning(
            f"optimizer=SGD: lr={default} is torch's default, and takes that part of each displacement; "
            "lr=1 takes a layer to its solution."
        )


def schedule_from(make: Callable[..., Any], optimizer: Optimizer) -> Any:
    """Makes a schedule.

    Args:
        make: What the user chose.
        optimizer: The optimizer whose rate it changes.

    Raises:
        UserError: For what is none, and one that needs a metric.
    """
    schedule = make_from("lr_scheduler", make, optimizer)
    if isinstance(schedule, ReduceLROnPlateau):
        raise UserError("lr_scheduler=ReduceLROnPlateau needs a metric; take a schedule that counts steps.")
    if not isinstance(schedule, LRScheduler):
        raise UserError(f"lr_scheduler: makes a {type(schedule).__name__}, not a schedule of torch; return one.")
    counts = {name: value for name in ("step_size", "T_max") if (value := getattr(schedule, name, None)) is not None}
    check_counts(type(schedule).__name__, 1, **counts)
    return schedule


def make_from(setting: str, factory: Callable[..., Any], argument: Any) -> Any:
    """Calls a factory that the user chose; what it refuses is the user's to mend.

    Args:
        setting: Name of the setting.
        factory: The factory.
        argument: What it makes something from.

    Raises:
        UserError: What the factory says against it.
    """
    check_maker(setting, factory)
    try:
        return factory(argument)
    except UserError:
        raise
    except NotImplementedError as error:
        lacks = str(error) or "a method that its base class leaves open, such as get_lr"
        raise UserError(f"{setting}: its class lacks {lacks}; add it.") from error
    except (TypeError, ValueError) as error:
        if lacking := re.match(r"(\w+)\.__init__\(\) missing .* argument.*?: '(\w+)'", str(error)):
            way = f"give a function that has it, such as partial({lacking[1]}, {lacking[2]}=...)"
            raise UserError(f"{setting}: {error}; {way}.") from error
        hint = "; SplitOptimizer gives matrices one rule and the rest another" if "2D" in str(error) else ""
        raise UserError(f"{setting}: {error}{hint}.") from error
