"""An Adam-like oracle: gradients in units of their own size."""

from typing import Literal

import torch
from torch import Tensor

from locoprop_lightning.errors import check_choice, check_fraction, check_positive
from locoprop_lightning.local import Rows, State
from locoprop_lightning.local.preconditioner import average_of, update_average
from locoprop_lightning.oracles.oracle import ALL_HERE, Oracle


class RMSOracle(Oracle):
    """D = NG / rms(NG): each unit's gradient of single terms of the loss over its root mean square, a moving average.

    D has no unit: a target moves by about lambda_a where the gradient has its usual size, whatever the scale of the
    loss, so lambda_a is the length of the step in pre-activations (LocoProp-S) or activations (M). 0.1 usually works,
    with a rate that decays to zero. It is Adam's scaling (Kingma and Ba, 2015) of units instead of weights:
    ``docs/mathematics.md``, section 9.

    The state of a layer has one key, ``square``: the moving average.

    Args:
        beta: Decay of the moving average of the squares, bias-corrected, in [0, 1).
        eps: Added to the root, relative to the root mean square of the whole layer, above 0.
        per: "unit", or "layer" for one root mean square for all units, which keeps their proportions.
    """

    def __init__(self, beta: float = 0.9, eps: float = 1e-3, per: Literal["unit", "layer"] = "unit") -> None:
        check_fraction("RMSOracle", beta=beta)
        check_positive("RMSOracle", eps=eps)
        check_choice("RMSOracle", ("unit", "layer"), per=per)
        self.beta = beta
        self.eps = eps
        self.per = per

    def observe(  # noqa: D102
        self, gradient: Tensor, sampled: list[Tensor], terms: int, state: State, rows: Rows = ALL_HERE
    ) -> None:
        scale = terms**2 / rows.count(len(gradient))
        square = rows.sum(torch.linalg.vecdot(gradient, gradient, dim=0)) * scale  # mean over rows of (NG)^2 [d_out]
        update_average(state.setdefault("square", {}), square, self.beta)

    def _scale(self, terms: int, state: State) -> Tensor:
        """R, diagonal [d_out]."""
        square = average_of(state["square"])
        layer = square.mean().sqrt()
        root = square.sqrt() if self.per == "unit" else layer.expand_as(square)
        return torch.where(layer > 0, terms / (root + self.eps * layer), 0.0)  # no gradient yet: no direction

    def direction(self, gradient: Tensor, terms: int, state: State) -> Tensor:  # noqa: D102
        return gradient * self._scale(terms, state)

    def weight_direction(self, weight_gradient: Tensor, terms: int, state: State) -> Tensor:  # noqa: D102
        return weight_gradient * self._scale(terms, state)[:, None]
