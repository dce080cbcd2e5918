"""The arguments of a command as they are typed."""

from collections.abc import Sequence

from locoprop_lightning import shipped
from locoprop_lightning.errors import UserError
from locoprop_lightning.files import load_yaml

CONFIG = ("--config", "-c")


def with_files(args: Sequence[str]) -> list[str]:
    """The arguments with the file of settings that they name, which may be a shipped one.

    A second one is refused, which the parser would take instead of the first.

    Raises:
        UserError: Names the file.
    """
    found, before = [], ""
    for one in args:
        name, equals, value = one.partition("=")
        file = value if equals and name in CONFIG else one if before in CONFIG else "{"
        if "{" not in file:
            path = shipped.find(file, shipped.CONFIGS, "config=")
            if not isinstance(load_yaml(path, f"config={file}"), dict):
                raise UserError(f"config={file}: holds no settings; see configs/ for files that do.")
            one = f"{one.removesuffix(file)}{path}"
        found.append(one)
        before = name if not equals else ""
    files = values(args, *CONFIG)
    if len(files) > 1:
        raise UserError(
            f"config={files[1]}: is a second file beside {files[0]}, whose settings it would replace; give one, and "
            "the rest by --name value."
        )
    return found


def values(args: Sequence[str], *names: str) -> list[str]:
    """What the arguments give for a setting of these names."""
    found = []
    for flag, following in zip(args, [*args[1:], ""], strict=True):
        name, equals, value = flag.partition("=")
        if name in names:
            found.append(value if equals else following)
    return found


def without_checkpoint(args: Sequence[str]) -> list[str]:
    """The arguments without those that name a checkpoint."""
    kept, skip = [], False
    for one in args:
        if not skip and one.partition("=")[0] != "--ckpt_path":
            kept.append(one)
        skip = one == "--ckpt_path"
    return kept
