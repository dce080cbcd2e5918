"""Two optimizers as one: hidden matrices to the one, everything else to the other."""

from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from locoprop_lightning.errors import UserError

Group = dict[str, Any]


class NamesNeeded(UserError):
    """Parameters came without their names, which patterns are compared with."""


class SplitOptimizer(Optimizer):
    """Trains parameters with 2 dimensions by one optimizer and all others by another, such as Muon and AdamW.

    It is one optimizer, so that a schedule sees the groups of both and Lightning counts one step a batch. State and
    groups are shared with the two, and schedules, checkpoints and moves to a device reach them.

    Args:
        params: Parameters, or groups of them. A group is split in two, and its options hold for both halves.
        matrix: Makes the optimizer of the parameters with exactly 2 dimensions.
        other: Makes the optimizer of all others. Neither may need a closure.
        convolutions: Whether weights with more dimensions go with the matrices.
        exclude: Patterns of parameters that go to ``other`` whatever their dimensions, such as the embeddings and the
            output layer of "*.embedding.weight" and "head". A pattern is compared with the parameter's name and with
            its layer's. The parameters must come with their names, as from ``network.named_parameters()``; the modules
            of this package see to it.

    Raises:
        UserError: For a group with an option that one of its two halves has and the other has not, and for a pattern
            that no parameter has.

    Example:
        >>> from torch.optim import SGD, AdamW
        >>> layer = torch.nn.Linear(3, 2)
        >>> optimizer = SplitOptimizer(layer.parameters(), matrix=lambda p: SGD(p, lr=1.0), other=lambda p: AdamW(p))
        >>> [(len(group["params"]), group["lr"]) for group in optimizer.param_groups]
        [(1, 1.0), (1, 0.001)]
    """

    def __init__(
        self,
        params: ParamsT,
        matrix: OptimizerCallable,
        other: OptimizerCallable,
        convolutions: bool = False,
        exclude: Sequence[str] = (),
    ) -> None:
        self._convolutions = convolutions
        self._exclude = list(exclude)
        entries: list[Any] = list(params)
        groups = entries if entries and isinstance(entries[0], dict) else [{"params": entries}]
        groups = [{**group, "params": _entries(group)} for group in groups]  # which may be generators
        self._check_patterns(groups)
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
            groups = [group for group in self.param_groups if self._is_matrix(_first(group)) is matrices]
            child.__setstate__({"state": self.state, "param_groups": groups})

    def _is_matrix(self, entry: Tensor | tuple[str, Tensor]) -> bool:
        """Whether a parameter, alone or with its name, goes to the first optimizer."""
        name, parameter = entry if isinstance(entry, tuple) else ("", entry)
        if any(_matches(name, pattern) for pattern in self._exclude):
            return False
        return parameter.ndim == 2 or (self._convolutions and parameter.ndim > 2)

    def _check_patterns(self, groups: Iterable[Group]) -> None:
        """Refuses patterns that no parameter has."""
        entries = [entry for group in groups for entry in _entries(group)]
        names = [entry[0] for entry in entries if isinstance(entry, tuple)]
        if self._exclude and len(names) < len(entries):
            raise NamesNeeded(
                f"SplitOptimizer(exclude={self._exclude}): the parameters have no names; give "
                "network.named_parameters()."
            )
        for pattern in self._exclude:
            if not any(_matches(name, pattern) for name in names):
                raise UserError(
                    f"SplitOptimizer(exclude={self._exclude}): no parameter is named {pattern!r}; there are "
                    f"{', '.join(names)}."
                )

    def _split(self, groups: Iterable[Group]) -> tuple[list[Group], list[Group]]:
        """Groups of matrices and groups of the others; empty ones are left out."""
        matrix: list[Group] = []
        other: list[Group] = []
        for group in groups:
            params = _entries(group)
            for half, matrices in ((matrix, True), (other, False)):
                own = [p for p in params if self._is_matrix(p) is matrices]
                if own:
                    half.append({**group, "params": own})
        return matrix, other

    def __getstate__(self) -> dict[str, Any]:
        own = ("_children", "_convolutions", "_exclude")
        return super().__getstate__() | {name: getattr(self, name) for name in own}

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


def _entries(group: Group) -> list[Any]:
    """The parameters of a group, with their names where they have some."""
    return [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])


def _first(group: Group) -> Any:
    """The first parameter of a group of an optimizer, with its name where it has one."""
    names = group.get("param_names")
    return (names[0], group["params"][0]) if names else group["params"][0]


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name.rpartition(".")[0], pattern)


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
