"""The command `locoprop`, also as `python -m locoprop_lightning`."""

import os
import sys

from locoprop_lightning.shipped import answer


def main() -> None:
    """Runs the command; what needs neither torch nor Lightning is answered without them."""
    try:
        answered = answer(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # who reads has seen enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    if not answered:
        from locoprop_lightning import cli

        cli.main()


if __name__ == "__main__":
    main()
