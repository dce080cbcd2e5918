"""Where a method of a study stands: which of the stored lines are its own, and what is still to run."""

import yaml

from locoprop_lightning.results.settings import NEUTRAL, flatten
from locoprop_lightning.tune.study.search import RULES, best_trial
from locoprop_lightning.tune.study.spec import Method, Study
from locoprop_lightning.tune.study.store import Line, Store, fingerprint


class Standing:
    """A method with what is stored of it.

    A stored line is the method's own if it bears its mark, the fingerprint of what its numbers depend on: of the
    configuration as its file has it, so that what a later version of the package adds by default makes no other method,
    and without the values of what is always searched, so that tuned ones may be written into it.

    Args:
        method: The method.
        study: The study.
        store: What is stored.

    Attributes:
        mark: Fingerprint of its trials.
        local: Whether it solves local losses.
    """

    def __init__(self, method: Method, study: Study, store: Store) -> None:
        self.method = method
        self.study = study
        self.store = store
        stands = flatten(yaml.safe_load(method.config.read_text())) | method.settings
        searched = {name for name, dimension in method.space.dimensions.items() if not dimension.when}
        fixed = {k: v for k, v in stands.items() if not NEUTRAL.match(k) and k not in searched}
        self.local = "LocoProp" in str(fixed.get("model"))
        self._common = {"settings": fixed, "threads": study.budget.threads, "judge": study.judge}
        self.mark: str = fingerprint(self._common | {"search": method.searched, "rules": RULES})

    @property
    def trials(self) -> list[Line]:
        """The finished trials, in order."""
        return self.store.trials(self.method.name, self.mark)[: self.study.budget.trials]

    @property
    def best(self) -> Line | None:
        """The best trial that came to its end, None where none did."""
        return best_trial(self.trials, self.study.rising)

    @property
    def tuned(self) -> bool:
        """Whether all trials are done."""
        return len(self.trials) >= self.study.budget.trials

    @property
    def finals(self) -> dict[int, Line]:
        """The finished final runs of the best trial's settings, by seed."""
        best = self.best
        if best is None or not self.tuned:
            return {}
        known = self.store.finals(self.method.name, self.final_mark(best))
        return {seed: line for seed, line in known.items() if seed <= self.study.budget.seeds}

    @property
    def finished(self) -> bool:
        """Whether nothing is left to run."""
        return self.tuned and (self.best is None or len(self.finals) == self.study.budget.seeds)

    def final_mark(self, best: Line) -> str:
        """Fingerprint of the settings that the final runs have.

        Args:
            best: The best trial.
        """
        return fingerprint(self._common | {"values": best["values"]})

    def left(self) -> tuple[int, int]:
        """How many trials and final runs are left."""
        return self.study.budget.trials - len(self.trials), self.study.budget.seeds - len(self.finals)
