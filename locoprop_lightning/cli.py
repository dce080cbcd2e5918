"""The command `locoprop`: Lightning's CLI over the modules, solvers, data and networks of this package."""

import inspect
import re
import sys
from argparse import ArgumentError
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self
from zipfile import is_zipfile

import torch
import yaml
from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn, optim

# Imported so that their short names work on the command line.
from locoprop_lightning import data, errors, module, networks, optimizers, oracles, solvers, supervised, tasks
from locoprop_lightning.callbacks import (
    FitSummary,
    HyperparameterLogger,
    LocalLossMonitor,
    PredictionWriter,
    StepTimer,
)
from locoprop_lightning.errors import UserError, check_counts
from locoprop_lightning.results.settings import NEUTRAL, flatten, written
from locoprop_lightning.supervised import SupervisedModule


class LocoPropCLI(LightningCLI):
    """`LightningCLI` with the callbacks that every run has."""

    def __init__(self, args: Sequence[str] | None = None, run: bool = True) -> None:
        super().__init__(
            SupervisedModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={"exit_on_error": False},
            args=None if args is None else list(args),
            run=run,
        )

    @classmethod
    def build(
        cls, config: str | Path, settings: Mapping[str, Any], seed: int = 0, without: tuple[type[Callback], ...] = ()
    ) -> Self:
        """What `locoprop fit --config CONFIG` would train, for the caller to fit: trainer, model and datamodule.

        It writes no checkpoints and no copy of the configuration, which without a logger would lie in the working
        directory, and has no progress bar.

        Args:
            config: Path of the YAML.
            settings: What is changed in the YAML, by name.
            seed: Seed.
            without: Further callbacks that are left out.
        """
        changed = [f"--{name}={written(value)}" for name, value in settings.items()]
        arguments = [f"--config={config}", f"--seed_everything={seed}", *changed, "--trainer.enable_progress_bar=false"]
        cli = cls(arguments, run=False)
        unwanted = (SaveConfigCallback, Checkpoint, *without)
        cli.trainer.callbacks = [c for c in cli.trainer.callbacks if not isinstance(c, unwanted)]  # type: ignore[attr-defined]
        return cli

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses, and refuses what would be a stack of internals later: a broken file, no checkpoint, a seed below 0.

        Raises:
            UserError: Names the setting and its value.
        """
        try:
            super().parse_arguments(parser, args)
        except ArgumentError:
            _check_files(sys.argv[1:] if args is None else args)
            raise
        command = self.config.get("subcommand")
        config = self.config[command] if command else self.config
        if not isinstance(config.get("seed_everything"), bool | None):
            check_counts("", 0, seed_everything=config.seed_everything)
        if config.get("threads") is not None:
            check_counts("", 1, threads=config.threads)
            torch.set_num_threads(config.threads)
        path = config.get("ckpt_path")
        if path and (Path(path).is_dir() or (Path(path).is_file() and not is_zipfile(path))):
            raise UserError(f"ckpt_path={path}: is not a checkpoint that torch has saved.")
        if command in ("validate", "test", "predict") and path is None:
            print(f"locoprop {command}: no --ckpt_path, so the network has its initial weights.", file=sys.stderr)

    def before_fit(self) -> None:
        """Logs the settings that make the method."""
        self.trainer.callbacks.append(settings_logger(self.settings()))  # type: ignore[attr-defined]

    def settings(self) -> dict[str, Any]:
        """The settings by dotted name, a class under the name of its setting."""
        command = self.config.get("subcommand")
        parser = self._parser(command) if command else self.parser
        return flatten(yaml.safe_load(parser.dump(self.config[command] if command else self.config)))

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the settings of our callbacks, and that of the threads."""
        help_ = "CPU threads of torch, which the last digits depend on; its own choice if not given"
        parser.add_argument("--threads", type=int | None, default=None, help=help_)
        parser.add_lightning_class_args(LocalLossMonitor, "local_losses")
        parser.add_lightning_class_args(StepTimer, "step_timer")
        parser.add_lightning_class_args(FitSummary, "summary")
        parser.add_lightning_class_args(PredictionWriter, "predictions")


def settings_logger(settings: Mapping[str, Any]) -> HyperparameterLogger:
    """The callback that logs the settings that make a run's method.

    Args:
        settings: What ``LocoPropCLI.settings`` returns.
    """
    kept = {
        name: value.rpartition(".")[2] if _is_path(value) else value
        for name, value in settings.items()
        if name == "seed_everything" or not NEUTRAL.match(name)
    }
    return HyperparameterLogger(kept)


def _is_path(value: Any) -> bool:
    """Whether a setting is the path of a class."""
    parts = value.split(".") if isinstance(value, str) else []
    return len(parts) > 1 and all(part.isidentifier() for part in parts) and parts[-1][0].isupper()


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command; a mistake that the user can mend ends it with one sentence and status 2.

    Args:
        args: Arguments of the command; those of the process if not given.
    """
    with one_sentence("locoprop"):
        LocoPropCLI(args)


def one_sentence(program: str) -> AbstractContextManager[None]:
    """Ends the process with one sentence and status 2 where the user made a mistake, the parser's refusals included.

    Args:
        program: Name that the sentence begins with.
    """
    return errors.one_sentence(program, sentence)


def sentence(error: Exception) -> str | None:
    """What to tell the user, or None where it is not the user's mistake.

    Args:
        error: The error, as it came out of the parser, Lightning or this package.
    """
    chain = list(_chain(error))
    for cause in chain:
        if isinstance(cause, UserError) or "instantiate abstract class" in str(cause):
            return str(cause)
    if isinstance(error, ArgumentError):
        return _refusal(chain)
    return str(error) if isinstance(error, MisconfigurationException | FileNotFoundError) else None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and what led to it: the parser wraps what it cannot use, level by level."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _check_files(args: Sequence[str]) -> None:
    """Refuses a file of settings that is none; the parser would not name it.

    Raises:
        UserError: Names the file.
    """
    for flag, path in zip(args, [*args[1:], ""], strict=True):
        name, _, value = flag.partition("=")
        file = Path(value or path)
        if name not in ("--config", "-c") or not file.is_file():
            continue
        try:
            settings = yaml.safe_load(file.read_text())
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"config={file}: is no YAML: {' '.join(str(error).split())}") from error
        if not isinstance(settings, dict):
            raise UserError(f"config={file}: holds no settings; see configs/ for files that do.")


_TYPE = re.compile(r"Expected an? (?:typing.Literal\[(.*?)\](?=\s|\.)|<class '(.*?)'>)")


def _refusal(chain: Sequence[BaseException]) -> str:
    """The parser's refusal of a setting: its name, the innermost reason, and what could stand there."""
    keys: list[str] = []
    owner = ""
    for text in (str(cause).strip() for cause in chain):
        key = re.match(r'Parser key "([^"]+)"', text)
        if key and keys[-1:] != [key[1]]:
            keys.append(key[1])
        found = re.match(r"(?:Problem with given |Type typing.*Namespace\()class_path[ =]'([^']+)'", text)
        owner = found[1] if found else owner
    if not keys:
        return " ".join(str(chain[0]).split())
    reason = re.sub(r'^Parser key "[^"]+":\s*', "", str(chain[-1]).strip())
    setting = ".".join(keys)
    if name := re.fullmatch(r"Expected a dot import path string: (.*)", reason):
        reason = f"there is no class {name[1]}; {_known(keys[-1])}"
    elif name := re.fullmatch(r"Expected an instantiatable class, but (?:.*\.)?(\w+) is abstract", reason):
        reason = f"{name[1]} is abstract; {_known(keys[-1])}"
    elif re.match(r"No module named|module '.*' has no attribute", reason):
        where = " (PYTHONPATH=. finds modules in this folder)" if reason.startswith("No module") else ""
        reason = f"{reason}{where}; {_known(keys[-1])}"
    elif re.match(r"Import path .* does not correspond to a subclass of", reason):
        reason = f"{reason}; {_known(keys[-1])}"
    elif name := re.fullmatch(r"Option '(.*)' is not accepted", reason):
        reason = f"{owner.rpartition('.')[2]} has no setting {name[1]!r}{_settings(owner)}"
        if owner.endswith("LocoPropModule") and name[1] in _GONE:
            reason = f"{owner.rpartition('.')[2]} has no setting {name[1]!r} any more: {_GONE[name[1]]}"
        if owner == "typing.Union":
            reason = f"its class is not chosen yet; put --{setting} CLASS before --{setting}.{name[1]}"
    elif value := re.search(r"\. Got value: (.*)", reason, re.S):
        # Where a setting may have several types, the last report is of the first one alone; the last but one names all.
        types = _TYPE.findall(f"{chain[-2]} {reason}")
        kinds = dict.fromkeys(f"one of {choices}" if choices else kind for choices, kind in types)
        allowed = " or ".join(kind for kind in kinds if kind != "NoneType")
        if allowed == "float" and value[1] in ("nan", "inf", "-inf"):
            allowed = "a finite number"
        forms = [_FORMS[part] for part in setting.split(".") if part in _FORMS]
        reason = f"must be {forms[0] if forms else allowed}, not {value[1]}"
    return f"{setting}: {reason}"


_GONE = {"reduction": "leave it out, or delete its line in the file; what it named is always done"}

_FORMS = {
    "overrides": 'lambdas and unit_groups by pattern of layers, such as \'{"1": {"lambda_r": 3}}\'',
    "skip": "a list of patterns of layers, such as '[\"1\"]'",
    "include": "a list of patterns of layers, such as '[\"tokens\"]'",
    "transfers": 'names of functions by layer, such as \'{"1": "tanh"}\'',
}

_CLASSES = {
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


def _known(key: str) -> str:
    """The classes for a setting that are known by their names."""
    packages, kind = _CLASSES.get(key, ((), object))
    members = [member for package in packages for member in vars(package).values() if isinstance(member, type)]
    names = sorted({m.__name__ for m in members if issubclass(m, kind) and m is not kind and not inspect.isabstract(m)})
    choice = f"{', '.join(names)}, or " if names else ""
    return f"take {choice}a class by its path, such as your_package.YourClass"


def _settings(path: str) -> str:
    """What a class takes."""
    module, _, name = path.rpartition(".")
    owner = getattr(sys.modules.get(module), name, None)
    if not isinstance(owner, type):
        return ""
    names = [p.name for p in inspect.signature(owner).parameters.values() if p.kind is not p.VAR_KEYWORD]
    return f"; it has {', '.join(names) or 'none'}"


if __name__ == "__main__":
    main()
