"""Parameters with rules of their own: which optimizer trains them, at which rate and decay."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from lightning.pytorch.cli import OptimizerCallable
from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from locoprop_lightning.errors import UserError, check_amount, check_choice, check_several, shown
from locoprop_lightning.optimizers.joined import (
    Group,
    JoinedOptimizer,
    NamesNeeded,
    OwnedParameter,
    Share,
    check_matches,
    is_convolution,
    matches,
)

Kind = Literal["matrix", "convolution", "embedding", "normalization", "bias", "vector"]
_KINDS = ("matrix", "convolution", "embedding", "normalization", "bias", "vector")
_SUCH = "[Rule(kinds=['bias'], lr=0.1)]"
_OF_MODULES = ("embedding", "normalization")


@dataclass
class Rule:
    """What holds for some parameters of a ``RuledOptimizer``; what is left out is as for all others.

    Args:
        match: Patterns, compared with the parameter's name and with its layer's; any if empty.
        kinds: "matrix" (2 dimensions), "convolution" (a convolution's weight), "embedding", "normalization" (of a layer
            whose class is called so), "bias" (by its name) or "vector" (less than 2 dimensions); any if empty. A
            parameter must be of one of these kinds, and match one of the patterns.
        optimizer: Makes their optimizer.
        lr: Their rate.
        weight_decay: Their decay.

    Raises:
        UserError: For a rule of nothing, and a kind that there is not.
    """

    match: list[str] = field(default_factory=list)
    kinds: list[Kind] = field(default_factory=list)
    optimizer: OptimizerCallable | None = None
    lr: float | None = None
    weight_decay: float | None = None

    def __post_init__(self) -> None:
        check_several("Rule", "patterns", match=self.match)
        check_several("Rule", "kinds", kinds=self.kinds)
        check_amount("Rule", **self.options)
        if not self.match and not self.kinds:
            raise UserError("Rule(): name parameters by match or kinds; the others are the RuledOptimizer's own.")
        for kind in self.kinds:
            check_choice("Rule", _KINDS, kinds=kind)

    @property
    def options(self) -> dict[str, float]:
        """Rate and decay, where they are given."""
        given = {"lr": self.lr, "weight_decay": self.weight_decay}
        return {name: value for name, value in given.items() if value is not None}

    def takes(self, entry: OwnedParameter) -> bool:
        """Whether it holds for a parameter."""
        named = not self.match or any(matches(entry.name, pattern) for pattern in self.match)
        return named and (not self.kinds or any(_is(kind, entry) for kind in self.kinds))

    def __repr__(self) -> str:
        given = {"match": self.match, "kinds": self.kinds} | self.options
        return f"Rule({', '.join(f'{name}={value!r}' for name, value in given.items() if value not in ([], None))})"


class RuledOptimizer(JoinedOptimizer):
    """Trains parameters by rules: of several that take a parameter, the last holds, and without one ``optimizer``.

    It stands wherever an optimizer does: for ``BackpropModule`` and ``LocoPropModule``, for the outer optimizer and for
    the rest, which give it the parameters with their names and modules. The table of layers says which optimizer and
    rate train each layer. Schedules multiply the rates of all rules.

    Args:
        params: Parameters, or groups of them, as from ``owned_parameters(network)``. Rules that go by patterns need
            names, and those that go by kinds their modules.
        optimizer: Makes the optimizer of all parameters without a rule of their own, and of the rules without one.
        rules: The rules; what one says of rate and decay goes before what a group says.

    Raises:
        UserError: For a pattern that no parameter has, a rule that takes none, and a rate or decay that the rule's
            optimizer has not.

    Example:
        >>> from torch.optim import SGD, AdamW
        >>> from locoprop_lightning.optimizers import owned_parameters
        >>> network = nn.Sequential(nn.Embedding(5, 3), nn.LayerNorm(3), nn.Linear(3, 2))
        >>> rules = [
        ...     Rule(kinds=["matrix"], optimizer=lambda p: SGD(p, lr=1.0)),
        ...     Rule(kinds=["embedding"], lr=0.1),
        ...     Rule(kinds=["bias", "normalization"], weight_decay=0.0),
        ... ]
        >>> optimizer = RuledOptimizer(owned_parameters(network), lambda p: AdamW(p), rules)
        >>> for group in optimizer.param_groups:
        ...     print(group["param_names"], group["lr"], group["weight_decay"])
        ['0.weight'] 0.1 0.01
        ['1.weight', '1.bias', '2.bias'] 0.001 0.0
        ['2.weight'] 1.0 0
    """

    _kept = (*JoinedOptimizer._kept, "_rules")

    def __init__(self, params: ParamsT, optimizer: OptimizerCallable, rules: Sequence[Rule]) -> None:
        makers, shares = [optimizer], [Share(0, {})]
        if not isinstance(rules, list | tuple):
            raise UserError(f"RuledOptimizer(rules={shown(rules)}): give a list, such as {_SUCH}.")
        for rule in rules:
            if not isinstance(rule, Rule):
                raise UserError(f"RuledOptimizer(rules=[{shown(rule)}]): give rules, such as {_SUCH}.")
            if rule.optimizer is not None:
                makers.append(rule.optimizer)
            shares.append(Share(0 if rule.optimizer is None else len(makers) - 1, rule.options))
        self._rules = [replace(rule, optimizer=None) for rule in rules]  # what makes optimizers need not be copied
        super().__init__(params, makers, shares)

    @property
    def signature(self) -> str:
        """The optimizers with the sizes of their groups, in which the rules show."""
        sizes = ["+".join(str(len(group["params"])) for group in child.param_groups) for child in self.children]
        kinds = [type(child).__name__ for child in self.children]
        return "/".join(" ".join(filter(None, pair)) for pair in zip(kinds, sizes, strict=True))

    @property
    def wants_modules(self) -> bool:  # noqa: D102
        return any("convolution" in rule.kinds for rule in self._rules) or super().wants_modules

    def choose(self, entry: OwnedParameter) -> int:  # noqa: D102
        taking = [i for i, rule in enumerate(self._rules, 1) if rule.takes(entry)]
        return taking[-1] if taking else 0

    def check(self, entries: Sequence[OwnedParameter]) -> None:  # noqa: D102
        for rule in self._rules:
            check_matches(repr(rule), rule.match, entries)
            kinds = [kind for kind in rule.kinds if kind in _OF_MODULES]
            if kinds and any(entry.owner is None for entry in entries):
                raise NamesNeeded(f"{rule!r}: the parameters' modules are not known; give owned_parameters(network).")
            if "bias" in rule.kinds and not all(entry.name for entry in entries):
                raise NamesNeeded(f"{rule!r}: the parameters have no names; give owned_parameters(network).")
            if not any(rule.takes(entry) for entry in entries):
                raise UserError(f"{rule!r}: takes no parameter; leave the rule out, or mend its kinds.")

    def check_options(self, parts: Sequence[Sequence[Group]], children: Sequence[Optimizer]) -> None:  # noqa: D102
        for rule, share in zip(self._rules, self._shares[1:], strict=True):
            child = children[share.child]
            for name in rule.options.keys() - child.defaults.keys():
                raise UserError(f"{rule!r}: {type(child).__name__} has no setting {name}; leave it out of the rule.")
        super().check_options(parts, children)


def _is(kind: Kind, entry: OwnedParameter) -> bool:
    """Whether a parameter is of a kind."""
    if kind == "convolution":
        return is_convolution(entry)
    if kind == "embedding":
        return isinstance(entry.owner, nn.Embedding | nn.EmbeddingBag)
    if kind == "normalization":
        return "norm" in type(entry.owner).__name__.lower()
    if kind == "bias":
        return entry.name.endswith("bias")
    return entry.parameter.ndim == 2 if kind == "matrix" else entry.parameter.ndim < 2
