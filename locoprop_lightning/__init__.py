"""LocoProp and its relatives in PyTorch Lightning: every layer solves its own small convex problem."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from locoprop_lightning.errors import UserError

if TYPE_CHECKING:
    from locoprop_lightning.loading import load_run
    from locoprop_lightning.local_backward import LocalBackward
    from locoprop_lightning.module import LocoPropModule
    from locoprop_lightning.supervised import BackpropModule

__all__ = ["BackpropModule", "LocalBackward", "LocoPropModule", "UserError", "load_run"]


_MODULES = {
    "BackpropModule": "supervised",
    "LocalBackward": "local_backward",
    "LocoPropModule": "module",
    "load_run": "loading",
}
_PACKAGES = ("callbacks", "data", "layers", "local", "networks", "optimizers", "oracles", "solvers", "tasks")


def __getattr__(name: str) -> Any:
    """The modules and packages, imported when first asked for: `locoprop-compare` does without torch and Lightning."""
    if name in _PACKAGES:
        return import_module(f"{__name__}.{name}")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_PACKAGES})
