"""Gradients for tests of oracles."""

import torch

from locoprop_lightning.local.preconditioner import average_of


def batch(n=12, d_out=4, seed=0, dtype=torch.float64):
    """G [n, d_out] of a batch mean; its units have sizes of their own."""
    generator = torch.Generator().manual_seed(seed)
    g = torch.randn(n, d_out, dtype=torch.float64, generator=generator) / n
    return (g * torch.logspace(-1, 1, d_out, dtype=torch.float64)).to(dtype)


def close(a, b, tolerance=1e-11):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def second_moment(state):
    """S."""
    return average_of(state["preconditioner"]["average"])
