"""What no local solver trains: it steps by its true gradient, or where that is not finite, stays for the step."""

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer

from locoprop_lightning.local_layer import LocalLayer
from locoprop_lightning.solvers import Solution, Status

_log = logging.getLogger(__name__)
_KEY = "rest"  # in a checkpoint


class Rest:
    """Steps the rest, and takes back what a batch that is not finite did to the statistics of normalisations.

    One gradient that is not finite would leave weights, or an optimizer's moments, that no later batch could mend. All
    of the rest is left alone then, since it has one loss. With several processes the gradients are those that all have
    averaged, so that all decide alike.

    Attributes:
        skipped: Steps for which the rest was left alone.
    """

    def __init__(self) -> None:
        self.skipped = 0
        self._size: Tensor | None = None  # largest entry of the gradients
        self._statistics: list[tuple[Tensor, Tensor]] = []  # running ones, and what they were before the pass

    def begin(self, network: nn.Module) -> None:
        """Begins a step, before the forward pass.

        Args:
            network: The network.
        """
        network.zero_grad(set_to_none=True)
        norms = (m for m in network.modules() if isinstance(m, _NormBase) and m.training)
        running = (x for m in norms for x in (m.running_mean, m.running_var))
        self._statistics = [(x, x.clone()) for x in running if x is not None]

    def look(self, network: nn.Module, local: Iterable[LocalLayer]) -> None:
        """Takes the gradients of local layers away, and looks at the others, without waiting for the device.

        Args:
            network: The network, after the backward pass.
            local: The layers that have a problem.
        """
        for layer in local:  # without a gradient optimizers pass over them
            layer.clear_gradients()
        gradients = [_entries(p.grad) for p in network.parameters() if p.grad is not None]
        self._size = nn.utils.get_total_norm(gradients, torch.inf) if gradients else None

    def step(
        self, network: nn.Module, optimizer: Optimizer, solutions: Mapping[str, Solution], always: bool = False
    ) -> None:
        """Steps the rest; no gradient is left, so that the outer optimizer finds displacements only.

        To be called after the solves, whose judgement has waited for the device.

        Args:
            network: The network.
            optimizer: That of the rest.
            solutions: Those of the local layers.
            always: Whether the optimizer steps also where there is no gradient.
        """
        spoilt = self._size is not None and not self._size.isfinite()
        if spoilt:
            network.zero_grad(set_to_none=True)
            self._count()
        if spoilt or any(solution.status is Status.NONFINITE for solution in solutions.values()):
            for running, before in self._statistics:
                running.copy_(torch.where(running.isfinite().all(), running, before))
        if always or any(p.grad is not None for p in network.parameters()):
            optimizer.step()
        network.zero_grad(set_to_none=True)
        self._size, self._statistics = None, []

    def _count(self) -> None:
        if not self.skipped:
            _log.warning(
                "The gradient of what rest_optimizer trains was not finite, and all of it keeps its weights for the "
                "step (said once, then counted); look at the inputs and the loss."
            )
        self.skipped += 1

    def save(self, checkpoint: dict[str, Any]) -> None:
        """Adds how often the rest was left alone."""
        checkpoint[_KEY] = {"skipped": self.skipped}

    def load(self, checkpoint: Mapping[str, Any]) -> None:
        """Goes on counting."""
        self.skipped = checkpoint.get(_KEY, {}).get("skipped", 0)


def _entries(gradient: Tensor) -> Tensor:
    """The entries of a gradient, of a sparse one those that are there."""
    return gradient.coalesce().values() if gradient.is_sparse else gradient
