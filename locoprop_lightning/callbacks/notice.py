"""What is told when a fit has begun."""

import sys

from lightning.pytorch import Callback, LightningModule, Trainer


class Notice(Callback):
    """Tells something of a fit when nothing of its settings can be refused any more.

    Args:
        text: What is told on stderr.
    """

    def __init__(self, text: str) -> None:
        self._text = text

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tells it."""
        print(self._text, file=sys.stderr)
