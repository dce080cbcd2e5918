"""The table of methods on the terminal while a study runs."""

import statistics
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.live import Live
from rich.table import Table

from locoprop_lightning.results.table import cell

if TYPE_CHECKING:
    from locoprop_lightning.tune.study.driver import Entry


class LiveMethods(AbstractContextManager["LiveMethods"]):
    """Shows how far each method is, once a second; without a terminal, or when it is quiet, a line a finished run.

    Args:
        quiet: Whether to show no table.
    """

    def __init__(self, quiet: bool = False) -> None:
        self._console = Console()
        self._live = None if quiet or not self._console.is_terminal else Live(console=self._console, auto_refresh=False)
        self._shown = 0.0

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *args: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, entries: Mapping[str, "Entry"]) -> None:
        """Draws the table, if there is a terminal and the last one is a second old.

        Args:
            entries: The methods.
        """
        if self._live is not None and time.monotonic() - self._shown > 1:
            self._shown = time.monotonic()
            self._live.update(self.draw(entries), refresh=True)

    def say(self, entry: "Entry", text: str) -> None:
        """Prints a line, where there is no table.

        Args:
            entry: The method that it is about.
            text: What to say of it.
        """
        if self._live is None:
            budget = entry.study.budget
            counts = f"{len(entry.trials)}/{budget.trials} trials, {len(entry.finals)}/{budget.seeds} seeds"
            print(f"{entry.method.name}: {text} ({counts})", flush=True)

    def draw(self, entries: Mapping[str, "Entry"]) -> Table:
        """The table.

        Args:
            entries: The methods.
        """
        table = Table("method", "trials", "best", "seeds", "median", "now")
        for name, entry in entries.items():
            budget, best, finals = entry.study.budget, entry.best, entry.finals
            values = [line["value"] for line in finals.values() if line["value"] is not None]
            table.add_row(
                name,
                f"{len(entry.trials)}/{budget.trials}",
                cell([best["value"] if best else None], ".4g"),
                f"{len(finals)}/{budget.seeds}",
                cell([statistics.median(values)] if values else [], ".4g"),
                entry.error or ", ".join(sorted(entry.running)) or ("finished" if entry.finished else "waits"),
            )
        return table
