"""Data modules: batches in an order that depends on seed and epoch alone."""

from locoprop_lightning.data.datasets import Datasets
from locoprop_lightning.data.digits import Digits
from locoprop_lightning.data.fashion_mnist import FashionMNIST
from locoprop_lightning.data.idx_images import IdxImages
from locoprop_lightning.data.text import TextFiles

__all__ = ["Datasets", "Digits", "FashionMNIST", "IdxImages", "TextFiles"]
