"""The command `locoprop`: Lightning's CLI over the modules, solvers, data and networks of this package."""

import sys
from collections.abc import Sequence

from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException

# Imported so that their short names work on the command line.
from locoprop_lightning import data, networks, optimizers, oracles, solvers, tasks  # noqa: F401
from locoprop_lightning.callbacks import FitSummary, LocalLossMonitor, PredictionWriter
from locoprop_lightning.errors import UserError
from locoprop_lightning.module import SupervisedModule


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
            args=None if args is None else list(args),
            run=run,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the settings of our callbacks."""
        parser.add_lightning_class_args(LocalLossMonitor, "local_losses")
        parser.add_lightning_class_args(FitSummary, "summary")
        parser.add_lightning_class_args(PredictionWriter, "predictions")


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command; a mistake that the user can mend ends it with one sentence and status 2.

    Args:
        args: Arguments of the command; those of the process if not given.
    """
    try:
        LocoPropCLI(args)
    except Exception as error:
        known = isinstance(error, MisconfigurationException | FileNotFoundError)
        cause = error if known else _user_error(error)
        if cause is None:
            raise
        print(f"locoprop: error: {cause}", file=sys.stderr)
        raise SystemExit(2) from None


def _user_error(error: BaseException | None) -> UserError | None:
    """The UserError behind an exception, if there is one: the parser wraps what a class's constructor raises."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__ or error.__context__
    return error
