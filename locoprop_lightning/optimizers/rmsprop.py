"""RMSprop as TensorFlow 1 computes it."""

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from locoprop_lightning.errors import check_amount, check_fraction, check_positive, check_several
from locoprop_lightning.optimizers.closure import loss_of


class TensorFlowRMSprop(Optimizer):
    """TensorFlow 1's RMSPropOptimizer (Tieleman and Hinton, 2012), the inner one of Amid, Anil and Warmuth (2022).

    Unlike in torch's RMSprop, the mean square s starts at ones, eps is inside the root, and the rate enters the
    momentum m, so that a change of rate leaves the steps already in it as they are:

        s = decay s + (1 - decay) g^2,    m = momentum m + lr g / sqrt(s + eps),    p = p - m.

    Args:
        params: Parameters, or groups of them.
        lr: Rate, at least 0.
        decay: Of the mean square, at least 0 and below 1.
        momentum: At least 0 and below 1.
        eps: Added to the mean square, above 0.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([1.0]))
        >>> optimizer = TensorFlowRMSprop([weight], lr=0.1)
        >>> weight.grad = torch.tensor([1.0])
        >>> optimizer.step()  # the mean square is 0.9 + 0.1
        >>> weight
        Parameter containing:
        tensor([0.9000], requires_grad=True)
    """

    def __init__(
        self, params: ParamsT, lr: float, decay: float = 0.9, momentum: float = 0.0, eps: float = 1e-10
    ) -> None:
        check_several("TensorFlowRMSprop", "parameters", params=params)
        check_amount("TensorFlowRMSprop", lr=lr)
        check_fraction("TensorFlowRMSprop", decay=decay, momentum=momentum)
        check_positive("TensorFlowRMSprop", eps=eps)
        super().__init__(params, {"lr": lr, "decay": decay, "momentum": momentum, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step.

        Args:
            closure: Computes the loss and the gradients, if given.

        Returns:
            What the closure returned.
        """
        loss = loss_of(closure)
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            states = [self._state(p) for p in params]
            gradients = [p.grad for p in params]
            squares = [state["mean_square"] for state in states]
            momenta = [state["momentum"] for state in states]
            torch._foreach_mul_(squares, group["decay"])
            torch._foreach_addcmul_(squares, gradients, gradients, value=1 - group["decay"])
            roots = torch._foreach_add(squares, group["eps"])
            torch._foreach_sqrt_(roots)
            torch._foreach_mul_(momenta, group["momentum"])
            torch._foreach_addcdiv_(momenta, gradients, roots, value=group["lr"])
            torch._foreach_sub_(params, momenta)
        return loss

    def _state(self, p: torch.Tensor) -> dict[str, torch.Tensor]:
        state = self.state[p]
        if not state:
            state["mean_square"] = torch.ones_like(p)
            state["momentum"] = torch.zeros_like(p)
        return state
