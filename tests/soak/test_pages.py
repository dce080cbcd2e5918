"""The sweeps and studies that the pages show, as they stand there; `tests/test_commands.py` looks at all commands."""

import os
import re
import subprocess
import sys

import pytest

from tests.support import ROOT
from tests.test_commands import COMMANDS, TEXTS


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("page", ["sweeping.md", "studies.md"])
def test_sweeps_and_studies_of_a_page_run(page, tmp_path):
    """One after the other in a folder of their own; those for a cluster that is not there are left out."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "your_package.py").write_text(re.search(r"```python\n(.*?)```", TEXTS["own_solver.md"], re.S)[1])
    (tmp_path / "mine.yaml").write_text(re.search(r"```yaml\n(heavy_ball:.*?)```", TEXTS["studies.md"], re.S)[1])
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{tmp_path}"}
    ran = 0
    for program, *arguments in COMMANDS[page]:
        if program == "locoprop-tune" and "--address" not in arguments:
            command = [sys.executable, "-m", "locoprop_lightning.tune", *arguments]
            done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
            assert done.returncode == 0, (arguments, done.stdout[-1000:], done.stderr[-2000:])
            ran += 1
    assert ran >= 2
    if page == "studies.md":
        assert "| heavy_ball | 3 |" in (tmp_path / "results" / "digits" / "report.md").read_text()
    else:
        assert len([*tmp_path.glob("runs/tune/first/*/progress/trial.json")]) == 8
