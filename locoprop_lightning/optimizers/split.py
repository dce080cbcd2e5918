"""Two optimizers as one: matrices to the one, everything else to the other."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from locoprop_lightning.errors import UserError

Group = dict[str, Any]


class SplitOptimizer(Optimizer):
    """Trains parameters with 2 dimensions by one optimizer and all others by another, such as Muon and AdamW.

    It is one optimizer, so that a schedule sees the groups of both and Lightning counts one step a batch. State and
    groups are shared with the two, and schedules, checkpoints and moves to a device reach them.

    Args:
        params: Parameters, or groups of them. A group is split in two, and its options hold for both halves.
        matrix: Makes the optimizer of the parameters with exactly 2 dimensions.
        other: Makes the optimizer of all others. Neither may need a closure.
        convolutions: Whether weights with more dimensions go with the matrices.

    Raises:
        UserError: For a group with an option that one of its two halves has and the other has not.

    Example:
        >>> from torch.optim import SGD, AdamW
        >>> layer = torch.nn.Linear(3, 2)
        >>> optimizer = SplitOptimizer(layer.parameters(), matrix=lambda p: SGD(p, lr=1.0), other=lambda p: AdamW(p))
        >>> [(len(group["params"]), group["lr"]) for group in optimizer.param_groups]
        [(1, 1.0), (1, 0.001)]
    """

    def __init__(
        self, params: ParamsT, matrix: OptimizerCallable, other: OptimizerCallable, convolutions: bool = False
    ) -> None:
        self._convolutions = convolutions
        entries: list[Any] = list(params)
        groups = entries if entries and isinstance(entries[0], dict) else [{"params": entries}]
        halves = self._split(groups)
        children = _make(matrix, halves[0]), _make(other, halves[1])
        _check(halves, children)
        super().__init__([group for child in children for group in child.param_groups], {})
        for child in children:
            self.state.update(child.state)
        self._children = children  # from here on, new groups go through them
        self._link()

    @property
    def children(self) -> tuple[Optimizer, Optimizer]:
        """The optimizer of the matrices and that of the others."""
        return self._children

    def _link(self) -> None:
        """Gives the children the state and their groups."""
        for child, matrices in zip(self._children, (True, False), strict=True):
            groups = [group for group in self.param_groups if self._is_matrix(group["params"][0]) is matrices]
            child.__setstate__({"state": self.state, "param_groups": groups})

    def _is_matrix(self, entry: Tensor | tuple[str, Tensor]) -> bool:
        """Whether a parameter, alone or with its name, goes to the first optimizer."""
        dimensions = (entry[1] if isinstance(entry, tuple) else entry).ndim
        return dimensions == 2 or (self._convolutions and dimensions > 2)

    def _split(self, groups: Iterable[Group]) -> tuple[list[Group], list[Group]]:
        """Groups of matrices and groups of the others; empty ones are left out."""
        matrix: list[Group] = []
        other: list[Group] = []
        for group in groups:
            params = [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])
            for half, matrices in ((matrix, True), (other, False)):
                own = [p for p in params if self._is_matrix(p) is matrices]
                if own:
                    half.append({**group, "params": own})
        return matrix, other

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_children": self._children, "_convolutions": self._convolutions}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._link()

    def add_param_group(self, param_group: Group) -> None:
        """Splits a group and adds the halves.

        Args:
            param_group: Parameters under "params", and options.

        Raises:
            UserError: For an option that one of the two halves has and the other has not.
        """
        if not hasattr(self, "_children"):  # the constructor, with groups that the children have made
            super().add_param_group(param_group)
            return
        halves = self._split([param_group])
        _check(halves, self._children)
        for child, half in zip(self._children, halves, strict=True):
            for group in half:
                child.add_param_group(group)
                super().add_param_group(child.param_groups[-1])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of both.

        Args:
            closure: Computes the loss and the gradients, if given; called once.

        Returns:
            What the closure returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for child in self._children:
            if child.param_groups:
                child.step()
        return loss


def _make(rule: OptimizerCallable, groups: list[Group]) -> Optimizer:
    """An optimizer of these groups; torch's refuse no groups at all, and accept an empty one."""
    optimizer = rule(groups or [{"params": []}])
    if not groups:
        optimizer.param_groups.clear()
    return optimizer


def _check(halves: tuple[list[Group], list[Group]], children: tuple[Optimizer, Optimizer]) -> None:
    """Refuses an option in a group of one optimizer that only the other knows."""
    for half, child, sibling in zip(halves, children, reversed(children), strict=True):
        for group in half:
            for name in sorted((group.keys() & sibling.defaults.keys()) - child.defaults.keys()):
                raise UserError(
                    f"SplitOptimizer: {type(child).__name__}, which trains part of a group, has no option "
                    f"{name}={group[name]!r}; put the matrices and the other parameters into groups of their own."
                )
