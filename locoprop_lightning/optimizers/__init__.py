"""Optimizers that torch lacks, for the outer step and the baselines, and a schedule."""

from locoprop_lightning.optimizers.muon import FullPrecisionMuon
from locoprop_lightning.optimizers.rmsprop import TensorFlowRMSprop
from locoprop_lightning.optimizers.schedule import LinearDecay
from locoprop_lightning.optimizers.split import SplitOptimizer

__all__ = ["FullPrecisionMuon", "LinearDecay", "SplitOptimizer", "TensorFlowRMSprop"]
