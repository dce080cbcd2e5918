"""What the command leaves out of Lightning's output, and what it does not."""

import logging
import warnings

import pytest

from locoprop_lightning.quiet import quiet

RANK_ZERO = logging.getLogger("lightning.pytorch.utilities.rank_zero")


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("GPU available: False, used: False", False),
        ("💡 Tip: For seamless cloud logging, try installing [litlogger]", False),
        ("`Trainer.fit` stopped: `max_epochs=2` reached.", False),
        ("You are using a CUDA device ('NVIDIA H100') that has Tensor Cores. To properly utilize them, ...", False),
        ("Using bfloat16 Automatic Mixed Precision (AMP)", True),
        ("Monitored metric val/loss did not improve", True),
    ],
)
def test_notices_of_lightning(message, shown):
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    RANK_ZERO.addHandler(handler)
    level = RANK_ZERO.level
    RANK_ZERO.setLevel(logging.INFO)
    try:
        with quiet():
            RANK_ZERO.info(message)
        assert bool(records) == shown
        RANK_ZERO.info(message)
        assert len(records) == 1 + shown
    finally:
        RANK_ZERO.removeHandler(handler)
        RANK_ZERO.setLevel(level)


def test_warnings_of_lightning_and_of_others():
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with quiet():
            warnings.warn("`isinstance(treespec, LeafSpec)` is deprecated", FutureWarning, stacklevel=1)
            warnings.warn("this one is yours", UserWarning, stacklevel=1)
    assert [str(one.message) for one in seen] == ["this one is yours"]
