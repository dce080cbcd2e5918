"""Optimizers that torch lacks, for the outer step and the baselines, and a schedule."""

from locoprop_lightning.optimizers.joined import owned_parameters
from locoprop_lightning.optimizers.muon import FullPrecisionMuon
from locoprop_lightning.optimizers.rmsprop import TensorFlowRMSprop
from locoprop_lightning.optimizers.ruled import Rule, RuledOptimizer
from locoprop_lightning.optimizers.schedule import LinearDecay
from locoprop_lightning.optimizers.split import SplitOptimizer

__all__ = [
    "FullPrecisionMuon",
    "LinearDecay",
    "Rule",
    "RuledOptimizer",
    "SplitOptimizer",
    "TensorFlowRMSprop",
    "owned_parameters",
]
