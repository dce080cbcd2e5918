"""The command `locoprop`, also as `python -m locoprop_lightning`."""

import sys

from locoprop_lightning.shipped import answer


def main() -> None:
    """Runs the command; what needs neither torch nor Lightning is answered without them."""
    if not answer(sys.argv[1:]):
        from locoprop_lightning import cli

        cli.main()


if __name__ == "__main__":
    main()
