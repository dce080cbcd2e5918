"""What is shipped beside the code: configurations, search spaces and studies, found by name from any folder."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import locoprop_lightning
from locoprop_lightning.errors import UserError, near_names, one_sentence

PACKAGE = Path(__file__).parent
CONFIGS, SPACES, STUDIES = "configs", "tune/spaces", "tune/studies"
# An installed package has them within itself, a checkout (and an editable install, which is one) beside it.
ROOT = PACKAGE if (PACKAGE / CONFIGS).is_dir() else PACKAGE.parent
KINDS = ("uniform", "loguniform", "integers", "choice")  # of a search space's settings, each of which has one
NETWORKS = {
    "digits": "a small MLP on scikit-learn's digits: seconds",
    "fashion_mnist": "the review's MLP on Fashion-MNIST",
    "review_code": "the same, as the review author's code runs it",
    "autoencoder": "a deep autoencoder on Fashion-MNIST",
    "convnet": "a small convolutional network on Fashion-MNIST",
    "resnet": "a ResNet-18 on Fashion-MNIST",
    "transformer": "a causal transformer on text",
    "decoder": "the decoder of the optimizer benchmark on text",
}
WIDTH = 80


def names(folder: str) -> dict[str, Path]:
    """The shipped files of a folder by name, such as digits/foof.

    Args:
        folder: CONFIGS, SPACES or STUDIES.
    """
    place = ROOT / folder
    return {path.relative_to(place).with_suffix("").as_posix(): path for path in sorted(place.rglob("*.yaml"))}


def name_of(path: Path) -> str | None:
    """The name of a shipped configuration, None of any other file.

    Args:
        path: The file.
    """
    return next((name for name, shipped in names(CONFIGS).items() if shipped == path), None)


def find(name: str | Path, folder: str, option: str) -> Path:
    """A file of the working directory, or the shipped one of that name, with or without folder and ``.yaml``.

    Args:
        name: A path, or a name such as digits/foof.
        folder: CONFIGS, SPACES or STUDIES.
        option: What names it, which a refusal begins with.

    Raises:
        UserError: If there is none; with near names.
    """
    for path in (Path(name), Path(f"{name}.yaml")):
        if path.is_file():
            return path
    bare, known = str(name).removeprefix(f"{folder}/").removesuffix(".yaml"), names(folder)
    if bare in known:
        return known[bare]
    if Path(name).is_dir():
        raise UserError(f"{option}{name}: is a folder; name a file in it.")
    last = bare.rpartition("/")[2]
    hint = near_names(bare, known, sure=[one for one in known if one.rpartition("/")[2] == last][:4])
    raise UserError(f"{option}{name}: there is no such file, and none is shipped{hint}; locoprop configs lists them.")


def is_configuration(content: Any) -> bool:
    """Whether what a YAML holds is a configuration.

    Args:
        content: What it holds.
    """
    model = content.get("model") if isinstance(content, dict) else None
    return isinstance(model, dict) and "class_path" in model


def is_space(content: Any) -> bool:
    """Whether what a YAML holds is a search space.

    Args:
        content: What it holds.
    """
    settings = list(content.values()) if isinstance(content, dict) else []
    return bool(settings) and all(isinstance(one, dict) and {*KINDS} & {*one} for one in settings)


def about(path: Path) -> str:
    """The first line of a file, a comment that says what it is.

    Args:
        path: The file.
    """
    with path.open() as stream:
        return stream.readline().removeprefix("#").strip()


def listing() -> str:
    """All that is shipped, a line each, within 80 columns."""
    known = names(CONFIGS)
    wide = max(len(name.partition("/")[2]) for name in known)
    lines = ["Configurations: locoprop fit --config NETWORK/NAME, or your own file"]
    for network, text in NETWORKS.items():
        lines += ["", f"{network}: {text}"]
        inside = {name.partition("/")[2]: path for name, path in known.items() if name.startswith(f"{network}/")}
        lines += [f"  {name:{wide}}  {about(path)}" for name, path in inside.items()]
    lines += ["", "Studies: locoprop-tune study NAME"]
    lines += [f"  {name:{wide}}  {about(path)}" for name, path in names(STUDIES).items()]
    spaces = textwrap.wrap(", ".join(names(SPACES)), WIDTH - 2)
    lines += ["", "Search spaces: locoprop-tune --config NETWORK/NAME --space NAME", *(f"  {line}" for line in spaces)]
    return "\n".join(lines)


def answer(arguments: Sequence[str]) -> bool:
    """Answers `locoprop configs [NAME]` and `locoprop --version`; gives whether that was asked.

    Args:
        arguments: Arguments of the command.
    """
    if list(arguments) == ["--version"]:
        print(f"locoprop-lightning {locoprop_lightning.__version__}")
    elif arguments[:1] != ["configs"]:
        return False
    elif {"-h", "--help"} & {*arguments}:
        print("usage: locoprop configs [NAME]\n\nLists what is shipped, or prints the configuration of a name.")
    elif len(arguments) == 1:
        print(listing())
    else:
        with one_sentence("locoprop configs", arguments):
            if len(arguments) > 2:
                raise UserError(f"{arguments[2]}: is one too many; give one name.")
            print(find(arguments[1], CONFIGS, "").read_text(), end="")
    return True
