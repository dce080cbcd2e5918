"""What several test modules share."""

import importlib.util
from pathlib import Path

import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def benchmark(name):
    """A script of the benchmarks as a module."""
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def close(a, b, tolerance):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def joined(solution, problem):
    """V = [W+ | b+] - [W0 | b0]."""
    v = solution.weight - problem.weight
    return v if problem.bias is None else torch.cat([v, (solution.bias - problem.bias)[:, None]], 1)
