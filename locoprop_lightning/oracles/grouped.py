"""Groups of a layer's units as layers of their own, for an oracle that couples the units of a layer."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from locoprop_lightning.local import Rows, State
from locoprop_lightning.oracles.oracle import Oracle


class GroupedOracle(Oracle):
    """Applies an oracle to each of equal groups of neighbouring units, which have states of their own.

    It is what a layer with ``unit_groups`` is given: queries, keys and values of a fused layer, or the heads of each.

    Args:
        oracle: The oracle.
        groups: How many groups; a divisor of the number of units.
    """

    def __init__(self, oracle: Oracle, groups: int) -> None:
        self.oracle = oracle
        self.groups = groups
        self.asks_inverse = oracle.asks_inverse

    def draws(self, states: Mapping[str, State]) -> int:  # noqa: D102
        parts = {name: group_states(state, self.groups) for name, state in states.items()}
        return self.oracle.draws({f"{name} {i}": s for name, part in parts.items() for i, s in enumerate(part)})

    def observe(  # noqa: D102
        self, gradient: Tensor, sampled: list[Tensor], terms: int, state: State, rows: Rows | None = None
    ) -> None:
        drawn = [self._units(x) for x in sampled]
        shard = {} if rows is None else {"rows": rows}
        for i, (g, own) in enumerate(zip(self._units(gradient), group_states(state, self.groups), strict=True)):
            self.oracle.observe(g, [parts[i] for parts in drawn], terms, own, **shard)

    def prepare(  # noqa: D102
        self, weight_gradient: Tensor, inverse: Callable[[Tensor], Tensor], groups: int, state: State
    ) -> None:
        for b, own in zip(weight_gradient.chunk(self.groups), group_states(state, self.groups), strict=True):
            self.oracle.prepare(b, inverse, groups, own)

    def direction(self, gradient: Tensor, terms: int, state: State) -> Tensor:  # noqa: D102
        parts = zip(self._units(gradient), group_states(state, self.groups), strict=True)
        return torch.cat([self.oracle.direction(g, terms, own) for g, own in parts], 1)

    def weight_direction(self, weight_gradient: Tensor, terms: int, state: State) -> Tensor | None:  # noqa: D102
        made = []
        for b, own in zip(weight_gradient.chunk(self.groups), group_states(state, self.groups), strict=True):
            direction = self.oracle.weight_direction(b, terms, own)
            if direction is None:
                return None
            made.append(direction)
        return torch.cat(made)

    def _units(self, gradient: Tensor) -> list[Tensor]:
        """G of each group [n, d_out / groups], contiguous."""
        return [g.contiguous() for g in gradient.chunk(self.groups, 1)]

    def __repr__(self) -> str:
        return f"GroupedOracle({self.oracle!r}, groups={self.groups})"


def group_states(state: State, groups: int) -> list[State]:
    """The oracle's states of the groups of a layer's units, within that of the layer; a single group has the layer's.

    Args:
        state: What the oracle keeps of the layer.
        groups: How many groups.
    """
    return [state] if groups == 1 else [state.setdefault(f"{i} of {groups}", {}) for i in range(groups)]
