"""Runs what is wrong, and looks at how it ends."""

import shlex
import warnings
from pathlib import Path

import pytest

from tests.support import ROOT

CONFIGS = ROOT / "configs"
QUICK = "--trainer.enable_progress_bar=false --trainer.accelerator=cpu --trainer.max_steps=1 --data.batch_size=300"


def arguments(text):
    """A command line; one that begins with a setting is a fit on the digits."""
    if text.startswith("--"):
        text = f"fit --config CONFIGS/digits/foof.yaml {QUICK} --trainer.limit_val_batches=1 {text}"
    return shlex.split(text.replace("CONFIGS", str(CONFIGS)))


def sentence_of(main, text, capsys):
    """The one sentence with which a command refuses; nothing is written, and no traceback shown."""
    before, _ = sorted(Path().rglob("*")), capsys.readouterr()
    with pytest.raises(SystemExit) as stopped, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's, before it refuses
        status = main(arguments(text) if isinstance(text, str) else text)
        raise SystemExit(status)
    errors = capsys.readouterr().err
    assert stopped.value.code in (1, 2) and "Traceback" not in errors
    assert sorted(Path().rglob("*")) == before
    (line,) = [line for line in errors.splitlines() if ": error: " in line]
    return line
