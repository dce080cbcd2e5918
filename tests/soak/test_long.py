"""20,000 steps with every monitor on: memory, open files and threads stay, and the logs can be read to the end."""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from lightning.pytorch import Callback

from locoprop_lightning.results.events import folders, read_scalars
from tests.support import ROOT

STEPS, EVERY, SETTLED = 20_000, 200, 2_000
CALLBACKS = ("LearningRateMonitor", "DeviceStatsMonitor")  # beside those that every fit has


class Gauge(Callback):
    """Writes what its process holds into FOLDER/gauge_RANK.jsonl."""

    def __init__(self, folder: str):
        self.folder = Path(folder)

    def on_train_batch_end(self, trainer, pl_module, *_):
        if trainer.global_step % EVERY:
            return
        own = psutil.Process()
        line = {
            "step": trainer.global_step,
            "bytes": own.memory_info().rss,
            "files": own.num_fds(),
            "threads": own.num_threads(),
        }
        with (self.folder / f"gauge_{trainer.global_rank}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("name", ["locoprop_m_anderson", "locoprop_s_whitened"])
def test_a_long_run_holds_no_more_than_a_short_one(name, devices, tmp_path):
    command = [sys.executable, "-m", "locoprop_lightning", "fit", "--config", str(ROOT / f"configs/digits/{name}.yaml")]
    command += ["--trainer.max_epochs=-1", f"--trainer.max_steps={STEPS}", "--trainer.accelerator=cpu"]
    command += ["--trainer.enable_progress_bar=false", "--checkpoints.every_n_steps=1000"]
    command += [f"--trainer.logger.init_args.save_dir={tmp_path}", "--local_losses.every_n_steps=10"]
    command += ["--local_losses.histograms=true", "--trainer.check_val_every_n_epoch=20"]
    for callback in CALLBACKS:
        command += [f"--trainer.callbacks+={callback}"]
    command += ["--trainer.callbacks+=tests.soak.test_long.Gauge", f"--trainer.callbacks.folder={tmp_path}"]
    command += [f"--trainer.devices={devices}", *(["--trainer.strategy=ddp"] if devices > 1 else [])]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    for rank in range(devices):
        lines = [json.loads(line) for line in (tmp_path / f"gauge_{rank}.jsonl").read_text().splitlines()]
        assert lines[-1]["step"] == STEPS
        settled = [line for line in lines if line["step"] >= SETTLED]
        first, last = settled[:10], settled[-10:]
        grown = {
            key: statistics.median(x[key] for x in last) / statistics.median(x[key] for x in first) for key in last[0]
        }
        print(f"{name}, process {rank} of {devices}: {settled[0]} to {settled[-1]}, grown by {grown}")
        assert grown["bytes"] < 1.02
        for kind in ("files", "threads"):
            assert max(x[kind] for x in last) <= max(x[kind] for x in first)
    seen, points = set(), {}
    for folder in folders(tmp_path):
        points |= read_scalars(folder, {"train/loss"}, seen)
    assert max(points["train/loss"]) == STEPS - 1 and len(points["train/loss"]) == STEPS
    size = sum(path.stat().st_size for path in tmp_path.rglob("events*"))
    print(f"{name} on {devices}: {size / 2**20:.0f} MiB of logs, {len(seen)} tags")
    assert run.stderr == "" or "Error" not in run.stderr
