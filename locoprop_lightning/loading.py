"""From a run, or one of its checkpoints, to the trained network, without naming again what it is made of."""

import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from textwrap import shorten
from typing import Any, Self, TypeVar

import torch
import yaml
from jsonargparse import ArgumentError, ArgumentParser
from lightning.pytorch import LightningDataModule, LightningModule
from torch import nn

from locoprop_lightning.checkpoint_files import BEST, RUNS_CODE, checked, resumable
from locoprop_lightning.checkpoints import CONFIGURATION
from locoprop_lightning.copies import Copied
from locoprop_lightning.errors import UserError, check_path, listed
from locoprop_lightning.files import SETTINGS_FILE, load_yaml

T = TypeVar("T")
_MAKE_A_METHOD = ("optimizer", "solver", "oracle")  # of a model
PARTS = ("model", "data")  # of a configuration, which say what is trained on what


def configuration_of(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint says its module and data were made of, empty where it says nothing.

    Args:
        checkpoint: The checkpoint.
    """
    return dict(yaml.safe_load(checkpoint.get(CONFIGURATION) or "{}"))


def made(configuration: Mapping[str, Any], part: str, base: type[T], name: str) -> T:
    """A part of a configuration as an object; the global random state is left as it was.

    Args:
        configuration: ``model`` and ``data``, each a class by its path with its arguments.
        part: Which of them.
        base: Class of the object.
        name: What a refusal begins with.

    Raises:
        UserError: Where a class cannot be found or an argument does not fit.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(base, part)
    try:
        with torch.random.fork_rng(devices=[]):
            found: T = parser.instantiate(parser.parse_object({part: configuration[part]}))[part]
    except ArgumentError as error:
        raise UserError(f"{name}: its {part} cannot be made again: {_why(error, configuration[part])}.") from error
    return found


def _why(error: Exception, part: Any) -> str:
    """Why a part of a configuration cannot be made, and what to do where a class is not found."""
    text = " ".join(str(error).split())
    gone = re.search(r"No module named '([^']+)'|module '[^']+' has no attribute '[^']+'", text)
    if gone is None:
        return shorten(text, 300, placeholder=" ...")
    owner = next((path for path in _texts(part) if gone[1] and f"{path}.".startswith(f"{gone[1]}.")), None)
    if owner is not None:
        return f"{gone[0]}, which {owner} is in; put its folder on the path (PYTHONPATH)"
    return f"{gone[0]}; {'install it' if gone[1] else 'put back the file that has it'}"


def _texts(part: Any) -> Iterator[str]:
    """The texts in a part of a configuration, among which are the paths of its classes."""
    if isinstance(part, str):
        yield part
    for value in part.values() if isinstance(part, Mapping) else part if isinstance(part, list) else ():
        yield from _texts(value)


class Run:
    """A run of ``locoprop fit``, or of a sweep, as it was stored.

    Args:
        checkpoint: File of the weights.
        module: The module with these weights, in evaluation mode.
        configuration: What module and data were made of.
        step: Step at which the weights were written.

    Attributes:
        checkpoint: As given.
        module: As given.
        configuration: As given.
        step: As given.
    """

    def __init__(self, checkpoint: Path, module: LightningModule, configuration: Mapping[str, Any], step: int) -> None:
        self.checkpoint = checkpoint
        self.module = module
        self.configuration = configuration
        self.step = step

    @property
    def network(self) -> nn.Module:
        """The trained network, in evaluation mode."""
        found: Any = self.module.network
        return found

    def data(self) -> LightningDataModule:
        """A new data module as the run had it, not set up yet.

        Raises:
            UserError: Where the run's data are not known.
        """
        if "data" not in self.configuration:
            raise UserError(f"{self.checkpoint}: the run's configuration names no data; make the data module yourself.")
        return made(self.configuration, "data", LightningDataModule, str(self.checkpoint))

    def __repr__(self) -> str:
        return f"Run({str(self.checkpoint)!r}, step {self.step}, {self.module!r})"


def load_run(folder: str | Path, checkpoint: str = "best", map_location: Any = "cpu") -> Run:
    """What a run has trained, from its folder alone.

    Args:
        folder: Folder of the run (``runs/.../version_0``), a folder with a single run in it, or a checkpoint.
        checkpoint: "best" for the weights that did best in validation, or the last ones where there are none such;
            "last" for those; or the name of a file among the run's checkpoints.
        map_location: Device of the weights, as ``torch.load`` takes it.

    Raises:
        UserError: Where there is no such run or checkpoint, or none that is whole, and where what the run's module was
            made of is not known.
    """
    check_path("load_run", folder=folder, checkpoint=checkpoint)
    folder = Path(folder)
    if not folder.exists():
        beside = sorted(path.name for path in folder.parent.glob("[!.]*/"))
        way = f"{folder.parent} has {listed(beside)}" if beside else "name one of a run, such as runs/.../version_0"
        raise UserError(f"load_run({str(folder)!r}): there is no such folder; {way}.")
    path = folder if folder.is_file() else _chosen(_single(folder), checkpoint)
    state = torch.load(checked(path, False, "load_run: folder"), map_location=map_location, weights_only=True)
    configuration = configuration_of(state) or _beside(path)
    module = module_of(state, LightningModule, configuration, str(path))
    return Run(path, module.eval(), configuration, state["global_step"])


def module_of(
    state: Mapping[str, Any], base: type[T], configuration: Mapping[str, Any] | None = None, name: str = "checkpoint"
) -> T:
    """The module of a checkpoint, with its weights and all else that it holds of it.

    Args:
        state: The checkpoint, read.
        base: Class that it must be of.
        configuration: What it was made of; what the checkpoint says if not given.
        name: What a refusal begins with.

    Raises:
        UserError: Where it is not known what the module was made of, or it is of another class.
    """
    configuration = configuration_of(state) if configuration is None else configuration
    if "model" not in configuration:
        raise UserError(
            f"{name}: does not say what its module was made of, as checkpoints of `locoprop fit` do; make the module "
            f"and call module.load_state_dict(torch.load(path, weights_only=True)['state_dict'])."
        )
    module = made(configuration, "model", LightningModule, name)
    if not isinstance(module, base):
        raise UserError(f"{name}: is of a {type(module).__name__}, not of a {base.__name__}; load it by that class.")
    if isinstance(module, Loadable):
        module.made_of(yaml.safe_dump(dict(configuration), sort_keys=False))
    module.on_load_checkpoint(dict(state))
    module.load_state_dict(state["state_dict"])
    return module


def check_made_of(checkpoint: Path, module: LightningModule) -> None:
    """Refuses a checkpoint of a method that is known to be another, whose results would go by this one's name.

    Methods are told by their classes, as far as both say them; settings of these may have changed since.

    Args:
        checkpoint: File of the checkpoint, which is whole.
        module: The module that is to have its weights.

    Raises:
        UserError: Names both methods, and the configuration to give.
    """
    if not isinstance(module, Loadable) or module.configuration is None:
        return
    state = torch.load(checkpoint, map_location="meta", weights_only=True, mmap=True)
    theirs, ours = _method(configuration_of(state)), _method(yaml.safe_load(module.configuration))
    if any(theirs[name] != ours[name] for name in theirs.keys() & ours.keys()):
        told = [", ".join(one[name] for name in one if ours.get(name) != theirs.get(name)) for one in (theirs, ours)]
        settings = checkpoint.parent.parent / SETTINGS_FILE
        way = f"--config {settings}" if settings.is_file() else "the configuration of its run"
        raise UserError(f"ckpt_path={checkpoint}: is of {told[0]}, and the configuration is of {told[1]}; give {way}.")


def _method(configuration: Mapping[str, Any]) -> dict[str, str]:
    """The classes of this package and torch that a configuration makes a method of, by their settings."""
    model = configuration.get("model") or {}
    parts = {"model": model} | {name: (model.get("init_args") or {}).get(name) for name in _MAKE_A_METHOD}
    paths = {name: part.get("class_path") for name, part in parts.items() if isinstance(part, Mapping)}
    known = (__name__.partition(".")[0], "torch")
    return {
        name: path.rpartition(".")[2]
        for name, path in paths.items()
        if isinstance(path, str) and path.partition(".")[0] in known
    }


def _single(folder: Path) -> Path:
    """The folder of the checkpoints of the single run in a folder.

    Raises:
        UserError: Where there is none, or several.
    """
    if (folder / "checkpoints").is_dir():
        return folder / "checkpoints"
    if any(folder.glob("*.ckpt")):
        return folder
    found = sorted({path.parent for path in folder.glob("**/checkpoints/*.ckpt")})
    if len(found) == 1:
        return found[0]
    told = "no checkpoint of a run; name the folder of one, such as runs/.../version_0"
    told = f"{len(found)} runs, such as {found[-1].parent}; name one" if found else told
    raise UserError(f"load_run({str(folder)!r}): the folder holds {told}.")


def _chosen(folder: Path, checkpoint: str) -> Path:
    """The file of a checkpoint by what it is called.

    Raises:
        UserError: Names what there is.
    """
    last = next(iter(resumable(folder, "*.ckpt")), None)
    if checkpoint == "best":
        path = folder / BEST if (folder / BEST).is_file() else last
    else:
        path = last if checkpoint == "last" else folder / checkpoint
    if path is None or not path.is_file():
        names = ", ".join(sorted(one.name for one in folder.glob("*.ckpt"))) or "none"
        raise UserError(f"load_run(checkpoint={checkpoint!r}): {folder} has no such file; there are {names}.")
    return path


def _beside(path: Path) -> dict[str, Any]:
    """The configuration in the folder of the run, of whose checkpoints an earlier version has written this one."""
    file = path.parent.parent / SETTINGS_FILE
    found = load_yaml(file, str(file)) if file.is_file() else {}
    return {part: found[part] for part in PARTS if part in found} if isinstance(found, dict) else {}


class Loadable(Copied):
    """A Lightning module that a checkpoint alone is enough to load.

    Attributes:
        configuration: YAML of what the module and its data were made of, which its checkpoints say; None where it is
            not known, as of one that was made in Python.
    """

    configuration: str | None = None

    def made_of(self, configuration: str) -> None:
        """Says what checkpoints shall tell of what this module and its data were made of.

        Args:
            configuration: YAML with ``model`` and ``data``, each a class by its path with its arguments.
        """
        self.configuration = configuration

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: str | Path, map_location: Any = "cpu", weights_only: bool = True, **arguments: Any
    ) -> Self:
        """The module of a checkpoint of ``locoprop fit``; that of another one where its arguments are given.

        Args:
            checkpoint_path: The file.
            map_location: Device of the weights, as ``torch.load`` takes it.
            weights_only: Must stay true: nothing in a checkpoint runs code.
            arguments: Arguments of the class; all of them where the checkpoint does not say what it was made of.

        Raises:
            UserError: For a file that is no whole checkpoint, and where arguments are missing.
        """
        if not weights_only:
            raise UserError(RUNS_CODE)
        check_path(f"{cls.__name__}.load_from_checkpoint", checkpoint_path=checkpoint_path)
        path = checked(Path(checkpoint_path), False, f"{cls.__name__}.load_from_checkpoint: checkpoint_path")
        state = torch.load(path, map_location=map_location, weights_only=True)
        if not arguments:
            return module_of(state, cls, name=str(path))
        try:
            inspect.signature(cls).bind(**arguments)
        except TypeError as error:
            raise UserError(
                f"{cls.__name__}.load_from_checkpoint: {error}; give all arguments of the class, or none where the "
                "checkpoint says what it was made of."
            ) from error
        module = cls(**arguments)
        module.on_load_checkpoint(state)
        module.load_state_dict(state["state_dict"])
        return module
