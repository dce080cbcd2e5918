"""The table of trials on the terminal while a sweep runs."""

import time
from collections.abc import Sequence
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from locoprop_lightning.results.names import tails, trial_number
from locoprop_lightning.results.table import rank
from locoprop_lightning.tune.space import shown

_DONE = (Trial.TERMINATED, Trial.ERROR)


class LiveTable(tune.Callback):
    """Shows trials in training and the best of the others, once a second; without a terminal, a line a trial that ends.

    Args:
        metric: Name of the metric.
        mode: min or max.
        epoch: Name of the count of epochs.
        keys: Names of the searched settings.
        samples: Number of trials.
    """

    def __init__(self, metric: str, mode: str, epoch: str, keys: Sequence[str], samples: int) -> None:
        self.metric = metric
        self.rising = mode == "max"
        self.epoch = epoch
        self.keys = list(keys)
        self.samples = samples
        self._live: Live | None = None
        self._shown = 0.0

    def setup(self, *args: Any, **info: Any) -> None:
        """Takes the terminal, if there is one."""
        console = Console()
        if console.is_terminal:
            self._live = Live(console=console, auto_refresh=False, transient=True)
            self._live.start()

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:  # noqa: D102
        if self._live is not None and time.monotonic() - self._shown > 1:
            self._shown = time.monotonic()
            self._live.update(self.draw(trials, self._live.console.height - 6), refresh=True)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:  # noqa: D102
        self._say("ended", trials, trial)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:  # noqa: D102
        self._say("failed", trials, trial)

    def _say(self, how: str, trials: list[Trial], trial: Trial) -> None:
        if self._live is None:
            name, _, *values = self._row(trial)
            told = ", ".join(f"{key} {value}" for key, value in zip(self._columns()[2:], values, strict=True))
            print(f"trial {name} {how}: {told}", flush=True)

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        """Gives the terminal back, without the table: that of the results follows."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def draw(self, trials: Sequence[Trial], rows: int) -> Group:
        """What is shown.

        Args:
            trials: All trials.
            rows: How many there is room for.
        """
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
        for title in self._columns():
            table.add_column(Text(title, overflow="fold"))
        ordered = sorted(trials, key=lambda trial: (trial.status != Trial.RUNNING, self._rank(trial)))
        for trial in ordered[: max(rows, 1)]:
            table.add_row(*self._row(trial))
        return Group(table, Text(self._summary(trials)))

    def _columns(self) -> list[str]:
        return ["trial", "status", self.epoch, self.metric, *tails(self.keys).values()]

    def _row(self, trial: Trial) -> list[str]:
        result = trial.last_result or {}
        values = [result.get(self.metric, "-"), *(trial.config.get(key, "-") for key in self.keys)]
        return [_number(trial), trial.status.lower(), str(result.get(self.epoch, 0)), *map(shown, values)]

    def _rank(self, trial: Trial) -> float:
        return rank((trial.last_result or {}).get(self.metric), self.rising)

    def _summary(self, trials: Sequence[Trial]) -> str:
        done = sum(trial.status in _DONE for trial in trials)
        best = min(trials, key=self._rank, default=None)
        value = None if best is None else (best.last_result or {}).get(self.metric)
        told = "" if best is None or value is None else f"; best {self.metric} {value:.4g}, trial {_number(best)}"
        return f"{done} of {self.samples} trials ended{told}"


def _number(trial: Trial) -> str:
    """The number of a trial in its sweep."""
    return trial_number(str(trial.custom_dirname))
