"""LocoProp and its relatives in PyTorch Lightning: every layer solves its own small convex problem."""

from typing import TYPE_CHECKING, Any

from locoprop_lightning.errors import UserError

if TYPE_CHECKING:
    from locoprop_lightning.module import BackpropModule, LocoPropModule

__all__ = ["BackpropModule", "LocoPropModule", "UserError"]


def __getattr__(name: str) -> Any:
    """The modules, imported when first asked for: `locoprop-compare` does without torch and Lightning."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from locoprop_lightning import module

    return getattr(module, name)
