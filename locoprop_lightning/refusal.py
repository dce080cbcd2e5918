"""What the command tells of a setting that it refuses: one sentence, with what could stand there."""

import inspect
import os
import re
import sys
import traceback
from argparse import ArgumentError
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, requires
from typing import Any

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from locoprop_lightning.class_names import classes_of
from locoprop_lightning.errors import UserError, alike, listed, message_of, near_names
from locoprop_lightning.own_classes import half_made, misspelt, other_arguments, unfinished


def sentence(error: Exception) -> str | None:
    """What to tell the user, or None where it is not the user's mistake.

    Args:
        error: The error, as it came out of the parser, Lightning or this package.
    """
    chain = list(_chain(error))
    for cause in chain:
        if isinstance(cause, UserError) or "instantiate abstract class" in str(cause):
            return str(cause)
    if (message := message_of(error) or half_made(chain) or other_arguments(error)) is not None:
        return message
    if isinstance(error, ArgumentError):
        return _refusal(chain)
    if str(error).startswith("Does not validate against any"):
        return _construction(chain)
    if isinstance(error, MisconfigurationException | FileNotFoundError):
        return str(error)
    return next((told for text, told in _MACHINE.items() if re.search(text, str(error))), None)


_MACHINE = {
    "out of memory|can't allocate memory": "the memory is full; take a smaller data.batch_size, or a smaller network.",
    "embedded null byte": "a path of the settings holds a zero byte; name another.",
    r"Tried to step \d+ times": "lr_scheduler: its total_steps are over, and the fit goes on; give as many as it has.",
    "EADDRINUSE": "MASTER_PORT: the port is in use; leave the variable out, or name a free port.",
}


def missing(error: Exception, settings: Mapping[str, Any]) -> str | None:
    """What to tell where a class of the settings has not found a file or folder that one of them names.

    Args:
        error: The error of making the classes.
        settings: All settings by dotted name.
    """
    told = [str(one) for one in _chain(error) if isinstance(one, FileNotFoundError) and not one.filename]
    there = {name: value for name, value in settings.items() if isinstance(value, str) and os.path.exists(value)}
    places = [str(one.filename) for one in _chain(error) if isinstance(one, FileNotFoundError) and one.filename]
    for name, value in settings.items():
        for place in places:
            if isinstance(value, str) and value and f"{place}/".startswith(f"{value.rstrip('/')}/"):
                return f"{name}={value}: there is no {place}; name a file or folder that is there."
    for name, value in sorted(there.items(), key=lambda item: -len(item[1])):
        for text in told:
            if re.search(rf"(?<![\w/]){re.escape(value)}(?![\w/])", text):
                return f"{name}={value}: {text.rstrip('.')}; name a place that has what is looked for."
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and what led to it: the parser wraps what it cannot use, level by level."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _construction(chain: Sequence[BaseException]) -> str:
    """What a constructor has raised, and where: the class may be the user's own."""
    cause = next((one for one in reversed(chain) if one.__traceback__ is not None), chain[-1])
    owner = re.search(r"Problem with given class_path '([^']+)'", str(chain[0]))
    frames = [frame for frame in traceback.extract_tb(cause.__traceback__) if not _FOREIGN.search(frame.filename)]
    where = f", {frames[-1].filename} line {frames[-1].lineno}" if frames else ""
    for text, told in _MACHINE.items():
        if re.search(text, str(cause)):
            return told
    made = [
        type(frame.f_locals["self"])
        for frame, _ in traceback.walk_tb(cause.__traceback__)
        if frame.f_code.co_name == "__init__" and "self" in frame.f_locals
    ]
    callers = r"jsonargparse|lightning\.pytorch\.cli|locoprop_lightning\.cli"
    known = [f"{one.__module__}.{one.__qualname__}" for one in made if not re.match(callers, one.__module__)]
    name = owner[1] if owner else known[-1] if known else "a class of the settings cannot be made"
    short = name.rpartition(".")[2]
    place = next((f"trainer.{key}: " for key in ("callbacks", "logger") if short in classes_of(key)), "")
    return f"{place}{name}: {' '.join(str(cause).split())} ({type(cause).__name__}{where})."


_FOREIGN = re.compile(r"site-packages|dist-packages|[/\\]locoprop_lightning[/\\]")
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
        text = " ".join(str(chain[0]).split())
        return text + next((way for start, way in _WAYS.items() if re.search(start, text)), "")
    reason = re.sub(r'^Parser key "[^"]+":\s*', "", str(chain[-1]).strip())
    setting = ".".join(keys)
    one = re.search(r"<class 'list'>\s+- Problem with given class_path '([^']+)':\s*(?!Parser)(.+)", _text(chain))
    if one and reason.startswith("Expected a <class 'list'>"):  # a setting that takes a list or one class
        owner, reason = one.groups()
    if name := re.search(rf"(?:{_NO_CLASS})\s*(.*)", reason):
        reason = f"there is no class {name[1] or repr('')}; {_known(keys[-1], name[1])}"
    elif name := re.fullmatch(r"Expected an instantiatable class, but (?:(.*)\.)?(\w+) is abstract", reason):
        own = unfinished(f"{name[1]}.{name[2]}")
        reason = own or f"needs a class of its own (class_path), as {name[2]} is abstract; {_known(keys[-1])}"
    elif made := _as_key(reason, keys[-1]):
        reason = f"{made} stands there as a key; give the class by its class_path, and its settings by init_args"
    elif re.match("Unable to load config", reason):
        reason = f"is a group of settings; give one of them, such as --{setting}.NAME VALUE"
    elif re.match("Spaces not allowed in keys", reason):
        reason = "must be a function by its path, such as your_package.your_function"
    elif re.match("Key must be a string", reason):
        reason = "a setting below it is misspelt, or takes no mapping by numbers"
    elif "too large to convert" in reason:
        given = re.search(r"NestedArg\(key='([^']+)'", _text(chain))
        setting, reason = f"{setting}.{given[1]}" if given else setting, "must be a finite number"
    elif re.match(r"No module named|module '.*' has no attribute", reason):
        way = misspelt(reason) or _importer(chain) or _known(keys[-1])
        where = " (looked for in this folder, too)" if reason.startswith("No module") and "[" not in way else ""
        reason = f"{reason}{where}; {way}"
    elif lacking := re.match(r"the following arguments are required: (\w+)", reason):
        reason = f"{reason} (of {owner.rpartition('.')[2]}); give --{setting}.{lacking[1]}"
    elif re.match(r"Import path .* does not correspond to a subclass of", reason):
        reason = f"{reason}; {_known(keys[-1])}"
    elif name := re.fullmatch(r"Option '(.*)' is not accepted", reason):
        reason = f"{owner.rpartition('.')[2]} has no setting {name[1]!r}{_settings(owner)}"
        if owner.endswith("LocoPropModule") and name[1] in _GONE:
            reason = f"{owner.rpartition('.')[2]} has no setting {name[1]!r} any more: {_GONE[name[1]]}"
        if name[1].startswith(("network.", "task.", "solver.", "data.", "optimizer.")):
            reason = f"{name[1].partition('.')[0]} stands beside class_path; put settings of the class below init_args"
        names = _names(owner) or []
        reason += near_names(name[1], names) if len(names) > SEEN else ""
        typed = any("NestedArg(" in str(cause) for cause in chain)  # on the command line, not in a file
        if typed and owner.endswith(
            (".SupervisedModule", ".LightningDataModule")
        ):  # the file that names it comes later
            reason = f"its class is not chosen yet; put --config FILE or --{setting} CLASS before --{setting}.{name[1]}"
        if owner == "typing.Union":
            reason = f"its class is not chosen yet; put --{setting} CLASS before --{setting}.{name[1]}"
    elif value := re.search(r"\. Got value:\s*(.*)", reason, re.S):
        # Where a setting may have several types, the last report is of the first one alone; the last but one names all.
        types = _TYPE.findall(f"{chain[-2]} {reason}")
        kinds = dict.fromkeys(f"one of {choices}" if choices else kind for choices, kind in types)
        allowed = " or ".join(kind for kind in kinds if kind != "NoneType")
        if allowed == "float" and value[1] in ("nan", "inf", "-inf"):
            allowed = "a finite number"
        form = _FORMS.get(setting.rpartition(".")[2])
        several = re.match("Expected a (tuple with .* elements)", reason)
        allowed = allowed.replace("collections.abc.Iterable", "a list").replace("collections.abc.Sequence", "a list")
        allowed = form or allowed or (several and several[1]) or "a class with its init_args"
        got = value[1].partition("\n")[0] or repr("")
        if allowed.startswith("int") and re.fullmatch(r"-?\d+\.0", got):  # which may have been typed as 1e2
            whole = re.search(r"Given value: (?:NestedArg\(.*val=')?([-+.\deE]+)(?:'\))?$", _text(chain), re.M)
            got = f"{whole[1] if whole else got}; write {got[:-2]}"
        if "float" in allowed and re.fullmatch(r"[-+]?\d+,\d+", got):
            got = f"{got}; write {got.replace(',', '.')}"
        near = alike(got, classes_of("callbacks")) if setting.endswith("callbacks") else []
        allowed = allowed.replace("EarlyStopping", listed(near)) if near else allowed
        reason = f"must be {allowed}, not {got}"
    return f"{setting}: {reason}"


_NO_CLASS = (
    "Expected a dot import path string:|Unexpected import path format:|"
    "Expected an import path or a subclass spec, but got"
)
_WAYS = {
    "expected one argument": "; give it one, or leave it out",
    "^the following arguments are required": "; give them in a file by --config, or as options, such as --data Digits",
    "not accepted before subcommand": "; put --config after the command",
    "argument subcommand": "; such as locoprop fit --config FILE",
}

SEEN = 4  # of so many settings in a list, who reads it finds the one that was meant
_GONE = {"reduction": "leave it out, or delete its line in the file; what it named is always done"}

_FORMS = {
    "overrides": 'lambdas and unit_groups by pattern of layers, such as \'{"1": {"lambda_r": 3}}\'',
    "skip": "a list of patterns of layers, such as '[\"1\"]'",
    "include": "a list of patterns of layers, such as '[\"tokens\"]'",
    "callbacks": "a list of callbacks, or the name of one that there is, such as EarlyStopping",
    "validation": "int, a number of samples that are held out",
    "transfers": 'names of functions by layer, such as \'{"1": "tanh"}\'',
}


def _importer(chain: Sequence[BaseException]) -> str:
    """What to do where a class's file is there, but not a module that it imports; empty where the file is not."""
    module = "No module named '([^']+)'"
    given = re.search(
        rf"class_path '(\S+)':\s*{module}|{module}\. Got value: (?:.*?class_path\W+)?([\w.]+)", _text(chain)
    )
    if not given:
        return ""
    path, lacking = given[1] or given[4], given[2] or given[3]
    if extra := _extra(lacking):
        return f"install it by pip install 'locoprop-lightning[{extra}]'"
    return "" if f"{path}.".startswith(f"{lacking}.") else f"install it, as {path} imports it"


def _extra(module: str) -> str:
    """The extra of this package that installs a module; empty where none does."""
    try:
        needed = requires("locoprop-lightning") or []
    except PackageNotFoundError:  # run from its sources
        return ""
    wanted = re.escape(module.partition(".")[0].replace("_", "-"))
    found = re.search(rf"^{wanted}\b.*extra == .(?!dev)(\w+)", "\n".join(needed), re.M)
    return found[1] if found else ""


def _text(chain: Sequence[BaseException]) -> str:
    """All that is said from an exception to what led to it."""
    return "\n".join(map(str, chain))


def _known(key: str, given: str = "") -> str:
    """What could stand for a setting, first what is like that which was given."""
    classes = classes_of(key.rpartition(".")[2])
    names = dict.fromkeys([*alike(given, classes), *classes])
    choice = f"{', '.join(names)}, or " if names else ""
    return f"take {choice}a class by its path, such as your_package.YourClass"


def _as_key(reason: str, key: str) -> str | None:
    """The class that stands as a key where a class is to be given, None where the key is another."""
    found = re.match(r"(?:Option|Group) '(\w+)", reason)
    return found[1] if found and found[1] in classes_of(key.rpartition(".")[2]) else None


def settings_of_classes() -> set[str]:
    """The settings of the classes of this package, and of torch's optimizers, by their dotted names."""
    found = set()
    for part in ("model", "data", "network", "solver", "oracle", "task", "optimizer", "rest_optimizer", "lr_scheduler"):
        prefix = part if part in ("model", "data") else f"model.{part}"
        for made in classes_of(part, ours=part in ("network", "data")).values():
            found |= {f"{prefix}.{name}" for name in _names(f"{made.__module__}.{made.__name__}") or ()}
    return found


def _settings(path: str) -> str:
    """What a class takes, as a part of a sentence."""
    names = _names(path)
    return "" if names is None else f"; it has {', '.join(names) or 'none'}"


def _names(path: str) -> list[str] | None:
    """Settings of a class, None where it is not known."""
    module, _, name = path.rpartition(".")
    owner = getattr(sys.modules.get(module), name, None)
    if not isinstance(owner, type):
        return None
    return [p.name for p in inspect.signature(owner).parameters.values() if p.kind is not p.VAR_KEYWORD]
