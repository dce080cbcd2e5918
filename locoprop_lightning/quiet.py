"""What the command does not print: notices and tips of Lightning, and anything to a terminal that is closed."""

import logging
import os
import re
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_NOTICES = re.compile(
    r"💡|Seed set to|(GPU|TPU|HPU|IPU) available"
    r"|`Trainer\.(fit|validate|test|predict)` stopped|Loading `\w+` to estimate|LOCAL_RANK: \d+ - CUDA"
    r"|that has Tensor Cores"  # it advises to round the products of which local problems are made
)
_WARNINGS = (  # of Lightning, about its own code, or about what is decided here
    r".*isinstance\(treespec, LeafSpec\)",
    r".*does not have many workers which may be a bottleneck",
    r".*The number of training batches \(\d+\) is smaller than the logging interval",
    r".*Checkpoint directory .* exists and is not empty",
    r".*The dirpath has changed from",
    r".*args parameter is intended to run from within Python",
    r".*You're resuming from a checkpoint that ended before the epoch ended",
    r".*the `weights_only` flag|.*`weights_only=None`",
)


def _wanted(record: logging.LogRecord) -> bool:
    return _NOTICES.search(record.getMessage()) is None


@contextmanager
def quiet() -> Iterator[None]:
    """Leaves them out while it lasts; all else is shown."""
    names = (
        "lightning.pytorch.utilities.rank_zero",
        "lightning.fabric.utilities.rank_zero",
        "lightning.fabric.utilities.seed",
    )
    handlers = [*logging.getLogger("lightning.pytorch").handlers, *logging.getLogger("lightning.fabric").handlers]
    filtered = [*map(logging.getLogger, names), *handlers]
    for one in filtered:
        one.addFilter(_wanted)
    try:
        with warnings.catch_warnings():
            for text in _WARNINGS:
                warnings.filterwarnings("ignore", text)
            yield
    finally:
        for one in filtered:
            one.removeFilter(_wanted)


def leave_terminal() -> None:
    """Sends nowhere what would be written to a terminal that is closed, where it would raise an error."""
    for stream in (1, 2):
        with suppress(OSError):
            if stat.S_ISCHR(os.fstat(stream).st_mode) and not os.isatty(stream):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream)
                os.close(nowhere)
