"""A sweep of 200 short trials: memory stays, and each trial takes as much of the disk as the one before."""

import os
import statistics
import subprocess
import sys
import time

import psutil
import pytest

from tests.support import ROOT

TRIALS = 200
DONE = "runs/soak/*/progress/trial.json"  # of a trial


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_two_hundred_trials_end_with_flat_memory_and_disk(tmp_path):
    command = [sys.executable, "-m", "locoprop_lightning.tune", "--config", str(ROOT / "configs/digits/foof.yaml")]
    command += ["--space", str(ROOT / "tune/spaces/foof.yaml"), "--storage", str(tmp_path / "runs"), "--name", "soak"]
    command += ["--samples", str(TRIALS), "--search", "random", "--quiet", "--set", "trainer.max_epochs=2"]
    command += ["local_losses.every_n_steps=0"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with (tmp_path / "log").open("w") as log:
        driver = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=tmp_path)
        held = []
        while driver.poll() is None:
            done = len(list(tmp_path.glob(DONE)))
            tree = [psutil.Process(driver.pid), *psutil.Process(driver.pid).children(recursive=True)]
            standing = [one for one in tree if not _is_trial(one)]
            held.append((done, _bytes(tree[:1]), _bytes(standing), sum(map(_files, tree[:1]))))
            time.sleep(2)
    assert driver.returncode == 0, (tmp_path / "log").read_text()[-2000:]
    early = [line for line in held if 0.1 * TRIALS <= line[0] <= 0.2 * TRIALS]
    late = [line for line in held if line[0] >= 0.9 * TRIALS]
    for i, name in enumerate(("driver's bytes", "bytes of driver and services", "driver's open files"), 1):
        first, last = (statistics.median(line[i] for line in lines) for lines in (early, late))
        print(f"{name}: {first} at {TRIALS // 5} trials, {last} at {TRIALS}: {last / first:.3f}")
    trials = sorted(tmp_path.glob(DONE), key=lambda path: path.stat().st_mtime)
    assert len(trials) == TRIALS
    sizes = [sum(f.stat().st_size for f in path.parents[1].rglob("*") if f.is_file()) for path in trials]
    first, last = statistics.median(sizes[:20]), statistics.median(sizes[-20:])
    print(f"bytes of a trial: {first} of the first 20, {last} of the last 20")
    assert last < 1.02 * first
    growth = statistics.median(line[1] for line in late) / statistics.median(line[1] for line in early)
    assert growth < 1.1


def _is_trial(process):
    try:
        return process.name().startswith("ray::")
    except psutil.Error:
        return True


def _bytes(processes):
    total = 0
    for process in processes:
        try:
            total += process.memory_info().rss
        except psutil.Error:
            continue
    return total


def _files(process):
    try:
        return process.num_fds()
    except psutil.Error:
        return 0
