"""Oracles: estimates of the direction D in which a layer's pre-activation should move."""

from locoprop_lightning.oracles.gradient import GradientOracle
from locoprop_lightning.oracles.oracle import Oracle
from locoprop_lightning.oracles.rms import RMSOracle
from locoprop_lightning.oracles.spectral import SpectralOracle
from locoprop_lightning.oracles.whitened import WhitenedOracle

__all__ = ["GradientOracle", "Oracle", "RMSOracle", "SpectralOracle", "WhitenedOracle"]
