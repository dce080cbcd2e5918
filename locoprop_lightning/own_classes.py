"""What is told of a class of the user's that is not what its base class asks for."""

import difflib
import re
import sys
import traceback
from collections.abc import Sequence

from locoprop_lightning.errors import alike, listed


def half_made(chain: Sequence[BaseException]) -> str | None:
    """What to tell where something is not there as a class of the user's does not make its base class.

    Args:
        chain: The error and what led to it.
    """
    for cause in chain:
        kind = type(getattr(cause, "obj", None))
        code = getattr(vars(kind).get("__init__"), "__code__", None)
        if isinstance(cause, AttributeError) and code is not None and not {"__init__", "super"} & {*code.co_names}:
            place = f"{code.co_filename} line {code.co_firstlineno}"
            return f"{kind.__module__}.{kind.__qualname__}: its __init__ must call super().__init__() ({place})."
    return None


def other_arguments(error: Exception) -> str | None:
    """What to tell where a method of the user's takes other arguments than those with which it is called here.

    Args:
        error: The error.
    """
    text = str(error)
    if not isinstance(error, TypeError) or not re.search(r"\(\) (takes \d|takes from|missing \d|got an unexp)", text):
        return None
    last = traceback.extract_tb(error.__traceback__)[-1]  # the caller: a call that does not bind has no frame
    called = text.partition("(")[0]
    if not re.search(r"[/\\](locoprop_lightning|lightning)[/\\]", last.filename) or called.startswith("Trainer."):
        return None
    return f"{text}; give {called} the arguments of the method that it overrides."


def misspelt(reason: str) -> str:
    """What a module, not of this package, has in place of a class that it has not; empty where nothing is like it.

    Args:
        reason: What Python has said of it.
    """
    found = re.match(rf"module '((?!{__package__}\b)[\w.]+)' has no attribute '(\w+)'", reason)
    near = alike(found[2], vars(sys.modules[found[1]])) if found and found[1] in sys.modules else []
    return f"near names are {', '.join(f'{found[1]}.{one}' for one in near)}" if found and near else ""


def unfinished(path: str) -> str:
    """What an abstract class of the user's lacks, empty for one of this package, of which it is known.

    Args:
        path: The class by its path, in a module that was imported.
    """
    module, _, name = path.rpartition(".")
    kind = getattr(sys.modules.get(module), name, None)
    if not isinstance(kind, type) or module.partition(".")[0] == __package__:
        return ""
    lacks, own = sorted(getattr(kind, "__abstractmethods__", ())), [one for one in vars(kind) if one[:2] != "__"]
    near = {one: None for lack in lacks for one in difflib.get_close_matches(lack, own, 1)}
    return f"{path} lacks {', '.join(f'{one}()' for one in lacks)}; add it{f' (it has {listed(near)})' if near else ''}"
