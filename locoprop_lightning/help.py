"""The pages of `--help` that fit a reader: the settings that matter, a line each, and the classes to choose from."""

import inspect
import re
from collections.abc import Sequence
from importlib import import_module
from textwrap import fill, indent, shorten

from docstring_parser import parse

from locoprop_lightning.class_names import CLASSES, classes_of
from locoprop_lightning.errors import UserError

_WIDTH, _COLUMN = 80, 34
_COMMANDS = {
    "fit": "Trains a network by the method of a configuration.",
    "validate": "Evaluates a checkpoint on the validation data.",
    "test": "Evaluates a checkpoint on the test data.",
    "predict": "Writes the predictions of a checkpoint to a file.",
}
_MAIN = """usage: locoprop COMMAND --config FILE [--NAME VALUE ...]

LocoProp and its relatives in PyTorch Lightning: every layer of a network solves
its own small convex problem.

Commands:
{commands}
  configs     Lists the configurations that are shipped, or prints one.

Beside it:
  locoprop-compare  Holds logged runs against each other.
  locoprop-tune     Searches settings; locoprop-tune study compares methods.

A configuration is a YAML file, or the name of one that is shipped, which
`locoprop configs` lists; every setting in it can be changed on the command line
by its dotted name:

  locoprop fit --config digits/foof --model.lambda_a 50

{classes}

More help:
  locoprop fit --help                        The settings that matter.
  locoprop fit --help all                    All settings, those of Lightning's
                                             trainer too.
  locoprop fit --model.solver.help NAME      The settings of a class.
"""
_PAGE = """usage: locoprop {command} --config FILE [--NAME VALUE ...]

{told}

{groups}
{classes}

More help:
  locoprop {command} --help all
                                  Shows all settings.
  locoprop {command} --model.solver.help ClosedForm
                                  Shows the settings of a class.
  locoprop {command} --config FILE --print_config
                                  Shows all settings with their values.
"""
_ALL = ("fit", "validate", "test", "predict")
_GROUPS = {  # (name, value, sentence, commands)
    "Method": (
        ("model", "CLASS", "Takes LocoPropModule or BackpropModule.", _ALL),
        ("model.solver", "CLASS", "Solves the local problems.", ("fit",)),
        ("model.oracle", "CLASS", "Gives the direction of the targets.", ("fit",)),
        ("model.objective", "NAME", "Takes matching (M) or squared (S).", ("fit",)),
        ("model.lambda_a", "NUMBER", "Sets how far the targets lie.", ("fit",)),
        ("model.lambda_r", "NUMBER", "Sets what it costs to move the weights.", ("fit",)),
        ("model.damping", "NAME", "Takes lambda_r absolute or relative.", ("fit",)),
        ("model.optimizer", "CLASS", "Applies the displacements (SGD, rate 1).", ("fit",)),
        ("model.rest_optimizer", "CLASS", "Trains what is not local (AdamW).", ("fit",)),
        ("model.lr_scheduler", "CLASS", "Schedules the outer rate.", ("fit",)),
    ),
    "Network and data": (
        ("model.network", "CLASS", "Maps inputs to outputs, as any nn.Module.", _ALL),
        ("model.task", "CLASS", "Gives loss and metrics.", _ALL),
        ("data", "CLASS", "Gives the batches.", _ALL),
        ("data.batch_size", "NUMBER", "Sets the samples a batch and process.", _ALL),
    ),
    "Run": (
        ("config", "FILE", "Reads settings from a file.", _ALL),
        ("seed_everything", "NUMBER", "Seeds weights and order of batches.", _ALL),
        ("threads", "NUMBER", "Sets the CPU threads of torch.", _ALL),
        ("trainer.max_epochs", "NUMBER", "Ends the fit after so many epochs.", ("fit",)),
        ("trainer.max_steps", "NUMBER", "Ends the fit after so many steps.", ("fit",)),
        ("trainer.accelerator", "NAME", "Takes cpu, gpu or auto.", _ALL),
        ("trainer.devices", "NUMBER", "Sets the number of processes.", _ALL),
        ("trainer.precision", "NAME", "Takes 32, bf16-mixed or bf16-true.", _ALL),
    ),
    "Checkpoints and logs": (
        ("ckpt_path", "FILE", "Goes on from a checkpoint, or from last.", ("fit",)),
        ("ckpt_path", "FILE", "Takes a checkpoint, or best or last.", _ALL[1:]),
        ("checkpoints.minutes", "NUMBER", "Writes a checkpoint so often (5).", ("fit",)),
        ("checkpoints.every_n_steps", "N", "Writes a checkpoint every N steps.", ("fit",)),
        ("local_losses.every_n_steps", "N", "Logs the local losses every N steps.", ("fit",)),
        ("trainer.log_every_n_steps", "N", "Logs the metrics every N steps.", ("fit",)),
        ("trainer.logger", "CLASS", "Takes TensorBoardLogger or CSVLogger.", ("fit",)),
        ("trainer.enable_progress_bar", "B", "Shows no progress bar if it is false.", _ALL),
        ("predictions.path", "FILE", "Writes the predictions there.", ("predict",)),
    ),
}
_SHOWN = {"solver": "Solvers", "oracle": "Oracles", "network": "Networks", "task": "Tasks", "data": "Data"}


def page(arguments: Sequence[str]) -> str | None:
    """The page that a command line asks for, None where it asks for none of these.

    Args:
        arguments: Arguments of the command.

    Raises:
        UserError: For the help of a class that there is not.
    """
    for index, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        key = flag.removeprefix("--").removesuffix(".help")
        if flag.startswith("--") and flag.endswith(".help") and key.rpartition(".")[2] in CLASSES:
            return _of_class(key, value if equals else next(iter(arguments[index + 1 : index + 2]), ""))
    asked = next((i for i, argument in enumerate(arguments) if argument in ("-h", "--help")), None)
    if asked is None or arguments[asked + 1 : asked + 2] == ["all"]:
        return None
    return command_page(arguments[0]) if arguments[0] in _COMMANDS else main_page()


def long_form(arguments: Sequence[str]) -> list[str]:
    """The arguments with which the parser lists all settings, where `--help all` asks for that.

    Args:
        arguments: Arguments of the command.
    """
    asked = any(pair == ("--help", "all") for pair in zip(arguments, arguments[1:], strict=False))
    return [argument for argument in arguments if not (asked and argument == "all")]


def main_page() -> str:
    """What `locoprop --help` shows."""
    commands = "\n".join(f"  {name:<12}{told}" for name, told in _COMMANDS.items())
    return _MAIN.format(commands=commands, classes=_classes())


def command_page(command: str) -> str:
    """What `locoprop COMMAND --help` shows.

    Args:
        command: The command.
    """
    groups = []
    for title, settings in _GROUPS.items():
        lines = [
            f"  {f'--{name} {value}'.rstrip():<{_COLUMN}} {told}" for name, value, told, of in settings if command in of
        ]
        groups.append("\n".join([f"{title}:", *lines, ""]))
    kinds = [*_SHOWN] if command == "fit" else ["network", "task", "data"]
    return _PAGE.format(command=command, told=_COMMANDS[command], groups="\n".join(groups), classes=_classes(kinds))


def _classes(kinds: Sequence[str] = tuple(_SHOWN)) -> str:
    """The classes of this package that can be named without their paths."""
    return "\n".join(
        fill(
            ", ".join(classes_of(key, ours=True)) + ".",
            _WIDTH,
            initial_indent=f"{_SHOWN[key] + ':':<10}",
            subsequent_indent=" " * 10,
        )
        for key in kinds
    )


def _of_class(key: str, name: str) -> str:
    """The settings of a class, or the classes of a setting."""
    known = classes_of(key.rpartition(".")[2])
    if not name or name.startswith("-"):
        shown = classes_of(key.rpartition(".")[2], ours=True) or known
        lines = [shorten(f"{one} {_first(known[one])}", _WIDTH - 3, placeholder=" ...") for one in shown]
        lines = [f"  {line.replace(' ', ': ', 1)}" for line in lines]
        if others := [one for one in known if one not in shown]:
            lines.append(fill(f"Also {', '.join(others)}.", _WIDTH, initial_indent="  ", subsequent_indent="    "))
        return "\n".join([f"Classes for --{key}; the settings of one: --{key}.help CLASS", *lines, ""])
    made = known.get(name.rpartition(".")[2])
    if "." in name and (made is None or not _is_path(made, name)):
        made = _by_path(name)
    if made is None:
        raise UserError(f"--{key}.help {name}: is not known; take one of {', '.join(known)}.")
    told = parse(made.__doc__ or "")
    texts = {param.arg_name: param.description or "" for param in told.params}
    parts = [fill(f"{made.__name__}: {told.short_description or ''}", _WIDTH), ""]
    for param in inspect.signature(made).parameters.values():
        if param.kind in (param.VAR_KEYWORD, param.VAR_POSITIONAL) or param.name == "params":
            continue
        head = f"--{key}.{param.name} {_kind(param)}".rstrip()
        text = " ".join(texts.get(param.name, "").split())
        if names := classes_of(param.name, ours=True):
            text = f"{text} Take {', '.join(names)}, or a class by its path."
        parts += [
            fill(head, _WIDTH, initial_indent="  ", subsequent_indent=" " * 6, break_long_words=False),
            *([indent(fill(text, _WIDTH - 6), " " * 6)] if text else []),
        ]
    return "\n".join([*parts, ""])


def _is_path(made: type, name: str) -> bool:
    """Whether a dotted name is that of a class, where it is defined or where the package shows it."""
    return f"{made.__module__}.{made.__name__}".startswith(name.rpartition(".")[0])


def _by_path(name: str) -> type | None:
    """The class of another package, None where there is none."""
    module, _, name = name.rpartition(".")
    try:
        made = getattr(import_module(module), name, None)
    except ImportError:
        return None
    return made if isinstance(made, type) else None


def _first(made: type) -> str:
    """The first line of what a class says of itself."""
    return (parse(made.__doc__ or "").short_description or "").partition("\n")[0]


def _kind(param: inspect.Parameter) -> str:
    """Type and default of a setting, as short as they can be told."""
    if param.name in CLASSES:
        return "CLASS"
    text = "" if param.annotation is param.empty else inspect.formatannotation(param.annotation)
    text = re.sub(r"\b(\w+\.)+", "", text).replace("NoneType", "null").replace("None", "null")
    text = re.sub(r"Literal\[(.*?)\]", lambda found: found[1].replace("'", "").replace(", ", " | "), text)
    if param.default is param.empty:
        return f"{text} (required)"
    return f"{text} (default: {'null' if param.default is None else param.default})"
