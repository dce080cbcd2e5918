"""The command `locoprop-tune`, its former name, and what it says without Ray."""

import configparser
import os
import subprocess
import sys

import pytest

import locoprop_lightning
from locoprop_lightning import __main__ as scripts
from locoprop_lightning.results.compare import main as compare
from locoprop_lightning.tune.__main__ import main
from tests.support import ROOT


def test_the_former_name_works_in_the_checkout_and_says_the_new_one():
    command = [sys.executable, "-m", "tune", "--help"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0 and done.stdout.startswith("usage: locoprop-tune ")
    assert done.stderr == "python -m tune: is now called locoprop-tune.\n"


def test_the_new_name_is_a_console_script():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    assert (
        f"locoprop-tune = {scripts.__name__}:{scripts.tune.__name__}"
        in settings["options.entry_points"]["console_scripts"]
    )


@pytest.mark.parametrize(
    ("command", "arguments"),
    [(main, ["--version"]), (main, ["study", "--version"]), (compare, ["--version"])],
    ids=["sweep", "study", "compare"],
)
def test_each_command_says_its_version(command, arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        command(arguments)
    assert not stopped.value.code
    assert capsys.readouterr().out == f"locoprop-lightning {locoprop_lightning.__version__}\n"


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("command", ["sweep", "study"])
def test_without_ray_it_says_what_to_install(command, monkeypatch, capsys):
    arguments = {
        "sweep": ["--config", f"{ROOT}/configs/digits/foof.yaml", "--space", f"{ROOT}/tune/spaces/foof.yaml"],
        "study": ["study", f"{ROOT}/tune/studies/digits.yaml"],
    }[command]
    monkeypatch.setitem(sys.modules, "ray", None)
    for name in [name for name in sys.modules if name.startswith("locoprop_lightning.tune.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert (
        "ray is not installed: sweeps and studies need pip install 'locoprop-lightning[tune]'."
        in capsys.readouterr().err
    )
