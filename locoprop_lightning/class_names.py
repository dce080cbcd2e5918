"""The classes that settings go by: this package's by their names alone, whatever others have them."""

import inspect
import re
from collections.abc import Sequence
from typing import Any

import yaml
from jsonargparse import get_loader, set_loader
from lightning.pytorch import Callback, LightningDataModule, loggers
from lightning.pytorch import callbacks as lightning_callbacks
from torch import nn, optim

# Imported so that their short names work on the command line.
from locoprop_lightning import callbacks, data, module, networks, optimizers, oracles, solvers, supervised, tasks
from locoprop_lightning.supervised import SupervisedModule

CLASSES = {
    "logger": ((loggers,), loggers.Logger),
    "callbacks": ((lightning_callbacks, callbacks), Callback),
    "model": ((module, supervised), SupervisedModule),
    "solver": ((solvers,), solvers.LocalSolver),
    "oracle": ((oracles,), oracles.Oracle),
    "network": ((networks,), nn.Module),
    "task": ((tasks,), tasks.Task),
    "data": ((data,), LightningDataModule),
    "optimizer": ((optimizers, optim), optim.Optimizer),
    "rest_optimizer": ((optimizers, optim), optim.Optimizer),
    "lr_scheduler": ((optimizers, optim.lr_scheduler), optim.lr_scheduler.LRScheduler),
}


def classes_of(key: str, ours: bool = False) -> dict[str, type]:
    """The classes for a setting that are known by their names, in their order.

    Args:
        key: Last part of the setting's name.
        ours: Whether those of torch are left out.
    """
    packages, kind = CLASSES.get(key, ((), object))
    members = [member for package in packages for member in vars(package).values() if isinstance(member, type)]
    made = {m.__name__: m for m in members if issubclass(m, kind) and m is not kind and not inspect.isabstract(m)}
    own = __package__.partition(".")[0]
    return {name: made[name] for name in sorted(made) if not ours or made[name].__module__.startswith(own)}


def _path(key: str, name: Any) -> Any:
    """A class of this package by its path, where a setting has its name; anything else as it is."""
    made = classes_of(key.rpartition(".")[2], ours=True).get(name) if isinstance(name, str) else None
    return name if made is None else f"{made.__module__}.{made.__name__}"


def with_paths(arguments: Sequence[str]) -> list[str]:
    """The arguments, a class of this package by its path, whatever others have its name.

    Args:
        arguments: Arguments of the command.
    """
    written: list[str] = []
    before = ""
    for argument in arguments:
        flag, equals, value = argument.partition("=") if not before else (before, "", argument)
        key = flag.removeprefix("--")
        path = _SPELT.sub(lambda found, key=key: found[1] + _path(key, found[2]), value)  # type: ignore[misc]
        written.append(f"{flag}={path}" if equals else path if before else argument)
        before = argument if not before and not equals and argument.startswith("--") else ""
    return written


_SPELT = re.compile(r"""^(\{\s*["']?class_path["']?\s*:\s*["']?|)(\w+)(?=["'\s,}]|$)""")  # alone, or with its settings


def _with_paths(part: Any, key: str = "") -> Any:
    """What a file holds, likewise."""
    if isinstance(part, dict):
        return {name: _with_paths(one, key if name == "class_path" else str(name)) for name, one in part.items()}
    return [_with_paths(one, key) for one in part] if isinstance(part, list) else _path(key, part)


YAML = "yaml_of_this_package"  # a mode of the parser
set_loader(YAML, lambda text: _with_paths(get_loader("yaml")(text)), (yaml.YAMLError,))
