"""The mathematics of one layer: transfers, what a pass records, and the local problem. Imports torch only."""

from locoprop_lightning.local.discovery import Layer, discover
from locoprop_lightning.local.problem import LocalProblem
from locoprop_lightning.local.tape import Record, Tape
from locoprop_lightning.local.transfer import Transfer, resolve_transfer

__all__ = ["Layer", "LocalProblem", "Record", "Tape", "Transfer", "discover", "resolve_transfer"]
