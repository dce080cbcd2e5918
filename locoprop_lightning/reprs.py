"""How objects show themselves, in one line by the settings that they were given, and what their classes refuse."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from torch import Tensor, nn

from locoprop_lightning.errors import UserError, listed, near_names


class _Arguments:
    """What ``inspect.signature``, and so help and editors, say of a class: the arguments of its ``__init__``."""

    def __get__(self, made: object, kind: Any) -> inspect.Signature:
        if made is not None:  # an object that can be called has a signature of its own
            raise AttributeError
        if kind.__init__ is object.__init__:
            return inspect.Signature()
        signature = inspect.signature(kind.__init__)
        return signature.replace(parameters=[*signature.parameters.values()][1:])


class Told:
    """Tells of an argument that a class does not have which ones it has; Python's own sentence names none.

    Example:
        >>> class Thing(Told):
        ...     def __init__(self, size, depth=3):
        ...         self.size = size
        >>> Thing(2, dept=4)
        Traceback (most recent call last):
        TypeError: Thing has no argument 'dept'; it has size, depth; near names are depth
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:  # noqa: D102
        if kwargs:
            parameters = [*inspect.signature(cls.__init__).parameters.values()][1:]
            known = [one.name for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
            unknown = [name for name in kwargs if name not in known]
            if unknown and not any(one.kind is one.VAR_KEYWORD for one in parameters):
                has = f"it has {listed(known, 30)}" if known else "it has none"
                raise TypeError(f"{cls.__name__} has no argument {unknown[0]!r}; {has}{near_names(unknown[0], known)}")
        return super().__new__(cls)


def _binds(function: Callable[..., Any], places: Sequence[Any], names: Mapping[str, Any]) -> bool:
    """Whether a function can be called with so many arguments by place, and those by name."""
    try:
        inspect.signature(function).bind(*places, **names)
    except TypeError:
        return False
    return True


def check_overrides(kind: type) -> None:
    """Refuses a class with a method that cannot be called as the one that it overrides.

    Args:
        kind: The class, of which only what it says itself is looked at.

    Raises:
        UserError: Names the method and the arguments that it must take.
    """
    for name, own in vars(kind).items():
        base = next((other for other in kind.__mro__[1:] if name in vars(other)), object)
        theirs = vars(base).get(name)
        if name.startswith("_") or not inspect.isfunction(own) or not inspect.isfunction(theirs):
            continue
        asked = [one for one in inspect.signature(theirs).parameters.values() if one.default is one.empty]
        places = [one for one in asked if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
        names = {one.name: None for one in asked if one.kind is one.KEYWORD_ONLY}
        if not _binds(own, places, names) and not _binds(own, [], {one.name: None for one in asked}):
            taken = [str(one).partition(":")[0] for one in inspect.signature(own).parameters.values()][1:]
            given = ", ".join([*[one.name for one in places[1:]], *[f"{one}=" for one in names]])
            raise UserError(
                f"{kind.__name__}.{name}({', '.join(taken)}): must take ({given}), as {base.__name__}.{name} does."
            )


class Shown(Told):
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

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        check_overrides(cls)

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:  # noqa: D102
        if cls.__init__ is object.__init__ and (args or kwargs):  # which takes them where there is a __new__
            raise TypeError(f"{cls.__name__}() takes no arguments")
        made = super().__new__(cls, *args, **kwargs)
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
