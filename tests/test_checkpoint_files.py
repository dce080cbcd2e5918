"""Files of checkpoints: damaged and foreign ones, and the newest that is whole."""

import os
import re

import pytest
import torch

from locoprop_lightning.checkpoint_files import checked, last_of
from locoprop_lightning.cli import main
from locoprop_lightning.errors import UserError
from tests.support import ROOT

CONTENT = {
    "state_dict": {},
    "global_step": 1,
    "epoch": 0,
    "pytorch-lightning_version": "2.6",
    "optimizer_states": [],
    "lr_schedulers": [],
}


class Stranger:
    """What no checkpoint may hold."""


def command(config, folder, *more):
    """Arguments of a fit on the digits that writes into a folder."""
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.limit_val_batches=0", "--trainer.accelerator=cpu"]
    name = ["--trainer.logger.name=run", f"--trainer.logger.save_dir={folder}"]
    return ["fit", "--config", str(ROOT / f"configs/digits/{config}.yaml"), *quiet, *name, *map(str, more)]


@pytest.fixture
def checkpoints(tmp_path):
    """Two checkpoints, the older one first."""
    paths = [tmp_path / f"checkpoints/step={step}.ckpt" for step in (1, 2)]
    paths[0].parent.mkdir()
    for age, path in enumerate(paths):
        torch.save(CONTENT | {"state_dict": {"w": torch.ones(300)}, "global_step": age}, path)
        os.utime(path, (age, age))
    return paths


def truncate(path):
    path.write_bytes(path.read_bytes()[:-200])


def flip(path):
    content = bytearray(path.read_bytes())
    at = content.index(torch.ones(3).numpy().tobytes())
    content[at] ^= 1
    path.write_bytes(content)


def foreign(path):
    torch.save({"state_dict": {}}, path)


def objects(path):
    torch.save(CONTENT | {"optimizer_states": [Stranger]}, path)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (truncate, "is damaged or cut short"),
        (flip, "is damaged (the checksum of its part"),
        (foreign, "is no checkpoint of a run: it has no global_step of one"),
        (objects, "holds what torch does not read safely, such as objects"),
    ],
)
def test_what_is_no_whole_checkpoint_is_refused_and_the_last_whole_one_named(checkpoints, damage, reason):
    older, newer = checkpoints
    assert last_of(older.parent, "*.ckpt") == (newer, []) and checked(newer, resume=True) == newer
    when = newer.stat()
    damage(newer)
    os.utime(newer, (when.st_atime, when.st_mtime))
    with pytest.raises(UserError, match=re.escape(f"ckpt_path={newer}: {reason}")) as refused:
        checked(newer, resume=True)
    assert str(refused.value).endswith(f"; the last whole one beside it is {older}.")
    path, (passed,) = last_of(older.parent, "*.ckpt")
    assert path == older and passed.startswith(f"{newer} {reason}")


@pytest.mark.usefixtures("folder")
def test_the_last_checkpoint_is_found_or_missed_in_a_sentence(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(command("foof", tmp_path, "--ckpt_path=last"))
    assert stopped.value.code == 2 and not list(tmp_path.iterdir())
    assert "ckpt_path=last: there is no whole checkpoint at " in capsys.readouterr().err
    main(command("foof", tmp_path, "--trainer.max_steps=2"))
    main(command("foof", tmp_path, "--trainer.max_steps=4", "--ckpt_path=last"))
    assert sorted(path.name for path in tmp_path.rglob("version_1/checkpoints/*")) == ["step=4.ckpt"]
    main(command("foof", tmp_path, "--trainer.max_steps=1"))
    assert "--ckpt_path last would go on from " in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(command("foof", tmp_path, "--model.lr_scheduler=LinearDecay", "--model.lr_scheduler.warmup=500"))
    assert "would go on from" not in capsys.readouterr().err  # of a run that is refused
    with pytest.raises(SystemExit):
        main(command("foof", tmp_path, "--trainer.max_steps=3", "--trainer.logger.version=1"))
    assert "holds a run already; go on with it by --ckpt_path last, or name another folder" in capsys.readouterr().err
