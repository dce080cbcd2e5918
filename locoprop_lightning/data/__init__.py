"""Data modules: images in memory, batches in an order that depends on seed and epoch alone."""

from locoprop_lightning.data.digits import Digits
from locoprop_lightning.data.fashion_mnist import FashionMNIST

__all__ = ["Digits", "FashionMNIST"]
