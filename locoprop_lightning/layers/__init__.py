"""Layers of a network: kinds of layers and their registry, what a pass records of them, and who trains which."""

from locoprop_lightning.layers.consumers import activation
from locoprop_lightning.layers.convolution import ConvolutionKind
from locoprop_lightning.layers.discovery import LayerInfo, discover
from locoprop_lightning.layers.embedding import EmbeddingKind
from locoprop_lightning.layers.kind import LayerKind, kind_of, register
from locoprop_lightning.layers.linear import BilinearKind, GraphLinearKind, LinearKind, TransposedLinearKind
from locoprop_lightning.layers.record import Record
from locoprop_lightning.layers.tape import Tape
from locoprop_lightning.layers.transposed import TransposedConvolutionKind

__all__ = [
    "BilinearKind",
    "ConvolutionKind",
    "EmbeddingKind",
    "GraphLinearKind",
    "LayerInfo",
    "LayerKind",
    "LinearKind",
    "Record",
    "Tape",
    "TransposedConvolutionKind",
    "TransposedLinearKind",
    "activation",
    "discover",
    "kind_of",
    "register",
]

for _kind in (
    LinearKind,
    TransposedLinearKind,
    GraphLinearKind,
    BilinearKind,
    ConvolutionKind,
    TransposedConvolutionKind,
    EmbeddingKind,
):
    register(_kind)
