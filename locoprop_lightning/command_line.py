"""A command line: its words, its parser, and Ctrl-C before the command has begun."""

import argparse
import re
import shlex
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import locoprop_lightning
from locoprop_lightning.errors import INTERRUPTED, UserError, near_names, shown


@contextmanager
def stopped_by_ctrl_c(program: str) -> Iterator[None]:
    """Ends the process with one sentence where Ctrl-C comes while packages are imported, or settings read.

    What trains, or runs trials, ends itself.

    Args:
        program: Name that the sentence begins with.
    """
    try:
        yield
    except KeyboardInterrupt:
        print(f"{program}: stopped by Ctrl-C.", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None


def check_arguments(arguments: Sequence[str] | None) -> None:
    """Refuses a command line as one text, whose letters would be taken for arguments."""
    if isinstance(arguments, str):
        raise UserError(f"main({shown(arguments)}): takes a list of arguments, {shlex.split(arguments)}.")


def check_words(arguments: Sequence[str]) -> None:
    """Refuses an option with its value in one word, as a shell makes it of quotes.

    Raises:
        UserError: Names the word, and what to write.
    """
    for before, one in zip(["", *arguments], arguments, strict=False):
        if before.startswith("--") and "=" not in before:  # its value, which may begin with a hyphen
            continue
        if found := re.fullmatch(r"(--?\w[\w.+-]*)\s+(\S+)(\s.*)?", one, re.S):
            option, value, more = found.groups()
            way = "give each as its own" if more else f"give option and value as two, or as {option}={value}"
            raise UserError(f"{shown(one)} is one word; {way}.")


class Parser(argparse.ArgumentParser):
    """A parser of a command's options that refuses in one sentence, without the page of its usage.

    Args:
        instead: Where that is which an unknown option, unlike all known ones, may have been meant for.
        elsewhere: Options of a like command, of which that is told too.
        settings: Those of argparse's parser.
    """

    def __init__(self, instead: str = "", elsewhere: Collection[str] = (), **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)
        self.instead, self.elsewhere = instead, elsewhere
        self._given: list[str] = []
        version = f"locoprop-lightning {locoprop_lightning.__version__}"
        self.add_argument("--version", action="version", version=version, help="show the version")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parses, and knows in a refusal what was typed."""
        self._given = [] if args is None else list(args)
        check_words(self._given)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Refuses what was typed.

        Raises:
            UserError: Names the option, its value and the way out.
        """
        kinds = {"int": "a whole number", "float": "a number"}
        if found := re.fullmatch(r"argument (\S+): invalid (int|float) value: '(.*)'", message):
            raise UserError(f"{found[1]} {found[3]}: must be {kinds[found[2]]}.")
        lacking = re.fullmatch("the following arguments are required: ([A-Z]+)", message)
        if lacking and (taken := self._taken()):
            option, values = next(iter(taken.items()))
            typed = shlex.join([values[-1], option, *values[:-1]])
            way = f"put {lacking[1]} first, such as {self.prog} {typed}"
            raise UserError(f"{option} took {values[-1]} as one of its own; {way}.")
        name = re.match(r"unrecognized arguments: ([^\s=]+)", message)
        known = () if name and name[1] in self.elsewhere else self._option_string_actions
        near = near_names(name[1], known) or self.instead if name else ""
        raise UserError(f"{message}{near}; {self.prog} --help lists all.")

    def _taken(self) -> dict[str, list[str]]:
        """What options that take several values have taken, by option."""
        found: dict[str, list[str]] = {}
        taking: list[str] = []
        for one in self._given:
            if one.startswith("-"):
                action = self._option_string_actions.get(one)
                taking = found.setdefault(one, []) if action is not None and action.nargs == "+" else []
            else:
                taking.append(one)
        return {option: values for option, values in found.items() if len(values) > 1}
