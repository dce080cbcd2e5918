"""How objects show themselves: in one line, by the settings that they were given."""

import inspect
from typing import Any, Self

from torch import Tensor, nn


class _Arguments:
    """What ``inspect.signature``, and so help and editors, say of a class: the arguments of its ``__init__``."""

    def __get__(self, made: object, kind: Any) -> inspect.Signature:
        if made is not None:  # an object that can be called has a signature of its own
            raise AttributeError
        if kind.__init__ is object.__init__:
            return inspect.Signature()
        signature = inspect.signature(kind.__init__)
        return signature.replace(parameters=[*signature.parameters.values()][1:])


class Shown:
    """Shows an object as its class with those settings that it was given and that are not the default.

    Where it keeps a setting under the name of the argument, the value is today's.

    Example:
        >>> class Thing(Shown):
        ...     def __init__(self, size, name="a", depth=3):
        ...         self.size = size
        >>> thing = Thing(2, depth=4)
        >>> thing.size = 5
        >>> thing, Thing(2, "a")
        (Thing(size=5, depth=4), Thing(size=2))
        >>> print(inspect.signature(Thing))
        (size, name='a', depth=3)
    """

    __signature__ = _Arguments()
    _given: dict[str, tuple[Any, Any]]  # arguments and their defaults by name

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:  # noqa: D102
        if cls.__init__ is object.__init__ and (args or kwargs):  # which takes them where there is a __new__
            raise TypeError(f"{cls.__name__}() takes no arguments")
        made = super().__new__(cls)
        signature = inspect.signature(cls.__init__)
        try:
            bound = signature.bind(made, *args, **kwargs).arguments
        except TypeError:  # which __init__ raises too, and better
            bound = {}
        own = [name for name, p in signature.parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)][1:]
        given = {name: (bound[name], signature.parameters[name].default) for name in own if name in bound}
        object.__setattr__(made, "_given", given)
        return made

    def __str__(self) -> str:
        return repr(self)

    def __repr__(self) -> str:
        told = []
        for name, (given, default) in self._given.items():
            value = getattr(self, name, given)
            if not _same(value, default):
                told.append(f"{name}={short(value)}")
        return f"{type(self).__name__}({', '.join(told)})"


def short(value: Any) -> str:
    """A value in a few characters: a tensor by its shape, a function by its name."""
    if isinstance(value, Tensor):
        return f"tensor{list(value.shape)}"
    if callable(value) and hasattr(value, "__qualname__"):
        return str(value.__qualname__).rpartition(".")[2].strip("<>")
    return repr(value)


def sized(network: nn.Module) -> str:
    """A network by its class and the number of its parameters."""
    return f"{type(network).__name__} of {sum(p.numel() for p in network.parameters()):,} parameters"


def _same(a: Any, b: Any) -> bool:
    return a is b or (isinstance(a, bool | int | float | str) and type(a) is type(b) and a == b)
