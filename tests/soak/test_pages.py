"""Commands of the pages, as they stand there, that take long; `tests/test_commands.py` looks at all of them."""

import os
import re
import shutil
import subprocess
import sys
from glob import glob

import pytest

from tests.support import ROOT
from tests.test_commands import COMMANDS, TEXTS, is_quick


def run(command, folder):
    """What a command prints, which ends well in a folder."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{folder}"}
    done = subprocess.run([sys.executable, *command], env=environment, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, (command, done.stdout[-1000:], done.stderr[-2000:])
    return done.stdout


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("page", ["sweeping.md", "studies.md"])
def test_sweeps_and_studies_of_a_page_run(page, tmp_path):
    """One after the other in a folder of their own; those for a cluster that is not there are left out."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "your_package.py").write_text(re.search(r"```python\n(.*?)```", TEXTS["own_solver.md"], re.S)[1])
    (tmp_path / "mine.yaml").write_text(re.search(r"```yaml\n(heavy_ball:.*?)```", TEXTS["studies.md"], re.S)[1])
    ran = 0
    for program, *arguments in COMMANDS[page]:
        if program == "locoprop-tune" and "--address" not in arguments:
            run(["-m", "locoprop_lightning.tune", *arguments], tmp_path)
            ran += 1
    assert ran >= 2
    if page == "studies.md":
        assert "| heavy_ball | 3 |" in (tmp_path / "results" / "digits" / "report.md").read_text()
    else:
        assert len([*tmp_path.glob("runs/tune/first/*/progress/trial.json")]) == 8


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("page", ["README.md", "tried.md", "inspecting.md", "results.md", "performance.md"])
def test_long_fits_and_benchmarks_of_a_page(page, tmp_path):
    """Fits of other networks or on several processes, and benchmarks, in a copy of what is stored.

    Runs whose curves are stored, which take hours, have three steps.
    """
    for name in ("configs", "benchmarks", "scripts"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "docs" / "results", tmp_path / "docs" / "results")
    ran = 0
    for program, *arguments in COMMANDS[page]:
        fits = program == "locoprop" and arguments[0] == "fit" and not arguments[-1].endswith("help")
        if fits and not is_quick(arguments):
            printed = run(["-m", "locoprop_lightning", *arguments], tmp_path)
        elif program == "python" and arguments[0] != "scripts/tensorboard_screenshot.py":  # which needs a browser
            short = ["--max-steps", "3", "--out", "short"] if "run" in arguments else []
            files = [file for word in arguments for file in sorted(glob(word, root_dir=tmp_path)) or [word]]
            printed = run([*files, *short], tmp_path)
        else:
            continue
        if "table" in arguments:
            lines = [line for line in printed.splitlines() if line.startswith("| ")]
            assert len(lines) > 3 and all(line in TEXTS[page] for line in lines), (arguments, printed)
        ran += 1
    assert ran
