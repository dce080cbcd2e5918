"""The commands as they start: `locoprop`, also as `python -m locoprop_lightning`, and the scripts of the others."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from locoprop_lightning.command_line import stopped_by_ctrl_c
from locoprop_lightning.shipped import answer


@contextmanager
def started(program: str) -> Iterator[None]:
    """What all commands begin with: modules of the working directory are found, behind all others.

    Args:
        program: The command.
    """
    if "" not in sys.path:
        sys.path.append("")
    with stopped_by_ctrl_c(program):
        yield


def main() -> None:
    """Runs the command; what needs neither torch nor Lightning is answered without them."""
    with started("locoprop"):
        try:
            answered = answer(sys.argv[1:])
            sys.stdout.flush()
        except BrokenPipeError:  # who reads has seen enough, as `head` has
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return
        if not answered:
            from locoprop_lightning import cli

            cli.main()


def tune() -> int:
    """Runs `locoprop-tune`."""
    with started("locoprop-tune"):
        from locoprop_lightning.tune.__main__ import main

        return main()


def compare() -> None:
    """Runs `locoprop-compare`."""
    with started("locoprop-compare"):
        from locoprop_lightning.results.compare import main

        main()


if __name__ == "__main__":
    main()
