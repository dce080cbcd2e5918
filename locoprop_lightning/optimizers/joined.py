"""Several optimizers as one, each of which trains its own groups of parameters."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.optimizer import ParamsT

from locoprop_lightning.errors import UserError, check_several, listed, shown
from locoprop_lightning.optimizers.closure import loss_of

Group = dict[str, Any]


_MADE = (Optimizer, LRScheduler)


def check_maker(setting: str, given: Any) -> None:
    """Refuses what makes nothing, such as an optimizer that is made, or its name.

    Raises:
        UserError: Names the setting.
    """
    if not callable(given):
        text = f"a {type(given).__name__} that is made already" if isinstance(given, _MADE) else shown(given)
        such = "partial(SGD, lr=1.0) for an optimizer"
        if setting == "lr_scheduler":
            such = "partial(StepLR, step_size=100) for a schedule"
        raise UserError(f"{setting}: is {text}; give a function that makes one, such as {such}.")


class NamesNeeded(UserError):
    """Parameters came without their names, which patterns are compared with, or without their modules."""


class OwnedParameter(NamedTuple):
    """A parameter as torch's optimizers take it with its name, and the module that it belongs to.

    Attributes:
        name: Its name in the network.
        parameter: The parameter.
        owner: The module; None where that is not known.
    """

    name: str
    parameter: Tensor
    owner: nn.Module | None = None


def owned_parameters(network: nn.Module) -> list[OwnedParameter]:
    """All parameters of a network, with names and modules.

    Args:
        network: The network.
    """
    owners = {p: module for module in network.modules() for p in module.parameters(recurse=False)}
    return [OwnedParameter(name, p, owners[p]) for name, p in network.named_parameters()]


class Share(NamedTuple):
    """What some of the parameters have in common.

    Attributes:
        child: Number of their optimizer.
        options: Their options in it.
    """

    child: int
    options: Group


class JoinedOptimizer(Optimizer):
    """Several optimizers as one, so that a schedule sees the groups of all and Lightning counts one step a batch.

    State and groups are shared with them, and schedules, checkpoints and moves to a device reach them. A class derived
    from it says in ``choose`` to which share a parameter belongs.

    Args:
        params: Parameters, or groups of them, with or without their names. A group is dealt out to the shares, and its
            options hold in each.
        rules: Make the optimizers. None may need a closure.
        shares: The shares of parameters.

    Raises:
        UserError: For a group with an option that one of its optimizers has and another has not.
    """

    _kept: tuple[str, ...] = ("_children", "_trained_by", "_shares")  # attributes that copies have too

    def __init__(self, params: ParamsT, rules: Sequence[OptimizerCallable], shares: Sequence[Share]) -> None:
        self._shares = list(shares)
        check_several(type(self).__name__, "parameters", params=params)
        given: list[Any] = list(params)
        groups: list[Group] = given if given and isinstance(given[0], dict) else [{"params": given}]
        groups = [{**group, "params": entries_of(group)} for group in groups]  # which may be generators
        self.check([entry for group in groups for entry in group["params"]])
        parts = self._deal(groups, len(rules))
        children = tuple(_make(type(self).__name__, rule, part) for rule, part in zip(rules, parts, strict=True))
        self.check_options(parts, children)
        super().__init__([group for child in children for group in child.param_groups], {})
        for child in children:
            self.state.update(child.state)
        self._children = children  # from here on, new groups go through them
        self._trained_by = [
            i for i, child in enumerate(children) for _ in child.param_groups
        ]  # the child of each group
        self._link()

    @abstractmethod
    def choose(self, entry: OwnedParameter) -> int:
        """The number of the share of a parameter."""

    def check(self, entries: Sequence[OwnedParameter]) -> None:
        """Refuses parameters that do not go with the settings; takes all if not overridden.

        Args:
            entries: The parameters.

        Raises:
            UserError: Names the setting.
        """

    @property
    def children(self) -> tuple[Optimizer, ...]:
        """The optimizers."""
        return self._children

    @property
    def signature(self) -> str:
        """What must be the same for a saved state to fit, besides the number of parameters."""
        return "/".join(type(child).__name__ for child in self._children)

    @property
    def wants_modules(self) -> bool:
        """Whether it goes by the parameters' modules, where they are known."""
        return any(isinstance(child, JoinedOptimizer) and child.wants_modules for child in self._children)

    def _link(self) -> None:
        """Gives the children the state and their groups."""
        for i, child in enumerate(self._children):
            groups = [group for group, j in zip(self.param_groups, self._trained_by, strict=True) if i == j]
            child.__setstate__({"state": self.state, "param_groups": groups})

    def _deal(self, groups: Iterable[Group], children: int) -> list[list[Group]]:
        """The groups of each child; empty ones are left out."""
        parts: list[list[Group]] = [[] for _ in range(children)]
        for group in groups:
            chosen = [(self.choose(entry), entry) for entry in entries_of(group)]
            for i, share in enumerate(self._shares):
                own = [_for_torch(entry) for j, entry in chosen if i == j]
                if own:
                    parts[share.child].append({**group, **share.options, "params": own})
        return parts

    def check_options(self, parts: Sequence[Sequence[Group]], children: Sequence[Optimizer]) -> None:
        """Refuses an option in a group of one optimizer that only others know.

        Args:
            parts: The groups of each optimizer.
            children: The optimizers.

        Raises:
            UserError: Names the option and the optimizer.
        """
        known = {name for child in children for name in child.defaults}
        for part, child in zip(parts, children, strict=True):
            for group in part:
                for name in sorted((group.keys() & known) - child.defaults.keys()):
                    raise UserError(
                        f"{type(self).__name__}: {type(child).__name__}, which trains part of a group, has no option "
                        f"{name}={group[name]!r}; put the parameters of each optimizer into groups of their own."
                    )

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {name: getattr(self, name) for name in self._kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._link()

    def add_param_group(self, param_group: Group) -> None:
        """Deals a group out and adds its parts.

        Args:
            param_group: Parameters under "params", and options.

        Raises:
            UserError: For an option that one of the optimizers of its parts has and another has not.
        """
        if not hasattr(self, "_children"):  # the constructor, with groups that the children have made
            super().add_param_group(param_group)
            return
        parts = self._deal([param_group], len(self._children))
        self.check_options(parts, self._children)
        for i, (child, part) in enumerate(zip(self._children, parts, strict=True)):
            for group in part:
                child.add_param_group(group)
                super().add_param_group(child.param_groups[-1])
                self._trained_by.append(i)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of all.

        Args:
            closure: Computes the loss and the gradients, if given; called once.

        Returns:
            What the closure returned.
        """
        loss = loss_of(closure)
        for child in self._children:
            if child.param_groups:
                child.step()
        return loss


def entries_of(group: Group) -> list[OwnedParameter]:
    """The parameters of a group, with names and modules as far as they are known; else the name is empty."""
    given = [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])
    return [OwnedParameter(*p) if isinstance(p, tuple) else OwnedParameter("", p) for p in given]


def _for_torch(entry: OwnedParameter) -> OwnedParameter | Tensor:
    """A parameter as it was given."""
    return entry if entry.name else entry.parameter


def matches(name: str, pattern: str) -> bool:
    """Whether a pattern is that of a parameter's name or of its layer's."""
    return fnmatchcase(name, pattern) or fnmatchcase(name.rpartition(".")[0], pattern)


def check_matches(setting: str, patterns: Iterable[str], entries: Sequence[OwnedParameter]) -> None:
    """Refuses patterns that no parameter has.

    Args:
        setting: What to call the patterns.
        patterns: The patterns.
        entries: The parameters.

    Raises:
        NamesNeeded: Where they have no names.
        UserError: Names the pattern, and the parameters that there are.
    """
    patterns, names = list(patterns), [entry.name for entry in entries]
    if patterns and not all(names):
        raise NamesNeeded(f"{setting}: the parameters have no names; give network.named_parameters().")
    for pattern in patterns:
        if not any(matches(name, pattern) for name in names):
            raise UserError(f"{setting}: no parameter is named {pattern!r}; there are {listed(names)}.")


def is_convolution(entry: OwnedParameter) -> bool:
    """Whether a parameter is a convolution's weight; by its shape where the module is not known.

    Scales and positions of one entry a unit, or of one unit, are none: [8, 1, 1], [1, 16, 8].
    """
    p = entry.parameter
    if p.ndim < 3:
        return False
    if entry.owner is not None:
        return isinstance(entry.owner, _ConvNd)
    return p.shape[0] > 1 and p[0].numel() > 1


def describe(optimizer: Optimizer, module: nn.Module) -> str:
    """Which optimizers train a module's own parameters, and at which rates where those are set by parameter.

    Args:
        optimizer: The optimizer.
        module: The module.
    """
    if not isinstance(optimizer, JoinedOptimizer):
        return type(optimizer).__name__
    own = {id(p) for p in module.parameters(recurse=False)}
    found = [
        f"{type(child).__name__} (lr {group.get('initial_lr', group['lr']):g})"
        for child in leaves(optimizer)
        for group in child.param_groups
        if any(id(p) in own for p in group["params"])
    ]
    return " + ".join(dict.fromkeys(found))


def leaves(optimizer: Optimizer) -> list[Optimizer]:
    """The optimizers that step: those that a joined one joins, or the one itself."""
    if not isinstance(optimizer, JoinedOptimizer):
        return [optimizer]
    return [leaf for child in optimizer.children for leaf in leaves(child)]


def _make(owner: str, rule: OptimizerCallable, groups: list[Group]) -> Optimizer:
    """An optimizer of these groups; torch's refuse no groups at all, and accept an empty one.

    Raises:
        UserError: Where the rule makes none.
    """
    check_maker(f"{owner}: one of its optimizers", rule)
    optimizer = rule(groups or [{"params": []}])
    if not isinstance(optimizer, Optimizer):
        raise UserError(f"{owner}: one of its optimizers: makes {shown(optimizer)}, not a torch.optim.Optimizer.")
    if not groups:
        optimizer.param_groups.clear()
    return optimizer
