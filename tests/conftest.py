"""Fixtures for all tests."""

from pathlib import Path

import pytest
import torch

from locoprop_lightning.data import FashionMNIST
from locoprop_lightning.data.fashion_mnist import DEBIAN_FOLDER

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture(autouse=True)
def seed(monkeypatch):
    """Seeds torch, and hides the seed that an earlier test gave to Lightning; returns the seed."""
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    torch.manual_seed(0)
    return 0


@pytest.fixture(scope="session")
def fashion_mnist():
    """The real Fashion-MNIST, read once."""
    data = FashionMNIST(root=str(DATA), batch_size=1024, seed=0, download=False)
    if data.find() is None:
        pytest.skip(f"Fashion-MNIST is neither in {DATA} nor in {DEBIAN_FOLDER}: run `make data`")
    data.setup("fit")
    return data
