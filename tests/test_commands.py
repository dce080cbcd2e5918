"""The commands that the pages show: those on the digits run, of all others the settings and files are looked at."""

import argparse
import itertools
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from locoprop_lightning import shipped
from locoprop_lightning.cli import LocoPropCLI, main
from locoprop_lightning.results.compare import main as compare
from locoprop_lightning.tune.__main__ import main as tune
from locoprop_lightning.tune.space import Space
from locoprop_lightning.tune.study import spec
from tests.support import ROOT, script

TEXTS = {path.name: path.read_text() for path in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"))}
OF_THE_SYSTEM = {"docker", "export", "mkdir", "pip", "ray", "source", "tensorboard"}
PROGRAMS = OF_THE_SYSTEM | {"locoprop", "locoprop-compare", "locoprop-tune", "make", "python"}
QUICK = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]


def commands(text):
    """What a page has between paragraphs, four columns in, with the words of each command."""
    found = []
    for block in re.findall(r"^\n((?:    .*\n)+)", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(re.sub(r"^ *(head|worker)\$", "", line), comments=True)
            while re.match(r"[A-Z]+=", words[0]):
                words = words[1:]
            if words[0] not in PROGRAMS:
                break  # a table of the command's
            found.append([one for word in words for one in braces(word)])
    return found


def braces(word):
    """What the shell makes of ``{a,b}``."""
    parts = [part.split(",") if index % 2 else [part] for index, part in enumerate(re.split(r"\{([\w,]+)\}", word))]
    return ["".join(parts) for parts in itertools.product(*parts)]


COMMANDS = {name: found for name, text in TEXTS.items() if (found := commands(text))}


class ParsedError(Exception):
    """The command has been understood, and would begin."""


class Parsing(LocoPropCLI):
    """Makes model, data and trainer, and ends there."""

    def instantiate_classes(self):
        super().instantiate_classes()
        raise ParsedError


@pytest.fixture
def parsed(monkeypatch):
    """Lets a parser parse, and nothing go on from there; gives what was parsed."""
    kept, parse = {}, argparse.ArgumentParser.parse_args

    def stop(self, *arguments, **more):
        kept["options"] = parse(self, *arguments, **more)
        raise ParsedError

    def understood(command, *arguments):
        with monkeypatch.context() as patch, pytest.raises(ParsedError):
            patch.setattr(argparse.ArgumentParser, "parse_args", stop)
            command(*arguments)
        return kept["options"]

    return understood


def check_tune(words, parsed):
    """The options of `locoprop-tune`, and that the files which it names are there or shipped."""
    options = parsed(tune, words)
    kinds = {"config": shipped.CONFIGS, "space": shipped.SPACES, "study": shipped.STUDIES}
    for name, kind in kinds.items():
        file = getattr(options, name, None)
        assert file is None or str(file) == "..." or shipped.find(file, kind, "").is_file()


def is_quick(arguments):
    """Whether a command of `locoprop` is on the digits, and on one process."""
    return any("digits/" in word for word in arguments) and "--trainer.devices" not in arguments


def check(words, parsed, monkeypatch):
    """Runs a command on the digits, and looks at any other."""
    program, *arguments = words
    if program == "locoprop":
        asked = any(word.endswith("help") for word in arguments)
        if is_quick(arguments) or asked:
            main([*arguments, *([] if asked else QUICK)])
        else:
            with pytest.raises(ParsedError):
                Parsing(arguments)
    elif program == "locoprop-compare":
        compare(arguments)
    elif program == "locoprop-tune":
        check_tune(arguments, parsed)
    elif program == "python":
        folder, name = Path(arguments[0]).parts
        monkeypatch.setattr(sys, "argv", arguments)
        options = parsed(script(Path(name).stem, folder).main)
        for path in (*getattr(options, "configs", ()), *filter(None, [getattr(options, "ms", None)])):
            assert list(ROOT.glob(str(path))), path
    elif program == "make":
        done = subprocess.run(["make", "-n", *arguments], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    else:
        named = [word for word in arguments if word.startswith("docker/")]
        assert all((ROOT / word).is_file() for word in named), named
        if "sweep" in arguments:
            check_tune(arguments[arguments.index("sweep") + 1 :], parsed)


def test_pages_have_commands():
    assert sum(map(len, COMMANDS.values())) > 50
    assert {
        "README.md",
        "tried.md",
        "results.md",
        "inspecting.md",
        "own_solver.md",
        "studies.md",
        "sweeping.md",
    } <= {*COMMANDS}


@pytest.mark.slow
@pytest.mark.parametrize("page", COMMANDS)
def test_commands_are_right(page, folder, monkeypatch, parsed):
    """All of a page, one after the other, in a folder of their own."""
    (folder / "configs").symlink_to(ROOT / "configs")
    blocks = re.findall(r"```python\n(.*?)```", TEXTS["own_solver.md"], re.DOTALL)
    (folder / "your_package.py").write_text(blocks[0])
    monkeypatch.syspath_prepend(folder)
    if page in ("inspecting.md", "predictions.md"):  # whose examples have made a run before
        main(["fit", "--config=configs/digits/foof_rms.yaml", "--trainer.max_epochs=1", *QUICK])
    for words in COMMANDS[page]:
        check(words, parsed, monkeypatch)


def test_spaces_and_studies_are_read(folder):
    """What sweeping.md and studies.md show of their files."""
    (space,) = re.findall(r"```yaml\n(.*?)```", TEXTS["sweeping.md"], re.DOTALL)
    method, study = re.findall(r"```yaml\n(.*?)```", TEXTS["studies.md"], re.DOTALL)
    (folder / "space.yaml").write_text(space)
    assert {"model.lambda_a", "model.oracle.beta"} <= {*Space.load(folder / "space.yaml").dimensions}
    (folder / "mine.yaml").write_text(method)
    loaded = spec.load(shipped.find(Path("digits"), shipped.STUDIES, ""), [folder / "mine.yaml"])
    assert loaded.methods["heavy_ball"].settings["model.solver"] == "your_package.HeavyBall"
    (folder / "mine.yaml").write_text((ROOT / "configs" / "digits" / "foof.yaml").read_text())
    (folder / "study.yaml").write_text(study)
    assert [*spec.load(folder / "study.yaml", []).methods] == ["adam", "foof", "mine"]
