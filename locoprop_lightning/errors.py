"""Errors meant for the user of the package, checks of settings that raise them, and how they end a command.

In the checks ``owner`` is the name of the class whose settings these are, empty for a setting that stands alone.
"""

import difflib
import errno
import math
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral, Real
from os import PathLike
from textwrap import shorten
from typing import Any

INTERRUPTED = 128 + signal.SIGINT  # the status of a command that Ctrl-C has ended
TERMINATED = 128 + signal.SIGTERM  # the status of a command that the signal has ended


class UserError(ValueError):
    """A mistake that the user can mend; the message names the setting, the value and the way out.

    Attributes:
        status: What a command ends with.
    """

    status = 2


class Lost(UserError):
    """What was done is lost, and no other settings bring it back; status 1 tells it from what was never begun."""

    status = 1


BATCHES = "give batches, such as DataLoader(TensorDataset(x, y), batch_size=64)"  # in a refusal of single samples


def near_names(name: str, known: Iterable[str], sure: Sequence[str] = ()) -> str:
    """What a refusal of a name ends with: up to three known ones that are like it; empty without.

    Args:
        name: The name that is refused.
        known: Names that there are.
        sure: Names that are told instead, where there are any.
    """
    near = ", ".join(sure or alike(name, known))
    return f"; near names are {near}" if near else ""


def alike(name: str, known: Iterable[str]) -> list[str]:
    """Up to three names that are like another one, the nearest first.

    Args:
        name: The name.
        known: Names that there are.
    """
    spelt = {one.lower(): one for one in known}
    return [spelt[one] for one in difflib.get_close_matches(name.lower(), [*spelt], 3)]


def listed(names: Iterable[str], most: int = 20) -> str:
    """Names with commas; of many the first ones alone, and how many more there are.

    Args:
        names: The names.
        most: How many are told.
    """
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def message_of(error: Exception) -> str | None:
    """What to tell the user of an error, None where it is not the user's mistake.

    What the system refuses about a file, a folder or a port is the user's to mend, and its path is in the error.

    Args:
        error: The error.
    """
    if isinstance(error, OSError) and error.strerror and (error.filename is not None or error.errno in DISK):
        place = "a file" if error.filename is None else error.filename
        return f"{place}: {error.strerror}; name another place, or make this one free and writable."
    return str(error) if isinstance(error, UserError) else None


DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)  # what a disk refuses writes with


@contextmanager
def one_sentence(
    program: str, arguments: Sequence[str], sentence: Callable[[Exception], str | None] = message_of
) -> Iterator[None]:
    """Ends the process with one sentence and its status, which is 2 where the user made a mistake.

    Args:
        program: Name that the sentence begins with.
        arguments: Arguments of the command, as whose options settings are named.
        sentence: What to tell of an error, None where it is not the user's mistake.
    """
    try:
        yield
    except Exception as error:
        message = sentence(error)
        if message is None:
            raise
        print(f"{program}: error: {as_typed(message, arguments)}", file=sys.stderr)
        raise SystemExit(error.status if isinstance(error, UserError) else UserError.status) from None


def as_typed(message: str, arguments: Sequence[str]) -> str:
    """A refusal with the setting that it begins with as the option by which it was given.

    Args:
        message: The refusal.
        arguments: Arguments of the command.

    Example:
        >>> as_typed("lambda_a=0.0: must be above 0.", ["fit", "--model.lambda_a", "0"])
        '--model.lambda_a=0.0: must be above 0.'
        >>> as_typed("ClosedForm(average=1.0): must be in [0, 1).", ["fit", "--model.solver.average=1"])
        '--model.solver.average: ClosedForm(average=1.0): must be in [0, 1).'
    """
    begins = re.match(r"([\w.]+)(?=[=:\[])|\w+\((\w+)(?=[=)])", message)
    if begins is None:
        return message
    names = [begins[1] or begins[2]]
    if unknown := re.search(r"has no setting '([^']+)'", message):
        names.append(f"{names[0]}.{unknown[1]}")
    options = dict.fromkeys(one.partition("=")[0] for one in arguments if one.startswith("--") or "=" in one)
    plain = {option: option.removeprefix("--").replace("-", "_") for option in options}
    meant = [option for option, one in plain.items() if any(f".{one}".endswith(f".{name}") for name in names)]
    if len(meant) != 1:
        return message
    return meant[0] + (message[begins.end() :] if begins[1] else f": {message}")


def check_counts(owner: str, least: int, **values: int) -> None:
    """Refuses what is no whole number, or less than ``least``."""
    for name, value in values.items():
        whole = isinstance(value, Integral) and not isinstance(value, bool)
        if not whole or value < least:
            raise UserError(
                f"{_shown(owner, name, value)}: must be {f'at least {least}' if whole else 'a whole number'}."
            )


def check_positive(owner: str, **values: float) -> None:
    """Refuses what is no finite number above 0."""
    for name, value in values.items():
        _check_number(owner, name, value)
        if not value > 0:
            raise UserError(f"{_shown(owner, name, value)}: must be above 0.")


def check_amount(owner: str, **values: float) -> None:
    """Refuses what is no finite number of at least 0."""
    for name, value in values.items():
        _check_number(owner, name, value)
        if not value >= 0:
            raise UserError(f"{_shown(owner, name, value)}: must be at least 0.")


def check_strength(owner: str, **values: float) -> None:
    """Refuses what is not above 0, or is so large or small that its square is no number in float32."""
    check_positive(owner, **values)
    for name, value in values.items():
        if not 1e-18 <= value <= 1e18:
            raise UserError(
                f"{_shown(owner, name, value)}: must be from 1e-18 to 1e18, as its square is taken in float32."
            )


def check_fraction(owner: str, **values: float) -> None:
    """Refuses what is not in [0, 1)."""
    for name, value in values.items():
        _check_number(owner, name, value)
        if not 0 <= value < 1:
            raise UserError(f"{_shown(owner, name, value)}: must be in [0, 1).")


def _check_number(owner: str, name: str, value: Any) -> None:
    """Refuses what is no number, or no finite one."""
    if not isinstance(value, Real) or isinstance(value, bool):
        raise UserError(f"{_shown(owner, name, value)}: must be a number.")
    if not math.isfinite(value):
        raise UserError(f"{_shown(owner, name, value)}: must be a finite number.")


def check_choice(owner: str, allowed: Iterable[str], **values: str) -> None:
    """Refuses what is not among the allowed."""
    allowed = list(allowed)
    for name, value in values.items():
        if not isinstance(value, str) or value not in allowed:
            raise UserError(f"{_shown(owner, name, value)}: take one of {', '.join(allowed)}.")


def check_flags(owner: str, **values: bool) -> None:
    """Refuses what is no truth value, such as a text, which would always be true."""
    for name, value in values.items():
        if not isinstance(value, bool):
            raise UserError(f"{_shown(owner, name, value)}: must be True or False.")


def check_path(owner: str, **values: str | PathLike[str]) -> None:
    """Refuses what is no path of a file or folder."""
    for name, value in values.items():
        if not isinstance(value, str | PathLike):
            raise UserError(f"{_shown(owner, name, value)}: must be a path, as text.")


def check_several(owner: str, of: str, **values: Any) -> None:
    """Refuses one text where several are asked for: its letters would be taken for them."""
    for name, value in values.items():
        if isinstance(value, str):
            raise UserError(f"{_shown(owner, name, value)}: give a list of {of}, [{value!r}].")
        if not isinstance(value, Iterable):
            raise UserError(f"{_shown(owner, name, value)}: must be a list of {of}.")


def check_object(owner: str, kind: type, such: str, **values: Any) -> None:
    """Refuses what is no object of a class, such as the class itself.

    Args:
        owner: Name of the class whose settings these are.
        kind: The class.
        such: What could stand there, in words.
        values: The settings by name.
    """
    for name, value in values.items():
        if isinstance(value, type):
            raise UserError(f"{_shown(owner, name, value)}: give an object, {value.__name__}(...), not the class.")
        if not isinstance(value, kind):
            raise UserError(f"{_shown(owner, name, value)}: must be {such}.")


def shown(value: Any) -> str:
    """A value as a refusal shows it: itself where that is short, else its kind, with its size.

    Args:
        value: The value.
    """
    kind = type(value).__name__
    if isinstance(value, type):
        return value.__name__
    if isinstance(value, str):
        return repr(shorten(value, 120, placeholder=" ...") if len(value) > 120 else value)
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"a {kind} {list(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    try:
        text = repr(value)
    except Exception:  # of an object that is half made
        return f"a {kind}"
    if len(text) <= 120 and not re.search(r"\n| at 0x|tensor\(|array\(", text):
        return text
    if isinstance(value, list | tuple | dict | set):
        return f"a {kind} of {len(value)}"
    return f"the {kind} {value.__name__}" if hasattr(value, "__name__") else f"a {kind}"


def _shown(owner: str, name: str, value: Any) -> str:
    return f"{owner}({name}={shown(value)})" if owner else f"{name}={shown(value)}"
