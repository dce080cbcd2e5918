"""The arguments of a command as they are typed."""

from collections.abc import Sequence
from typing import Any

from locoprop_lightning import shipped
from locoprop_lightning.errors import UserError, near_names
from locoprop_lightning.files import load_yaml

CONFIG = ("--config", "-c")
OF_CLASS = ("class_path", "init_args", "dict_kwargs")  # what a class of a file is given by


def with_files(args: Sequence[str]) -> list[str]:
    """The arguments with the file of settings that they name, which may be a shipped one.

    A second one is refused, which the parser would take instead of the first.

    Raises:
        UserError: Names the file.
    """
    found, files, before = [], [], ""
    for one in args:
        name, equals, value = one.partition("=")
        file = one if before in CONFIG else value if equals and name in CONFIG else None
        if file is not None:
            files.append(file)
        if file is not None and "{" not in file:
            path = shipped.find(file, shipped.CONFIGS, "config=")
            content = load_yaml(path, f"config={file}")
            if not isinstance(content, dict):
                raise UserError(f"config={file}: holds no settings; see configs/ for files that do.")
            _check_classes(content, f"config={file}")
            one = f"{one.removesuffix(file)}{path}"
        found.append(one)
        before = name if not equals else ""
    if len(files) > 1:
        raise UserError(
            f"config={files[1]}: is a second file beside {files[0]}, whose settings it would replace; give one, and "
            "the rest by --name value."
        )
    return found


def _check_classes(part: Any, name: str) -> None:
    """Refuses what stands beside a class_path, with which the parser would take the class for none."""
    settings: dict[Any, Any] = (
        part if isinstance(part, dict) else dict(enumerate(part)) if isinstance(part, list) else {}
    )
    for key, value in settings.items():
        if "class_path" in settings and key not in OF_CLASS:
            near = near_names(str(key), OF_CLASS)
            raise UserError(f"{name}: {key} stands beside class_path; put settings of the class below init_args{near}.")
        _check_classes(value, name if key in OF_CLASS else f"{name}: {key}")


def without_checkpoint(args: Sequence[str]) -> list[str]:
    """The arguments without those that name a checkpoint."""
    kept, skip = [], False
    for one in args:
        if not skip and one.partition("=")[0] != "--ckpt_path":
            kept.append(one)
        skip = one == "--ckpt_path"
    return kept
