"""Logged runs that are made up, and tables read back."""

import yaml
from torch.utils.tensorboard import SummaryWriter

LOSSES = [4.0, 2.0, 1.0, 0.5]


def write(folder, losses=LOSSES, start=0, pace=None, settings=None, tag="train/loss", every=1):
    """A logged run; pace in milliseconds a step, three steps an epoch."""
    with SummaryWriter(folder) as writer:
        for step, loss in enumerate(losses, start):
            if (step + 1) % every == 0:
                writer.add_scalar(tag, loss, step, walltime=1000 + 10 * step)
                writer.add_scalar("epoch", step // 3, step, walltime=1000 + 10 * step)
                if pace is not None:
                    writer.add_scalar("time/step_ms", pace, step)
    if settings is not None:
        (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    return folder


def settings(seed=0, lambda_a=1.0, **more):
    module = {"class_path": "locoprop_lightning.LocoPropModule", "init_args": {"lambda_a": lambda_a}}
    return {"seed_everything": seed, "model": module, "trainer": {"max_epochs": 2, "logger": {"a": seed}}} | more


def rows(output):
    head, _, *lines = [line for line in output.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in (head, *lines)]
    return {row[0]: dict(zip(cells[0], row, strict=True)) for row in cells[1:]}
