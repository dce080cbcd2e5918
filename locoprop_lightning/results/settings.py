"""Settings of runs by dotted name: flattened, read from a run's config.yaml, or given as KEY=VALUE."""

import json
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from locoprop_lightning.errors import UserError
from locoprop_lightning.files import SETTINGS_FILE

# What does not make another method: where a run reads from and logs to, what it watches, and its seed.
NEUTRAL = re.compile(
    r"seed_everything|threads$|ckpt_path|data\.root|model\.reduction$|"
    r"(local_losses|step_timer|progress|summary|predictions|checkpoints|best)(\.|$)"
    r"|trainer\.(default_root_dir|enable_\w+|log_every_n_steps|num_sanity_val_steps|(logger|callbacks|profiler)(\.|$))"
)


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted name; a class stands under the name of its setting, its own settings below.

    Args:
        settings: Nested settings, as in a YAML file.
        prefix: Dotted name of what they belong to, "" at the top.

    Example:
        >>> flatten({"model": {"solver": {"class_path": "a.ClosedForm", "init_args": {"average": 0}}, "skip": []}})
        {'model.solver': 'a.ClosedForm', 'model.solver.average': 0, 'model.skip': '[]'}
    """
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if key in ("class_path", "init_args", "dict_kwargs"):
            name = prefix
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, name)
        else:
            flat[name] = value if isinstance(value, str | int | float | bool | None) else str(value)
    return flat


def read_settings(folder: Path) -> dict[str, Any]:
    """Settings of the run in a folder by dotted name, empty where they are not known; a broken file is named on stderr.

    Args:
        folder: Folder of the run, with the config.yaml of `locoprop fit`.
    """
    path = folder / SETTINGS_FILE
    try:
        loaded = yaml.safe_load(path.read_text()) if path.is_file() else {}
    except (yaml.YAMLError, UnicodeDecodeError, OSError):
        print(f"{path}: cannot be read as YAML, so that the run's seed and settings are not known", file=sys.stderr)
        loaded = {}
    return flatten(loaded) if isinstance(loaded, dict) else {}


def written(value: Any) -> str:
    """A value as a command line takes it.

    Args:
        value: A text, number, truth value or None, or a mapping or list of such.

    Example:
        >>> written("SGD"), written(None), written({"lr": 0.1})
        ('SGD', 'null', '{"lr": 0.1}')
    """
    return value if isinstance(value, str) else json.dumps(value)


def pairs(settings: Iterable[str]) -> dict[str, str]:
    """Settings that a command was given with ``--set``, by name.

    Args:
        settings: Texts of the form KEY=VALUE.

    Raises:
        UserError: For one of another form.

    Example:
        >>> pairs(["data.validation=5000"])
        {'data.validation': '5000'}
    """
    found = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise UserError(f"--set {setting}: must be KEY=VALUE, such as data.validation=5000.")
        found[key] = value
    return found
