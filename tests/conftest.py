"""Fixtures for all tests."""

import os
from pathlib import Path

import pytest
import torch

from locoprop_lightning.data import FashionMNIST
from locoprop_lightning.data.fashion_mnist import DEBIAN_FOLDER
from locoprop_lightning.local import LocalProblem, resolve_transfer

DATA = Path(__file__).parents[1] / "data"

if "PYTEST_XDIST_WORKER" in os.environ:  # its neighbours have the other threads
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    """Tests with processes first, so that no worker ends with minutes of them when the others have done."""
    items.sort(key=lambda item: item.get_closest_marker("processes") is None)


@pytest.fixture(autouse=True)
def seed(monkeypatch):
    """Seeds torch, and hides the seed that an earlier test gave to Lightning; returns the seed."""
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    torch.manual_seed(0)
    return 0


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Runs in an empty folder, without the environment variables that Lightning sets."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["locoprop"])
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # Lightning calls a deprecated method of its
    before = dict(os.environ)
    yield tmp_path
    for name in os.environ.keys() - before.keys():
        del os.environ[name]


@pytest.fixture(scope="session")
def fashion_mnist():
    """The real Fashion-MNIST, read once."""
    data = FashionMNIST(root=str(DATA), batch_size=1024, seed=0, download=False)
    if data.find() is None:
        pytest.skip(f"Fashion-MNIST is neither in {DATA} nor in {DEBIAN_FOLDER}: run `make data`")
    data.setup("fit")
    return data


@pytest.fixture
def make_problem():
    """Makes random local problems; the default has more rows than inputs. ``scale`` multiplies the rows."""

    def make(
        transfer="identity",
        n=12,
        d_in=5,
        d_out=3,
        bias=True,
        lambda_a=0.7,
        lambda_r=None,
        seed=0,
        dtype=torch.float64,
        scale=1.0,
        **arguments,
    ):
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

        rows, weight = scale * draw(n, d_in), draw(d_out, d_in) / d_in**0.5
        b = draw(d_out) / 2 if bias else None
        return LocalProblem(
            rows,
            torch.nn.functional.linear(rows, weight, b),
            draw(n, d_out) / 4,
            weight,
            b,
            resolve_transfer(transfer),
            lambda_a,
            2.0 if lambda_r is None else lambda_r,
            **{"name": "layer", **arguments},
        )

    return make
