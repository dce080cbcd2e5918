"""Commands of the pages, as they stand there, that take long; `tests/test_commands.py` looks at all of them."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from glob import glob
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from tests.support import ROOT, wait_for
from tests.test_commands import COMMANDS, TEXTS, is_quick


def run(command, folder, **environment):
    """What a command prints, which ends well in a folder."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{folder}"} | environment
    done = subprocess.run([sys.executable, *command], env=environment, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, (command, done.stdout[-1000:], done.stderr[-2000:])
    return done.stdout


@contextmanager
def running(program, arguments, **options):
    """A program of this environment that runs until it is told to end."""
    with subprocess.Popen([f"{sys.prefix}/bin/{program}", *arguments], **options) as process:
        try:
            yield process
        finally:
            process.terminate()


def shows(address, least):
    """Whether a TensorBoard server answers, with so many runs."""
    try:
        with urlopen(f"{address}/data/runs") as answer:
            return len(json.load(answer)) >= least
    except URLError:
        return False


def serve(arguments, folder):
    """Starts TensorBoard, asks it for the runs that are there, if there are any yet, and stops it."""
    least = int((folder / "runs").exists())
    with running("tensorboard", arguments, cwd=folder) as server:
        wait_for(lambda: shows("http://127.0.0.1:6006", least), server)


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
@pytest.mark.timeout(600)
def test_the_cluster_of_a_page_runs_a_sweep(tmp_path):
    """Its machines are processes on loopback with one home."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    address, mode, token = "10.0.0.1", "RAY_AUTH_MODE=token", ["ray", "get-auth-token", "--generate"]
    values = {"--config": "digits/foof", "--space": "foof", "--storage": str(tmp_path / "shared")}
    short = ["--samples", "4", "--name", "first", "--set", "trainer.max_epochs=1"]
    page = COMMANDS["sweeping.md"]
    assert page.index(["export", mode]) < page.index(token)
    nodes = [words[1:] for words in page if words[:2] == ["ray", "start"]]
    (sweep,) = (words[1:] for words in page if words[0] == "locoprop-tune" and "--address" in words)
    for option, value in values.items():
        sweep[sweep.index(option) + 1] = value
    with tempfile.TemporaryDirectory(prefix="r") as home, ExitStack() as stack:  # sockets have short names
        own = {"HOME": home, "RAY_TMPDIR": home} | dict([mode.split("=")])
        subprocess.run([f"{sys.prefix}/bin/ray", *token[1:]], env=os.environ | own, check=True)
        for node in nodes:
            words = [word.replace(address, "127.0.0.1") for word in node]
            options = {"env": os.environ | own, "stdout": subprocess.PIPE, "text": True}
            process = stack.enter_context(running("ray", [*words, "--block"], **options))
            assert any("Ray runtime started" in line for line in process.stdout), node
        printed = run(["-m", "locoprop_lightning.tune", *sweep, *short], tmp_path, **own)
    assert len(nodes) == 2 and "best: " in printed
    assert len([*tmp_path.glob("shared/first/*/progress/trial.json")]) == 4


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
        elif program == "tensorboard":
            serve(arguments, tmp_path)
            printed = ""
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
