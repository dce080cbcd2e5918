"""Optimizers whose state holds objects of their own, as Shampoo's, in checkpoints that hold none."""

import sys
from enum import IntEnum
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from locoprop_lightning.errors import UserError
from locoprop_lightning.optimizers.joined import leaves

_CLASS, _ATTRIBUTES = "object of class", "with attributes"  # the keys of an object as it is saved


def save_objects_plainly(optimizer: Optimizer) -> None:
    """Has ``state_dict`` hold attributes in the place of objects, and ``load_state_dict`` make objects of them again.

    Files with objects are not read back, since that would run the code they name. These are the optimizer's own: of
    a class in its package, which is given attributes and is not called. Others stay as they are.

    Args:
        optimizer: The optimizer. Those of torch and of this package keep no objects.
    """
    packages = {type(leaf).__module__.partition(".")[0] for leaf in leaves(optimizer)}
    if own := packages - {"torch", __name__.partition(".")[0]}:
        optimizer.register_state_dict_post_hook(lambda o, state: _saved(state, own))
        optimizer.register_load_state_dict_pre_hook(lambda o, state: _load(o, state, own))


def _saved(state: dict[str, Any], own: set[str]) -> dict[str, Any]:
    return state | {"state": _plain(state["state"], own)}


def _load(optimizer: Optimizer, state: dict[str, Any], own: set[str]) -> None:
    """Puts objects into a state where it lies: classes of pytorch-optimizer read what they are given twice."""
    numbers = chain.from_iterable(group["params"] for group in state["param_groups"])
    parameters = chain.from_iterable(group["params"] for group in optimizer.param_groups)
    devices = {number: p.device for number, p in zip(numbers, parameters, strict=False)}
    for number, values in state["state"].items():
        state["state"][number] = _restored(values, own, devices.get(number))


def _plain(value: Any, own: set[str]) -> Any:
    """A value with the attributes of objects in their places."""
    if isinstance(value, IntEnum):
        return int(value)
    if type(value) is dict:
        return {key: _plain(entry, own) for key, entry in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_plain(entry, own) for entry in value)
    kind = type(value)
    if kind.__module__.partition(".")[0] in own and hasattr(value, "__dict__") and not isinstance(value, Tensor):
        return {_CLASS: f"{kind.__module__}:{kind.__qualname__}", _ATTRIBUTES: _plain(vars(value), own)}
    return value


def _restored(value: Any, own: set[str], device: torch.device | None, inside: bool = False) -> Any:
    """A value with its objects.

    Args:
        value: The value.
        own: Packages of the optimizer.
        device: Of the parameter, to which torch moves what is not in objects.
        inside: Whether it is an object's.

    Raises:
        UserError: For an object that is not the optimizer's.
    """
    if isinstance(value, Tensor):
        return value.to(device) if inside and device is not None else value
    if type(value) in (list, tuple):
        return type(value)(_restored(entry, own, device, inside) for entry in value)
    if type(value) is not dict:
        return value
    if value.keys() != {_CLASS, _ATTRIBUTES}:
        return {key: _restored(entry, own, device, inside) for key, entry in value.items()}
    module, _, name = str(value[_CLASS]).partition(":")
    kind = getattr(sys.modules.get(module), name, None)
    if module.partition(".")[0] not in own or not isinstance(kind, type) or kind.__module__ != module:
        raise UserError(
            f"ckpt_path: the optimizer's state holds an object of {value[_CLASS]}, which is no class of "
            f"{' or '.join(sorted(own))} here; resume with the optimizer, and the version of it, that made it."
        )
    made: Any = object.__new__(kind)
    vars(made).update(_restored(value[_ATTRIBUTES], own, device, inside=True))
    return made
