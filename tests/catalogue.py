"""Every solver and every kind of local problem, by name: what tests of all of them go through."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import nn

from locoprop_lightning.local import LocalProblem, resolve_transfer
from locoprop_lightning.optimizers import TensorFlowRMSprop
from locoprop_lightning.solvers import (
    AndersonAcceleration,
    ClosedForm,
    ConjugateGradient,
    FixedPointIteration,
    GradientDescent,
    InnerOptimizer,
    Majorization,
)
from tests.support import KEPT, operator_of, rows_of

ITERATIVE = {  # each takes its number of iterations
    "fpi": FixedPointIteration,
    "anderson": AndersonAcceleration,
    "anderson_plain": partial(AndersonAcceleration, safeguard=False),
    "published": GradientDescent,
    "published_schedule": partial(GradientDescent, schedule="published"),
    "corrected": partial(GradientDescent, proximal=True),
    "corrected_schedule": partial(GradientDescent, proximal=True, schedule="published"),
    "conjugate_gradient": ConjugateGradient,
    "majorization": Majorization,
    "majorization_nesterov": partial(Majorization, acceleration="nesterov"),
    "majorization_kept": partial(Majorization, **KEPT),
    "majorization_refreshed": partial(Majorization, refresh_every=3, warmup=0),
    "inner_sgd": partial(InnerOptimizer, partial(torch.optim.SGD, lr=1e-4, momentum=0.5)),
    "inner_adam": partial(InnerOptimizer, partial(torch.optim.Adam, lr=1e-4), proximal=True),
    "inner_rmsprop": partial(InnerOptimizer, partial(TensorFlowRMSprop, lr=1e-4, momentum=0.5)),
    "inner_anew": partial(InnerOptimizer, partial(torch.optim.Adam, lr=1e-4), persistent=False),
}
DIRECT = {
    "closed_form": ClosedForm,
    "closed_form_kept": partial(ClosedForm, **KEPT),
    "closed_form_average": partial(ClosedForm, average=0.9),
    "closed_form_refreshed": partial(ClosedForm, refresh_every=3, warmup=0),
}
EVERY = [*ITERATIVE, *DIRECT]
SQUARED_ONLY = {"conjugate_gradient", *DIRECT}
# J need not fall where the proximal term is left out, nor with an optimizer that knows nothing of J.
PROMISED = {name for name in EVERY if not name.startswith(("published", "inner"))}
MONOTONE = {"fpi", "corrected", "corrected_schedule", "conjugate_gradient", "majorization"}  # lambda_r > lambda_max(C)
KEEP_MOMENTA = {"inner_sgd", "inner_adam", "inner_rmsprop"}
AFFINE = ["fpi", "published", "corrected"]  # whose steps are powers of one matrix on the squared loss


def solver(name, iterations=10):
    """A new solver; one that does not iterate takes no notice of ``iterations``."""
    return ITERATIVE[name](iterations) if name in ITERATIVE else DIRECT[name]()


class Kind(NamedTuple):
    """A kind of local problem: a layer, the size of its inputs, and what follows it."""

    layer: Callable[[], nn.Module]
    inputs: tuple[int, ...]
    transfer: str = "identity"


KINDS = {
    "tall": Kind(partial(nn.Linear, 5, 3), (12, 5)),
    "wide": Kind(partial(nn.Linear, 13, 3), (4, 13)),
    "no_bias": Kind(partial(nn.Linear, 5, 3, bias=False), (12, 5)),
    "tanh": Kind(partial(nn.Linear, 5, 3), (12, 5), "tanh"),
    "tanh_wide": Kind(partial(nn.Linear, 13, 3), (4, 13), "tanh"),
    "softmax": Kind(partial(nn.Linear, 5, 3), (12, 5), "softmax"),
    "convolution": Kind(partial(nn.Conv2d, 2, 3, 2, stride=2), (5, 2, 4, 4)),
    "convolution_tanh": Kind(partial(nn.Conv2d, 2, 3, 2, stride=2), (5, 2, 4, 4), "tanh"),
    "groups": Kind(partial(nn.Conv2d, 2, 4, 3, padding=1, groups=2), (2, 2, 4, 3)),
}


def takes(name, kind):
    """Whether a solver takes a kind of problem."""
    return name not in SQUARED_ONLY or KINDS[kind].transfer == "identity"


def pairs(names, kinds=KINDS):
    """Each solver with each kind of problem that it takes."""
    return [(name, kind) for name in names for kind in kinds if takes(name, kind)]


def draw(kind, seed=0, n=None, dtype=torch.float64, scale=1.0):
    """A random layer, inputs, and the direction at its output.

    The layer depends on the seed too. ``n`` is the number of samples, ``scale`` multiplies the inputs.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    layer = KINDS[kind].layer().to(dtype).requires_grad_(False)
    size = KINDS[kind].inputs
    inputs = scale * normal(size[0] if n is None else n, *size[1:])
    layer.weight.copy_(normal(*layer.weight.shape) / layer.weight[0].numel() ** 0.5)
    if layer.bias is not None:
        layer.bias.copy_(normal(*layer.bias.shape) / 2)
    return layer, inputs, normal(*layer(inputs).shape) / 4


def problem_of(kind, layer, inputs, direction, lambda_a, lambda_r, operator=None):
    """The local problem of what was drawn, or of some of its samples; ``operator`` is another one at these inputs."""
    return LocalProblem(
        operator_of(layer, [inputs]) if operator is None else operator,
        rows_of(layer, layer(inputs)),
        rows_of(layer, direction),
        layer.weight.flatten(1),
        layer.bias,
        resolve_transfer(KINDS[kind].transfer),
        lambda_a,
        lambda_r,
        name="layer",
    )


def problem(kind, lambda_a=2.0, lambda_r=100.0, **arguments):
    """A random local problem, with a lambda_r above the largest eigenvalue of C. The arguments are ``draw``'s."""
    return problem_of(kind, *draw(kind, **arguments), lambda_a, lambda_r)
