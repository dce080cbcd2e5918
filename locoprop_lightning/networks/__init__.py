"""Networks that the shipped configurations train."""

from locoprop_lightning.networks.mlp import MLP

__all__ = ["MLP"]
