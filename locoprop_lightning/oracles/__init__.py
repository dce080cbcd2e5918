"""Oracles: estimates of the direction D in which a layer's pre-activation should move."""

from locoprop_lightning.oracles.gradient import GradientOracle
from locoprop_lightning.oracles.oracle import Oracle

__all__ = ["GradientOracle", "Oracle"]
