"""A run that goes on with another configuration than that of its checkpoint."""

import pytest
import torch

from locoprop_lightning.checkpoints import FORMAT, STAMP
from locoprop_lightning.cli import main
from locoprop_lightning.edited_settings import edited
from locoprop_lightning.errors import UserError
from tests.support import ROOT

WHITENED = "digits/locoprop_s_whitened"
SCHEDULED = {"model": "LocoPropModule", "model.lr_scheduler": "locoprop_lightning.optimizers.LinearDecay"}


def options(*more, name=WHITENED):
    shown = ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu", "--trainer.limit_test_batches=1"]
    return ["fit", "--config", str(ROOT / f"configs/{name}.yaml"), *shown, *more]


@pytest.fixture
def resume(folder):
    """Goes on with a run of one epoch, and gives the checkpoint at its end."""
    main(options("--trainer.max_epochs=1"))

    def resume(*more):
        main(options("--trainer.max_epochs=2", "--ckpt_path=last", *more))
        return torch.load(max((folder / "runs").rglob("step=*.ckpt"), key=lambda path: path.stat().st_mtime_ns))

    return resume


HOLD = "holds from here on"
MAY = {
    "lambda_a": (["--model.lambda_a=0.07"], ["model.lambda_a: 0.05 before, now 0.07; " + HOLD]),
    "seed": (["--seed_everything=3", "--threads=1", "--local_losses.every_n_steps=5"], []),
    "solver": (
        ["--model.solver=locoprop_lightning.solvers.Majorization"],
        ["now locoprop_lightning.solvers.Majorization; what the former one had learnt is forgotten"],
    ),
    "oracle": (
        ["--model.oracle=locoprop_lightning.oracles.RMSOracle"],
        ["now locoprop_lightning.oracles.RMSOracle; what the former one had learnt is forgotten", "nothing"],
    ),
    "schedule": (["--model.lr_scheduler.end_factor=0.5"], ["end_factor: 0.02 before, now 0.5; " + HOLD]),
    "batches": (["--data.batch_size=64"], ["data.batch_size: 128 before, now 64; " + HOLD]),
}


@pytest.mark.parametrize("case", MAY)
def test_what_may_change_is_said_and_holds(case, resume, capsys):
    more, expected = MAY[case]
    capsys.readouterr()
    written = resume(*more)["settings"]
    assert all(str(written[flag[2:].partition("=")[0]]) == flag.partition("=")[2] for flag in more)
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("checkpoints: ")]
    for part in [*expected, f"trainer.max_epochs: 1 before, now 2; {HOLD}."]:
        assert any(part in line for line in told), told
    assert expected or len(told) == 1


MAY_NOT = {
    "activation": ("--model.network.activation=relu", "its weights are of that network"),
    "task": ("--model.task=locoprop_lightning.tasks.Reconstruction", "its weights are of that network and task"),
    "optimizer": ("--model.optimizer.momentum=0.5", "goes on with the settings that it was saved with"),
    "rest": ("--model.rest_optimizer.weight_decay=0.3", "goes on with the settings that it was saved with"),
    "schedule": ("--model.lr_scheduler=torch.optim.lr_scheduler.ConstantLR", "a schedule goes on with the settings"),
}


@pytest.mark.parametrize("case", MAY_NOT)
def test_what_may_not_change_is_refused(case, resume, capsys):
    flag, reason = MAY_NOT[case]
    with pytest.raises(SystemExit) as stopped:
        resume(flag)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("locoprop: error: ")]
    assert stopped.value.code == 2 and line.startswith(f"locoprop: error: {flag}: the checkpoint's run had ")
    assert reason in line and line.endswith("; resume with that, or start a run of its own.")


def test_rates_hold_where_the_schedule_makes_them_anew():
    rate = {"model.optimizer": "torch.optim.SGD", "model.optimizer.lr": 0.1}
    changed = rate | {"model.optimizer.lr": 0.2}
    assert edited(SCHEDULED | rate, SCHEDULED | changed) == [f"model.optimizer.lr: 0.1 before, now 0.2; {HOLD}"]
    for settings in ({}, {"model.lr_scheduler": "torch.optim.lr_scheduler.StepLR"}):
        with pytest.raises(UserError, match=r"model.optimizer.lr=0.2: the checkpoint's run had 0.1, and an optimizer"):
            edited(settings | rate, settings | changed)


def test_a_checkpoint_of_a_later_format_is_refused(resume, folder, capsys):
    path = next((folder / "runs").rglob("step=12.ckpt"))
    content = torch.load(path, weights_only=True)
    assert content[STAMP]["format"] == FORMAT and content[STAMP]["version"]
    torch.save(content | {STAMP: {"format": FORMAT + 1, "version": "9.0"}}, path)
    with pytest.raises(SystemExit):
        resume()
    told = f"the checkpoint has format {FORMAT + 1}, written by version 9.0; this version reads formats up to {FORMAT}"
    assert told in capsys.readouterr().err
