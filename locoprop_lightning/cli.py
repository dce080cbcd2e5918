"""The command `locoprop`: Lightning's CLI over the modules, solvers, data and networks of this package."""

import os
import re
import shlex
import sys
import threading
from argparse import ArgumentError
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
import yaml
from lightning.fabric.utilities.seed import max_seed_value
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import SIGTERMException

from locoprop_lightning import errors
from locoprop_lightning.arguments import check_typed, leaves_empty, meant, with_files, without_checkpoint
from locoprop_lightning.callbacks import (
    BestCheckpoint,
    FitProgress,
    FitSummary,
    LocalLossMonitor,
    PredictionWriter,
    RunCheckpoints,
    SettingsFile,
    StepTimer,
)
from locoprop_lightning.callbacks.hyperparameters import settings_logger
from locoprop_lightning.callbacks.notice import Notice
from locoprop_lightning.callbacks.run_checkpoints import check_kept
from locoprop_lightning.checkpoint_files import RUNS_CODE, check_epochs, checked
from locoprop_lightning.class_names import YAML, with_paths
from locoprop_lightning.command_line import check_arguments
from locoprop_lightning.distributed.loopback import meeting_place
from locoprop_lightning.errors import DISK, INTERRUPTED, TERMINATED, UserError, check_counts
from locoprop_lightning.files import expanded
from locoprop_lightning.help import long_form, main_page, page
from locoprop_lightning.idle_settings import check_checkpoints, tell_idle
from locoprop_lightning.loading import PARTS, check_made_of
from locoprop_lightning.quiet import quiet
from locoprop_lightning.refusal import missing, sentence
from locoprop_lightning.results.settings import flatten, written
from locoprop_lightning.run_folder import RunFolder
from locoprop_lightning.supervised import SupervisedModule
from locoprop_lightning.trainer_refusal import check_monitors, check_settings, refused

MANY_THREADS = 256  # that a machine may be given though it has fewer processors, for the last digits of another


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
            save_config_callback=SettingsFile,
            parser_kwargs={"exit_on_error": False, "allow_abbrev": False, "parser_mode": YAML},
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
        unwanted = (SettingsFile, Checkpoint, *without)
        cli.trainer.callbacks = [c for c in cli.trainer.callbacks if not isinstance(c, unwanted)]  # type: ignore[attr-defined]
        return cli

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses, and refuses what would be a stack of internals later: a broken file, no checkpoint, a seed below 0.

        Raises:
            UserError: Names the setting and its value.
        """
        given = expanded(sys.argv[1:] if args is None else args)
        self._arguments = given
        if hasattr(self, "_subcommand_parsers") and not given:
            print(main_page(), file=sys.stderr)
            raise UserError("no command: take one of fit, validate, test, predict, such as locoprop fit --config FILE.")
        try:
            check_typed(given)
            groups = {name for one in self._parsers for name in one.groups or ()} - {*PARTS}
            self.config = parser.parse_args(with_paths(with_files(given, groups)))
        except ArgumentError as error:
            known = {name.removeprefix("--") for one in self._parsers for name in one._option_string_actions}
            message = f"{sentence(error)}{meant(str(error), known, given)}"
            lacking = re.search(r"are required: .*; give --(\S+)$", message)
            empty = ", which is empty (null) in the file" if lacking and leaves_empty(given, lacking[1]) else ""
            raise UserError(message + empty) from error
        command = self.config.get("subcommand")
        config = self.config[command] if command else self.config
        if not isinstance(config.get("seed_everything"), bool | None):
            check_counts("", 0, seed_everything=config.seed_everything)
            if config.seed_everything > max_seed_value:
                raise UserError(f"seed_everything={config.seed_everything}: must be at most {max_seed_value}.")
        if config.get("threads") is not None:
            check_counts("", 1, threads=config.threads)
            if config.threads > (most := max(MANY_THREADS, os.cpu_count() or 1)):
                raise UserError(
                    f"threads={config.threads}: must be at most {most}, or the threads wait for each other."
                )
            torch.set_num_threads(config.threads)
        if config.get("weights_only") is False:
            raise UserError(RUNS_CODE)
        path = config.get("ckpt_path")
        if path == "hpc" or (path == "best" and command == "fit"):
            why = "holds weights alone" if path == "best" else "is known to the process of a fit alone"
            raise UserError(f"ckpt_path={path}: {why}; name a file, or take last.")
        if path == "":
            raise UserError("ckpt_path='': names no file; give one, take last, or leave it out.")
        if path not in (None, "best", "last"):
            checked(Path(path), resume=command == "fit")
        if command in ("validate", "test", "predict") and path is None:
            print(
                f"locoprop {command}: no --ckpt_path, so the network has its initial weights; --ckpt_path best takes "
                "those of the newest run.",
                file=sys.stderr,
            )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Makes the trainer; without checkpoints where the settings say so."""
        trainer = self._get(self.config_init, "trainer", default={})
        if self.subcommand == "fit":
            check_checkpoints(self._arguments, trainer)
        if trainer.get("enable_checkpointing") is False or trainer.get("barebones") or trainer.get("fast_dev_run"):
            for name in ("best", "checkpoints"):
                self._parser(self.subcommand).callback_keys.remove(name)
        given = trainer.get("callbacks") or ()
        others = any(isinstance(one, ProgressBar) for one in (given if isinstance(given, list | tuple) else [given]))
        if trainer.get("enable_progress_bar") is False or trainer.get("barebones") or others:
            self._parser(self.subcommand).callback_keys.remove("progress")
        try:
            made = super().instantiate_trainer(**({} if "plugins" in kwargs else meeting_place(trainer)) | kwargs)
        except Exception as error:
            if (message := refused(error, trainer)) is not None:
                raise UserError(message) from error
            raise
        check_settings(made, trainer, self.subcommand)
        self._get(self.config_init, "local_losses").told = True  # every run has it, with a logger or without
        return made

    def _run_subcommand(self, subcommand: str) -> None:
        """Runs the command; of a run that ends in an error before its first step nothing stays."""
        self._folder = RunFolder(self.trainer)
        try:
            super()._run_subcommand(subcommand)
        except SIGTERMException:
            raise
        except SystemExit:
            if self.trainer.interrupted:  # by Ctrl-C, where Lightning ends the process with status 1
                raise SystemExit(INTERRUPTED) from None
            raise
        except Exception as error:
            if self.trainer.global_step == 0:
                self._folder.give_up()
            if isinstance(error, OSError) and error.filename is None and error.errno in DISK:  # of a logger's writer
                error.filename = self.trainer.log_dir
            if (message := refused(error, self._get(self.config_init, "trainer", default={}))) is not None:
                raise UserError(message) from error
            raise
        finally:
            self._folder.release()

    @property
    def _parsers(self) -> Collection[LightningArgumentParser]:
        """The parsers of all commands."""
        found: Mapping[str, LightningArgumentParser] = getattr(self, "_subcommand_parsers", {"": self.parser})
        return found.values()

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """The arguments of the trainer's method, with the checkpoint that ``last`` stands for."""
        arguments: dict[str, Any] = super()._prepare_subcommand_kwargs(subcommand)
        arguments["weights_only"] = True
        path = arguments["ckpt_path"]
        if path == "best":
            arguments["ckpt_path"] = checked(self._folder.best(), resume=False)
            if self.trainer.is_global_zero:
                print(f"locoprop {subcommand}: takes {arguments['ckpt_path']}.", file=sys.stderr)
        if path == "last":
            path, passed = self._folder.last()
            for reason in passed:
                print(f"locoprop {subcommand}: {reason}; goes on from {path}.", file=sys.stderr)
            arguments["ckpt_path"] = path
        if path is not None:  # so that the run's own file names what it went on from
            self.config[subcommand].ckpt_path = str(arguments["ckpt_path"])
        if subcommand == "fit" and path is not None:
            check_epochs(Path(path), self.trainer.max_epochs)
        if subcommand in ("validate", "test") and path is not None:  # whose results go by the method's name
            check_made_of(Path(arguments["ckpt_path"]), self.model)
        if subcommand != "fit" and self.trainer.is_global_zero:
            self._folder.open()
        real = subcommand == "fit" and not self.trainer.fast_dev_run  # type: ignore[attr-defined]
        if real and self.trainer.is_global_zero:
            if (notice := self._folder.claim(path and Path(path))) is not None:
                self.trainer.callbacks.insert(0, Notice(f"locoprop fit: {notice}."))  # type: ignore[attr-defined]
        return arguments

    def before_fit(self) -> None:
        """Logs the settings that make the method, and tells how a run is taken up again."""
        check_monitors(self.trainer, self.model)
        tell_idle(self._arguments, self.trainer, self.model)
        settings = self.settings()
        self.trainer.callbacks.append(settings_logger(settings))  # type: ignore[attr-defined]
        for callback in self.trainer.checkpoint_callbacks:
            if isinstance(callback, RunCheckpoints):
                callback.describe(shlex.join(["locoprop", *without_checkpoint(self._arguments)]), settings)

    def after_fit(self) -> None:
        """Ends with what is wrong where the weights were not kept."""
        check_kept(self.trainer)

    def instantiate_classes(self) -> None:
        """Makes model, data and trainer; the model knows what it was made of, and checkpoints say it."""
        try:
            super().instantiate_classes()
        except Exception as error:
            if (message := missing(error, self.settings())) is not None:
                raise UserError(message) from error
            raise
        if isinstance(self.model, SupervisedModule):
            self.model.made_of(yaml.safe_dump({part: self._written_out[part] for part in PARTS}, sort_keys=False))

    def settings(self) -> dict[str, Any]:
        """The settings by dotted name, a class under the name of its setting."""
        return flatten(self._written_out)

    @cached_property
    def _written_out(self) -> dict[str, Any]:
        """The settings as a file has them; what is made of them does not change them."""
        command = self.config.get("subcommand")
        parser = self._parser(command) if command else self.parser
        found: dict[str, Any] = yaml.safe_load(parser.dump(self.config[command] if command else self.config))
        return found

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the settings of our callbacks, and that of the threads."""
        help_ = "CPU threads of torch, which the last digits depend on. Torch chooses if this is not given."
        parser.add_argument("--threads", type=int | None, default=None, help=help_)
        parser.add_lightning_class_args(FitProgress, "progress")  # first, so that its row ends before others tell
        parser.add_lightning_class_args(LocalLossMonitor, "local_losses")
        parser.add_lightning_class_args(StepTimer, "step_timer")
        parser.add_lightning_class_args(FitSummary, "summary")
        parser.add_lightning_class_args(PredictionWriter, "predictions")
        parser.add_lightning_class_args(BestCheckpoint, "best")  # before the others, which remember what it knows
        parser.add_lightning_class_args(RunCheckpoints, "checkpoints")


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command; a mistake that the user can mend ends it with one sentence and status 2.

    Args:
        args: Arguments of the command; those of the process if not given.
    """
    check_arguments(args)
    given = sys.argv[1:] if args is None else list(args)
    told = threading.excepthook
    # What the system refuses a logger's thread is told by who waits for it.
    threading.excepthook = lambda of: None if isinstance(of.exc_value, OSError) else told(of)
    try:
        with one_sentence("locoprop", given), quiet():
            if (shown := page(given)) is not None:
                print(shown, end="")
                return
            LocoPropCLI(long_form(given))
    except SIGTERMException:
        raise SystemExit(TERMINATED) from None
    finally:
        threading.excepthook = told


def one_sentence(program: str, arguments: Sequence[str]) -> AbstractContextManager[None]:
    """Ends the process with one sentence and status 2 where the user made a mistake, the parser's refusals included.

    Args:
        program: Name that the sentence begins with.
        arguments: Arguments of the command.
    """
    return errors.one_sentence(program, arguments, sentence)


if __name__ == "__main__":
    main()
