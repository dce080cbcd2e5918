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
_OWN = __package__


def classes_of(key: str, ours: bool = False) -> dict[str, type]:
    """The classes for a setting that are known by their names, in their order.

    Args:
        key: Last part of the setting's name.
        ours: Whether those of torch are left out.
    """
    packages, kind = CLASSES.get(key, ((), object))
    members = [member for package in packages for member in vars(package).values() if isinstance(member, type)]
    made = {m.__name__: m for m in members if issubclass(m, kind) and m is not kind and not inspect.isabstract(m)}
    return {name: made[name] for name in sorted(made) if not ours or made[name].__module__.startswith(_OWN)}


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


def _with_path(key: str, part: Any) -> Any:
    """A setting that a file has, likewise; below a class of one's own a text is no class."""
    if isinstance(part, list):
        return [_with_path(key, one) for one in part]
    if not isinstance(part, dict) or "class_path" not in part:
        return _path(key, part)
    made = part | {"class_path": _path(key, part["class_path"])}
    if isinstance(settings := part.get("init_args"), dict):
        ours = str(made["class_path"]).startswith(f"{_OWN}.")
        made["init_args"] = {
            name: _with_path(str(name), one) if ours or isinstance(one, dict) else one for name, one in settings.items()
        }
    return made


def _with_paths(content: Any) -> Any:
    """What a file holds, likewise."""
    if not isinstance(content, dict):
        return content
    made = {key: _with_path(str(key), part) for key, part in content.items()}
    for group in ("trainer", "model"):  # a model may have its class from the command line
        if isinstance(part := made.get(group), dict) and "class_path" not in part:
            made[group] = {key: _with_path(str(key), one) for key, one in part.items()}
    return made


YAML = "yaml_of_this_package"  # a mode of the parser
set_loader(YAML, lambda text: _with_paths(get_loader("yaml")(text)), (yaml.YAMLError,))
