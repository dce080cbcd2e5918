"""Files that are read strictly, and files that are never seen half."""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from locoprop_lightning.errors import UserError

SETTINGS_FILE = "config.yaml"  # in the folder of a run, as `locoprop fit --config` reads it


class _Once(yaml.SafeLoader):
    """Refuses a key that stands twice, of which YAML would keep the last, and an anchor that holds itself."""

    def construct_document(self, node: yaml.Node) -> Any:
        self.deep_construct = True  # from the leaves on, which a ring has not
        return super().construct_document(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        twice = [key for key in keys if keys.count(key) > 1]
        if twice:
            raise UserError(f"{twice[0]}: stands there twice; keep one.")
        return super().construct_mapping(node, deep)


def load_yaml(path: Path, name: str) -> Any:
    """What a YAML file holds.

    Args:
        path: The file.
        name: What it is, which a refusal begins with.

    Raises:
        UserError: If it is no YAML, or has a key twice.
    """
    try:
        return yaml.load(path.read_text(), _Once)
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: is no YAML: {error}; save it as UTF-8.") from error
    except yaml.YAMLError as error:
        told = " ".join(str(error).split()).replace("found unconstructable recursive node", "an anchor holds itself")
        raise UserError(f"{name}: is no YAML: {told}; mend it there.") from error


def parse_json(text: str, place: str, way: str) -> Any:
    """What JSON says that this package has written, and something else may have changed.

    Args:
        text: The JSON.
        place: Where it stands, which a refusal begins with.
        way: What to do about it.

    Raises:
        UserError: If it is none.
    """
    try:
        return json.loads(text)
    except ValueError as error:
        raise UserError(f"{place}: is damaged ({error}); {way}.") from error


def check_folder(setting: str, folder: Path) -> None:
    """Refuses a folder that cannot be made or written to, before anything is started.

    Args:
        setting: The option, with its value.
        folder: The folder.

    Raises:
        UserError: Names the option.
    """
    nearest = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise UserError(f"{setting}: {nearest} is no folder that can be written to; name another place.")


def check_file(setting: str, path: Path) -> None:
    """Refuses a file that cannot be written, before anything is started.

    Args:
        setting: The option, with its value.
        path: The file.

    Raises:
        UserError: Names the option.
    """
    if path.is_dir():
        raise UserError(f"{setting}: is a folder; name a file in it.")
    check_folder(setting, path.parent)


def replace(path: Path, text: str) -> None:
    """Writes a file that is whole whenever it is read.

    Args:
        path: The file.
        text: What it holds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    passing = passing_name(path)
    passing.write_text(text)
    settle(passing, path)


def expanded(arguments: Sequence[str]) -> list[str]:
    """Arguments of a command with the home folder for a ~ behind =, where a shell leaves it.

    Args:
        arguments: As they were typed.
    """
    return [re.sub("^(--[^=]+=)?~(?=/)", lambda m: (m[1] or "") + os.path.expanduser("~"), one) for one in arguments]


def passing_name(path: Path) -> Path:
    """The name under which a file is written before it takes its own."""
    return path.with_name(f"{path.name}.new")


def settle(passing: Path, path: Path) -> None:
    """Gives a written file its name, once it is on the disk: whoever finds that name finds all of it.

    Args:
        passing: The file as it was written, in the folder of its name.
        path: Its name.
    """
    _to_disk(passing)
    passing.replace(path)
    _to_disk(path.parent)


def _to_disk(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def why_unwritten(error: Exception) -> str:
    """What to tell of an error in writing a file: the system's words, or the library's in one line."""
    return getattr(error, "strerror", None) or " ".join(str(error).split())
