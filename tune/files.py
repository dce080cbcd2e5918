"""Files of sweeps and studies: YAML that is read strictly, and texts that are never seen half."""

from pathlib import Path
from typing import Any

import yaml

from locoprop_lightning.errors import UserError


class _Once(yaml.SafeLoader):
    """Refuses a key that stands twice, of which YAML would keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
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
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{name}: is no YAML: {' '.join(str(error).split())}") from error


def replace(path: Path, text: str) -> None:
    """Writes a file that is whole whenever it is read.

    Args:
        path: The file.
        text: What it holds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    passing = path.with_name(f"{path.name}.new")
    passing.write_text(text)
    passing.replace(path)
