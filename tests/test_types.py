"""The package is typed for its users, in a wheel and in an editable install."""

import subprocess
import sys
import zipfile

import pytest

from tests.support import ROOT

USER = ROOT / "tests" / "typed" / "user.py"


STRICT = """
[mypy-user,bad]
check_untyped_defs = True
disallow_any_generics = True
disallow_incomplete_defs = True
disallow_subclassing_any = True
disallow_untyped_calls = True
disallow_untyped_decorators = True
extra_checks = True
strict_bytes = True
strict_equality = True
warn_return_any = True
"""  # what --strict has beyond the project's own options, which all other files keep, and with them their cache


def mypy(file):
    """What mypy finds in a user's file."""
    config = file.parent / "setup.cfg"
    config.write_text((ROOT / "setup.cfg").read_text() + STRICT)
    command = [sys.executable, "-m", "mypy", f"--config-file={config}", str(file)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.timeout(1200)  # the first run reads all of torch and Lightning
def test_a_users_file_is_strictly_typed(tmp_path):
    good = tmp_path / "user.py"
    text = USER.read_text()
    assert "type: ignore" not in text and "Any" not in text
    good.write_text(text)
    done = mypy(good)
    assert done.returncode == 0, done.stdout + done.stderr
    bad = tmp_path / "bad.py"
    bad.write_text(
        "from locoprop_lightning import LocoPropModule\n"
        "from locoprop_lightning.module import SGD\n"
        "LocoPropModule(1, lamda_a=2)\n"
        "def untyped(x: list): return x\n"
    )
    done = mypy(bad)
    told = done.stdout + done.stderr
    assert 'Unexpected keyword argument "lamda_a"' in told and 'does not explicitly export attribute "SGD"' in told
    assert 'Missing type arguments for generic type "list"' in told and "missing a return type annotation" in told


def test_an_editable_install_is_a_path_that_type_checkers_follow(tmp_path):
    pytest.importorskip("setuptools", reason="setuptools is not installed")
    script = f"from setuptools import build_meta; print(build_meta.build_editable({str(tmp_path)!r}))"
    before = sorted(ROOT.glob("*.egg-info"))
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(tmp_path / done.stdout.splitlines()[-1]) as wheel:
        (path,) = [name for name in wheel.namelist() if name.endswith(".pth")]
        assert wheel.read(path).decode().strip() == str(ROOT)
        assert not [name for name in wheel.namelist() if name.endswith(".py")]
    assert (ROOT / "locoprop_lightning" / "py.typed").is_file()
    if not before:
        for folder in ROOT.glob("*.egg-info"):
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()
