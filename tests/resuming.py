"""What a run goes on from, and a run that is killed again and again beside the same one that is not."""

import os
import random
import signal
import subprocess
import sys
import time

import torch

from tests.support import ROOT, flat

KILLS = 3
PARTS = ("state_dict", "optimizer_states", "lr_schedulers", "local_layers", "random_state")


def differences(config, folder, more=(), devices=1):
    """What differs at the end between a run that was killed at three random steps and an undisturbed one.

    Args:
        config: Configuration, relative to the project's root.
        folder: Where both write.
        more: Further arguments of the command.
        devices: Processes of the run.

    Returns:
        The names of the entries of the last checkpoint that are not the same bit for bit, and the steps from which
        the killed run went on.
    """
    command = [sys.executable, "-m", "locoprop_lightning", "fit", "--config", str(ROOT / config)]
    command += ["--trainer.enable_progress_bar=false", "--trainer.limit_val_batches=0", "--trainer.accelerator=cpu"]
    command += [f"--trainer.devices={devices}", *(["--trainer.strategy=ddp"] if devices > 1 else []), *more]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("PL_GLOBAL_SEED", None)

    def save_in(name):
        return f"--trainer.logger.init_args.save_dir={folder / name}"

    def to_its_end(name, *others):
        run = subprocess.run([*command, *others, save_in(name)], env=environment, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr

    to_its_end("whole")
    last = newest(folder / "whole")
    draw, others, seen, went_on = random.Random(str(config)), [], 0, []
    for i in range(KILLS):
        aim = (i + draw.random()) * last / (KILLS + 1)  # the last quarter is left, for the process to be alive still
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment}
        process = subprocess.Popen([*command, *others, save_in("killed")], start_new_session=True, **quiet)
        while process.poll() is None and newest(folder / "killed") <= max(aim, seen):
            time.sleep(0.01)
        time.sleep(draw.random() / 20)
        assert process.poll() is None, "it ended before it was killed"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        seen, others = newest(folder / "killed"), ["--ckpt_path", "last"]
        went_on.append(seen)
    to_its_end("killed", *others)
    whole, killed = (flat(read(next((folder / name).rglob(f"step={last}.ckpt")))) for name in ("whole", "killed"))
    names = whole.keys() | killed.keys()
    other = [n for n in names if n not in whole or n not in killed or not whole[n].equal(killed[n])]
    return sorted(other), went_on


def newest(folder):
    """The step of the newest checkpoint, 0 where there is none."""
    return max((int(path.stem[5:]) for path in folder.rglob("step=*.ckpt")), default=0)


def read(path):
    """What of a checkpoint decides how the run goes on."""
    content = torch.load(path, weights_only=True)
    return {part: keyed(content[part]) for part in PARTS if part in content}


def keyed(state):
    """A state as ``same`` takes it: lists as dictionaries by position."""
    if isinstance(state, list | tuple):
        state = dict(enumerate(state))
    if isinstance(state, dict):
        return {key: keyed(value) for key, value in state.items()}
    return str(state) if state is None or isinstance(state, torch.dtype) else state
