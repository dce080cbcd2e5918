"""LocoProp and its relatives in PyTorch Lightning: every layer solves its own small convex problem."""

from locoprop_lightning.errors import UserError
from locoprop_lightning.module import BackpropModule, LocoPropModule

__all__ = ["BackpropModule", "LocoPropModule", "UserError"]
