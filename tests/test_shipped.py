"""Configurations, spaces and studies are found by name from any folder, and listed."""

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from locoprop_lightning import __main__ as command
from locoprop_lightning.errors import UserError
from locoprop_lightning.shipped import (
    CONFIGS,
    NETWORKS,
    PACKAGE,
    SPACES,
    STUDIES,
    WIDTH,
    about,
    find,
    listing,
    name_of,
    names,
)
from tests.support import ROOT

pytestmark = pytest.mark.usefixtures("folder")


@pytest.mark.parametrize(
    ("name", "kind", "path"),
    [
        ("digits/foof", CONFIGS, "configs/digits/foof.yaml"),
        ("digits/foof.yaml", CONFIGS, "configs/digits/foof.yaml"),
        ("configs/digits/foof.yaml", CONFIGS, "configs/digits/foof.yaml"),
        ("foof", SPACES, "tune/spaces/foof.yaml"),
        ("tune/spaces/foof.yaml", SPACES, "tune/spaces/foof.yaml"),
        ("digits", STUDIES, "tune/studies/digits.yaml"),
    ],
)
def test_shipped_files_are_found_from_an_empty_folder(name, kind, path):
    assert find(name, kind, "") == ROOT / path


@pytest.mark.parametrize("file", ["digits/foof", "digits/foof.yaml"])
def test_a_file_of_the_working_directory_goes_first(file):
    Path("digits").mkdir()
    Path(file).write_text("mine")
    assert find("digits/foof", CONFIGS, "").read_text() == "mine"
    assert find("digits/adam", CONFIGS, "") == ROOT / "configs/digits/adam.yaml"


@pytest.mark.parametrize(
    ("name", "kind", "near"),
    [
        ("digits/fof", CONFIGS, "digits/foof, "),
        ("foof", CONFIGS, "autoencoder/foof, digits/foof, fashion_mnist/foof, review_code/foof; "),
        ("digit", STUDIES, "near names are digits; "),
        ("../../setup", SPACES, "and none is shipped; "),
    ],
)
def test_unknown_names_are_told_with_near_ones(name, kind, near):
    with pytest.raises(UserError) as refusal:
        find(name, kind, "--x ")
    text = str(refusal.value)
    assert text.startswith(f"--x {name}: there is no such file, and none is shipped") and near in text
    assert text.endswith("; locoprop configs lists them.")


def test_names_of_files():
    assert name_of(ROOT / "configs/digits/foof.yaml") == "digits/foof"
    assert name_of(ROOT / "setup.cfg") is None


def test_every_network_is_described():
    assert {name.partition("/")[0] for name in names(CONFIGS)} == NETWORKS.keys()


@pytest.mark.parametrize("path", [*names(CONFIGS).values(), *names(STUDIES).values()], ids=lambda path: path.stem)
def test_every_file_begins_with_what_it_is(path):
    text = path.read_text()
    assert text.startswith("# ") and about(path).endswith(".") and isinstance(yaml.safe_load(text), dict)


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["locoprop", *arguments])
    command.main()


def test_the_list_has_all_and_fits_a_terminal(monkeypatch, capsys):
    run(monkeypatch, "configs")
    lines = capsys.readouterr().out.splitlines()
    assert lines == listing().splitlines() and max(map(len, lines)) <= WIDTH
    assert len([line for line in lines if line.startswith("  ")]) >= len(names(CONFIGS)) + len(names(STUDIES)) + 2
    assert all(space in " ".join(lines) for space in names(SPACES))


def test_a_configuration_is_printed(monkeypatch, capsys):
    run(monkeypatch, "configs", "digits/foof")
    assert capsys.readouterr().out == (ROOT / "configs/digits/foof.yaml").read_text()


@pytest.mark.parametrize(("arguments", "said"), [(["digits/fof"], "digits/foof"), (["a", "b"], "b: is one too many")])
def test_mistakes_end_with_one_sentence(monkeypatch, capsys, arguments, said):
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, "configs", *arguments)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.startswith("locoprop configs: error: ") and said in error


def test_a_fit_takes_a_name_and_writes_here(monkeypatch, capsys):
    quick = ["--trainer.max_steps=1", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    run(monkeypatch, "fit", "--config", "digits/foof", *quick, "--trainer.limit_val_batches=1")
    assert Path("runs/digits/foof/version_0/config.yaml").is_file() and "ClosedForm" in capsys.readouterr().out


def test_a_misspelt_name_ends_a_fit_with_near_ones(monkeypatch, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, "fit", "--config=digits/fof")
    assert stopped.value.code == 2 and "config=digits/fof: there is no such file" in capsys.readouterr().err


def test_modules_of_the_working_directory_are_found_behind_all_others(monkeypatch, capsys):
    Path("module_here.py").write_text(
        "from locoprop_lightning.solvers import GradientDescent\n\n\nclass Mine(GradientDescent):\n    pass\n"
    )
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, "fit", "--config", "digits/foof", "--model.solver", "module_here.Mine", "--print_config")
    assert stopped.value.code == 0 and sys.path[-1] == "" and "module_here.Mine" in capsys.readouterr().out


class Stops:
    """Ctrl-C while a module is imported."""

    def __init__(self, name):
        self.name = name

    def find_spec(self, name, path=None, target=None):
        if name == self.name:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("start", "module"), [("main", "cli"), ("tune", "tune.__main__"), ("compare", "results.compare")]
)
def test_ctrl_c_while_packages_are_imported_ends_with_one_sentence(monkeypatch, capsys, start, module):
    above, _, last = f"{PACKAGE.name}.{module}".rpartition(".")
    monkeypatch.delitem(sys.modules, f"{above}.{last}", raising=False)
    monkeypatch.delattr(import_module(above), last, raising=False)
    monkeypatch.setattr(sys, "meta_path", [Stops(f"{above}.{last}"), *sys.meta_path])
    monkeypatch.setattr(sys, "argv", ["locoprop", "fit", "--config", "digits/foof"])
    with pytest.raises(SystemExit) as stopped:
        getattr(command, start)()
    said = capsys.readouterr().err
    assert stopped.value.code == 130 and re.fullmatch(r"locoprop(-\w+)?: stopped by Ctrl-C\.\n", said)


def test_who_reads_the_list_may_stop():
    line = f"{sys.executable} -m locoprop_lightning configs | head -1"
    run = subprocess.run(["bash", "-o", "pipefail", "-c", line], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0 and run.stderr == "" and run.stdout.count("\n") == 1


def test_a_package_without_its_files_is_not_built():
    """A build that lacks them would look whole."""
    for name in ("setup.py", "setup.cfg", "pyproject.toml"):
        Path(name).write_text((ROOT / name).read_text())
    Path("locoprop_lightning").mkdir()
    Path("locoprop_lightning/__init__.py").touch()
    build = [sys.executable, "setup.py", "build_py"]
    done = subprocess.run(build, capture_output=True, text=True)
    said = "configs, tune/spaces, tune/studies: not here; build in the whole project, or the package lacks them."
    assert done.returncode and said in done.stderr
