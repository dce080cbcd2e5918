"""Optimizers that torch lacks, for the baselines and for parameters without a local problem."""

from locoprop_lightning.optimizers.muon import FullPrecisionMuon
from locoprop_lightning.optimizers.rmsprop import TensorFlowRMSprop
from locoprop_lightning.optimizers.split import SplitOptimizer

__all__ = ["FullPrecisionMuon", "SplitOptimizer", "TensorFlowRMSprop"]
