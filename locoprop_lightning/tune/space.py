"""Search spaces as YAML.

    model.lambda_a: {loguniform: [10, 5000]}
    model.lambda_r: {loguniform: [10, 1.0e6]}
    model.solver.iterations: {integers: [1, 10]}
    model.objective: {choice: [matching, squared]}
    model.solver.beta: {uniform: [0.5, 1], step: 0.1, when: {model.objective: matching}}

Keys are settings of a configuration, named as on the command line. ``integers`` may be ``log: true``. A key with
``when`` is searched where another one, which stands before it, has the value, or one of a list of values.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from locoprop_lightning.errors import UserError
from locoprop_lightning.files import load_yaml
from locoprop_lightning.shipped import KINDS, SPACES, find, is_configuration

_EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")


class Dimension(NamedTuple):
    """One searched setting.

    Attributes:
        distribution: Its values.
        when: Values of an earlier setting under which this one is searched, by its name.
    """

    distribution: BaseDistribution
    when: dict[str, list[Any]]


class Space:
    """What is searched; called with an Optuna trial it suggests values.

    Args:
        dimensions: The searched settings by name, in order.
    """

    def __init__(self, dimensions: Mapping[str, Dimension]) -> None:
        self.dimensions = dict(dimensions)

    @classmethod
    def load(cls, path: str | Path) -> "Space":
        """Reads a space.

        Args:
            path: Its file, or the name of a shipped one.

        Raises:
            UserError: Names the key, its value and what could stand there.
        """
        return cls.of(load_yaml(find(path, SPACES, "--space "), f"--space {path}"), f"--space {path}")

    @classmethod
    def of(cls, settings: Any, name: str) -> "Space":
        """A space from what its YAML holds.

        Args:
            settings: What stands in the YAML.
            name: Where it stands, which a refusal begins with.

        Raises:
            UserError: Names the key, its value and what could stand there.
        """
        if not isinstance(settings, dict) or not settings:
            raise UserError(f"{name}: holds no settings, such as model.lambda_a: {{loguniform: [10, 5000]}}.")
        if is_configuration(settings):
            raise UserError(f"{name}: is a configuration; name the settings that are searched, with their ranges.")
        dimensions: dict[str, Dimension] = {}
        for key, value in settings.items():
            dimensions[str(key)] = _dimension(str(key), value, dimensions)
        return cls(dimensions)

    def __call__(self, trial: optuna.Trial) -> None:
        """Suggests a value for each setting that is searched in this trial."""
        values: dict[str, Any] = {}
        for key, dimension in self.dimensions.items():
            if self._searched(dimension, values):
                values[key] = _suggest(trial, key, dimension.distribution)

    @staticmethod
    def _searched(dimension: Dimension, values: Mapping[str, Any]) -> bool:
        return all(key in values and values[key] in allowed for key, allowed in dimension.when.items())

    def distributions(self, values: Mapping[str, Any]) -> dict[str, BaseDistribution]:
        """The distributions of the settings that some values have."""
        return {key: self.dimensions[key].distribution for key in values}

    def start(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The values of a configuration where they lie within the space, by name.

        Args:
            settings: The configuration's settings by dotted name.
        """
        values: dict[str, Any] = {}
        for key, dimension in self.dimensions.items():
            value = settings.get(key)
            if isinstance(dimension.distribution, CategoricalDistribution) and isinstance(value, str):
                names = [c for c in dimension.distribution.choices if value.rpartition(".")[2] == c]
                value = names[0] if names else value  # a class by its name
            if value is not None and self._searched(dimension, values) and _contains(dimension.distribution, value):
                values[key] = value
        return values

    def at_end(self, key: str, value: Any) -> bool:
        """Whether a value lies at an end of its range, within two hundredths of it.

        Args:
            key: Name of the setting.
            value: The value.
        """
        distribution = self.dimensions[key].distribution
        if isinstance(distribution, CategoricalDistribution):
            return False
        assert isinstance(distribution, FloatDistribution | IntDistribution)
        low, high, place = float(distribution.low), float(distribution.high), float(value)
        if distribution.log:
            low, high, place = math.log(low), math.log(high), math.log(place)
        return not 0.02 <= (place - low) / (high - low) <= 0.98

    def corners(self) -> list[dict[str, Any]]:
        """Values that a configuration must accept: each setting's first and last, and every choice.

        The conditions of a setting are met in each.
        """
        found = []
        for key, dimension in self.dimensions.items():
            needed: dict[str, Any] = {}
            pending = dict(dimension.when)
            while pending:
                name, allowed = pending.popitem()
                needed[name] = allowed[0]
                pending |= {n: a for n, a in self.dimensions[name].when.items() if n not in needed}
            ordered = {name: needed[name] for name in self.dimensions if name in needed}
            distribution = dimension.distribution
            if isinstance(distribution, CategoricalDistribution):
                ends: list[Any] = list(distribution.choices)
            else:
                assert isinstance(distribution, FloatDistribution | IntDistribution)
                ends = [distribution.low, distribution.high]
            found += [ordered | {key: end} for end in ends]
        return found


def _dimension(key: str, value: Any, earlier: Mapping[str, Dimension]) -> Dimension:
    """Reads one setting of a space."""

    def refuse(reason: str) -> UserError:
        given = f", not {value!r}" if "must" in reason.split() else ""
        return UserError(f"space: {key}: {reason}{given}.")

    if not isinstance(value, dict):
        raise refuse(f"must be one of {', '.join(KINDS)} with its values, such as {{uniform: [0, 1]}}")
    rest = dict(value)
    when = rest.pop("when", {})
    kinds = [kind for kind in KINDS if kind in rest]
    if len(kinds) != 1:
        way = f"; write {key}.{next(iter(value))} on a line" if any(isinstance(v, dict) for v in value.values()) else ""
        raise refuse(f"must have exactly one of {', '.join(KINDS)}{way}")
    kind = kinds[0]
    given = rest.pop(kind)
    step, log = rest.pop("step", None), rest.pop("log", False)
    if rest:
        raise refuse(f"{next(iter(rest))} is none of {', '.join(KINDS)}, step, log, when")
    if not isinstance(when, dict):
        raise refuse("when must be a mapping from an earlier setting to a value, or to a list of values")
    conditions = {}
    for name, allowed in when.items():
        if name not in earlier:
            raise refuse(f"when names {name}, which is no searched setting that stands before this one")
        conditions[name] = allowed if isinstance(allowed, list) else [allowed]
        for one in conditions[name]:
            if not _contains(earlier[name].distribution, one):
                known = getattr(earlier[name].distribution, "choices", None)
                none = f"none of its choices {', '.join(map(str, known))}" if known else "none of its values"
                raise refuse(f"when asks for {name}={one}, which is {none}")
    if kind == "choice":
        if not isinstance(given, list) or not given or not all(isinstance(c, str | int | float | bool) for c in given):
            raise refuse("choice must be a list of texts, numbers or truth values")
        return Dimension(CategoricalDistribution([_read(one) for one in given]), conditions)
    # YAML reads 1e6 as a text.
    numbers = [_number(one) for one in given] if isinstance(given, list) else []
    if len(numbers) != 2 or not all(map(math.isfinite, numbers)) or not numbers[0] < numbers[1]:
        raise refuse(f"{kind} must be two numbers, the lower one first")
    low, high = numbers
    if kind == "integers":
        if low != int(low) or high != int(high) or (step is not None and not _number(step) >= 1):
            raise refuse("integers must be whole numbers, and step one of at least 1")
        if step is not None and step != int(step):
            raise refuse("integers must be whole numbers, and step too")
        if log and (low < 1 or step is not None):
            raise refuse("integers with log must begin at 1 or above, and have no step")
        return Dimension(IntDistribution(int(low), int(high), log=bool(log), step=int(step or 1)), conditions)
    if log:
        raise refuse("log is for integers; take loguniform")
    if step is not None and (kind == "loguniform" or not _number(step) > 0):
        raise refuse("step must be above 0, and is for uniform and integers")
    if kind == "loguniform" and low <= 0:
        raise refuse("loguniform must begin above 0")
    return Dimension(FloatDistribution(low, high, log=kind == "loguniform", step=step), conditions)


def shown(value: Any) -> str:
    """A setting or a metric for people."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _read(choice: Any) -> Any:
    """A number where YAML reads one with an exponent, such as 1e6, as a text."""
    return float(choice) if isinstance(choice, str) and _EXPONENT.fullmatch(choice) else choice


def _number(value: Any) -> float:
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return math.nan


def _contains(distribution: BaseDistribution, value: Any) -> bool:
    """Whether a distribution can give a value."""
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    if isinstance(distribution, IntDistribution) and value != int(value):
        return False
    steps = (value - distribution.low) / distribution.step if distribution.step else 0.0
    return distribution.low <= value <= distribution.high and abs(steps - round(steps)) < 1e-8


def _suggest(trial: optuna.Trial, key: str, distribution: BaseDistribution) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return trial.suggest_categorical(key, distribution.choices)
    if isinstance(distribution, IntDistribution):
        return trial.suggest_int(key, distribution.low, distribution.high, step=distribution.step, log=distribution.log)
    assert isinstance(distribution, FloatDistribution)
    return trial.suggest_float(key, distribution.low, distribution.high, step=distribution.step, log=distribution.log)
