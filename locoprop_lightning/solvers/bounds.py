"""Bounds on how far a step may go: of each layer relative to its weights, and of all by what the loss would fall."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from locoprop_lightning.solvers.solution import Solution


def within_displacement(solution: Solution, bound: float) -> Solution:
    """A solution whose displacement is no longer than a part of the weights, or of PyTorch's first ones if larger.

    Args:
        solution: The solution.
        bound: The part.
    """
    problem, v = solution.problem, solution.displacement
    first = (problem.shape[0] / 3) ** 0.5  # expected norm of a matrix whose entries are uniform within 1/sqrt(d_in)
    size = torch.linalg.vector_norm(problem.start_matrix()).clamp_min(first)
    part = bound * size / torch.linalg.vector_norm(v).clamp_min(torch.finfo(v.dtype).tiny)
    return replace(solution, displacement=v * part.clamp_max(1.0))


def within_decrease(
    solutions: Mapping[str, Solution],
    loss: Tensor,
    bound: float,
    run_all: Callable[[Mapping[str, Callable[[], Tensor]]], dict[str, Tensor]],
) -> dict[str, Solution]:
    """Solutions times one number, at most 1, by which the loss, were it linear, falls by no more than a multiple of it.

    A Polyak step's length (Polyak, 1969; Loizou et al., 2021) for a loss that is never negative: along the step to the
    minimum of a quadratic that is zero there, it would fall by twice itself. A loss below zero bounds nothing.

    Args:
        solutions: Solutions that are applied, by name of the layer, of problems with a ``weight_gradient``.
        loss: The loss of the whole batch, scalar.
        bound: The multiple.
        run_all: Runs a function a layer.
    """
    falls = run_all({name: partial(_fall, solution) for name, solution in solutions.items()})
    most = bound * loss.reshape(())
    fall = sum(falls.values(), torch.zeros_like(most))
    part = torch.where((most >= 0) & (fall > most), most / fall, 1.0)
    return {
        name: replace(one, displacement=one.displacement * part.to(one.displacement)) for name, one in solutions.items()
    }


def _fall(solution: Solution) -> Tensor:
    """-<G^T Y, V>, by how much the loss would fall if it were linear, scalar."""
    gradient, v = solution.problem.weight_gradient, solution.displacement
    assert gradient is not None
    return -torch.dot(gradient().to(v).reshape(-1), v.reshape(-1))
