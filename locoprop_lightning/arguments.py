"""The arguments of a command as they are typed."""

import inspect
import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import Any
from zipfile import is_zipfile

from locoprop_lightning import shipped
from locoprop_lightning.class_names import classes_of
from locoprop_lightning.command_line import check_words
from locoprop_lightning.errors import UserError, alike, near_names, shown
from locoprop_lightning.files import load_yaml
from locoprop_lightning.loading import PARTS
from locoprop_lightning.refusal import settings_of_classes
from locoprop_lightning.results.settings import flatten

CONFIG = ("--config", "-c")
OF_CLASS = ("class_path", "init_args", "dict_kwargs")  # what a class of a file is given by


def with_files(args: Sequence[str], groups: Collection[str]) -> list[str]:
    """The arguments with the file of settings that they name, which may be a shipped one.

    A second one is refused, which the parser would take instead of the first.

    Args:
        args: Arguments of the command.
        groups: Settings that are mappings of settings.

    Raises:
        UserError: Names the file.
    """
    found, files, before = [], [], ""
    for one in args:
        file = _file(before, one)
        if file is not None:
            files.append(file)
            if not file:
                raise UserError("config='': names no file; give one, such as digits/foof, or leave it out.")
            path = shipped.find(file, shipped.CONFIGS, "config=")
            if is_zipfile(path):
                raise UserError(
                    f"config={file}: is a checkpoint; give it by --ckpt_path, and its run's config.yaml by --config."
                )
            content = load_yaml(path, f"config={file}")
            if not isinstance(content, dict):
                raise UserError(f"config={file}: holds no settings; see configs/ for files that do.")
            if shipped.is_space(content):
                raise UserError(
                    f"config={file}: is a search space; give it to locoprop-tune by --space, and name a configuration, "
                    "such as digits/foof."
                )
            _check_parts(content, args, f"config={file}")
            _check_classes(content, f"config={file}")
            for group in {*groups} & {*content}:
                if not isinstance(content[group], dict | None):
                    told = f"must hold settings by name, not {shown(content[group])}"
                    raise UserError(f"config={file}: {group}: {told}; locoprop fit --help all lists them.")
            one = f"{one.removesuffix(file)}{path}"
        found.append(one)
        before = one
    if len(files) > 1:
        raise UserError(
            f"config={files[1]}: is a second file beside {files[0]}, whose settings it would replace; give one, and "
            "the rest by --name value."
        )
    return found


def _file(before: str, one: str) -> str | None:
    """The file of settings that an argument names, None where it is something else."""
    name, equals, value = one.partition("=")
    return one if before in CONFIG else value if equals and name in CONFIG else None


def leaves_empty(args: Sequence[str], name: str) -> bool:
    """Whether the file of settings that arguments name has a setting without a value.

    Args:
        args: Arguments of the command, which have such a file or none.
        name: The setting's dotted name.
    """
    files = [file for before, one in pairwise(["", *args]) if (file := _file(before, one))]
    contents = [load_yaml(shipped.find(file, shipped.CONFIGS, "config="), file) for file in files]
    return any(flatten(content).get(name, name) is None for content in contents)


def _check_parts(content: Mapping[Any, Any], args: Sequence[str], name: str) -> None:
    """Refuses a model, and data, whose settings stand in the place of its class."""
    for part in PARTS:
        settings = content.get(part)
        chosen = any(one.partition("=")[0] in (f"--{part}", f"--{part}.class_path") for one in args)
        if isinstance(settings, dict) and settings and not chosen and not {"class_path", "init_args"} & {*settings}:
            classes = classes_of(part, ours=True)
            having = [one for one, made in classes.items() if {*settings} <= {*inspect.signature(made).parameters}]
            one, *more = having or [*classes]
            others = f" (or {', '.join(more)})" if more else ""
            raise UserError(
                f"{name}: {part}: has no class_path; write class_path: {one}{others}, and put these settings below "
                "init_args."
            )


def _check_classes(part: Any, name: str) -> None:
    """Refuses what stands beside a class_path, with which the parser would take the class for none."""
    settings: dict[Any, Any] = (
        part if isinstance(part, dict) else dict(enumerate(part)) if isinstance(part, list) else {}
    )
    if "init_args" in settings and "class_path" not in settings:
        raise UserError(f"{name}: has init_args without a class_path; name the class by one.")
    for key, value in settings.items():
        if key == "class_path" and not isinstance(value, str):
            raise UserError(f"{name}: class_path: must be the path of a class, as text, not {shown(value)}.")
        if key == "init_args" and not isinstance(value, dict | None):
            raise UserError(f"{name}: init_args: must hold settings of the class by name, not {shown(value)}.")
        if "class_path" in settings and key not in OF_CLASS:
            near = near_names(str(key), OF_CLASS)
            raise UserError(f"{name}: {key} stands beside class_path; put settings of the class below init_args{near}.")
        _check_classes(value, name if key in OF_CLASS else f"{name}: {key}")


def check_typed(args: Sequence[str]) -> None:
    """Refuses an option with one hyphen or a dash, without a value, or in one word with it.

    The parser would tell of something else.

    Raises:
        UserError: Names the option.
    """
    check_words(args)
    for one, after in zip(args, [*args[1:], "--"], strict=True):
        if dash := re.match(r"(-|[\u2010-\u2015\u2212]+-?)(?!inf\b|nan\b)([A-Za-z]\w[\w.]*)", one):
            raise UserError(f"{one}: an option begins with two hyphens; give --{dash[2]}.")
        if re.fullmatch(r"--[\w-]+\.[\w.-]+", one) and after.startswith("--") and not one.endswith(".help"):
            raise UserError(f"{one}: has no value; give it one, or leave it out.")


def without_checkpoint(args: Sequence[str]) -> list[str]:
    """The arguments without those that name a checkpoint."""
    kept, skip = [], False
    for one in args:
        if not skip and one.partition("=")[0] != "--ckpt_path":
            kept.append(one)
        skip = one == "--ckpt_path"
    return kept


def meant(text: str, known: Collection[str], args: Sequence[str] = ()) -> str:
    """What may have been meant by what a refusal says is none, empty where a setting is known.

    Args:
        text: The parser's refusal.
        known: Dotted names of the settings that the command has.
        args: Arguments of the command.
    """
    if found := re.search(r"unrecognized arguments: ([^-\s]\S*)", text):
        file = "/" in found[1] or found[1].endswith(".yaml")
        before = list(args[: args.index(found[1])]) if found[1] in args else []
        option, value = before[-2:] if len(before) > 1 else ("", "")
        if file and "/" in value and re.fullmatch(r"--[\w.]+", option):  # a shell makes several of a pattern
            return f"; {option} takes one: give one of them, such as {option} {found[1]}"
        return f"; settings have a name, such as {f'--config {found[1]}' if file else '--model.lambda_a 3'}"
    if found := re.search(r"argument subcommand: invalid choice: '([^']+)' \(choose from (.*)\)", text):
        if found[1] in ("compare", "tune", "study", "sweep"):
            program = "locoprop-compare" if found[1] == "compare" else "locoprop-tune"
            return f"; {program} is a command of its own"
        return near_names(found[1], [*re.findall(r"\w+", found[2]), "configs"])
    found = re.search(r"unrecognized arguments: --(\S+)|does not accept option '(\S+)'", text)
    if not found or text.startswith("Parser key"):
        return ""
    name = re.sub(r"\.(class_path|init_args)\b", "", (found[1] or found[2]).partition("=")[0])
    first, *below = name.split(".")
    if within := [part for part in below if part in known and "." not in part]:
        return f"; {within[0]} stands at the left margin, not below {first}"
    last, ends = (below or [first])[-1], defaultdict(list)
    for one in sorted({*known} | settings_of_classes()):
        ends[one.rpartition(".")[2]].append(one)
    parents = [".".join([first, *below[:-1]])] if below else _FIRST
    longer = [one for end in ends if last in end.split("_") for one in ends[end] if end != last]  # max_epochs of epochs
    beside = sorted((one for one in longer if one.rpartition(".")[0] in parents), key=len)
    sure = [*beside[:2], *ends[last]][:4]
    near = near_names(name, known, sure=sure) or near_names(name, (), sure=_of_ends(last, ends))
    return near or "; locoprop fit --help all lists what there is"


_FIRST = ("", "trainer")  # whose settings are meant where none is named


def _of_ends(last: str, ends: Mapping[str, Sequence[str]]) -> list[str]:
    """Settings whose last part is like another one, the shortest first."""
    return sorted((one for end in alike(last, ends) for one in ends[end]), key=len)[:3]
