"""Muon with a choice of precision."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from locoprop_lightning.errors import UserError, check_amount, check_counts, check_flags, check_fraction, check_several
from locoprop_lightning.optimizers.closure import loss_of

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration (Jordan et al., 2024)


class FullPrecisionMuon(Optimizer):
    """``torch.optim.Muon`` in the precision of the weights: momentum, orthogonalised by Newton-Schulz iteration.

    Muon is by Jordan et al. (2024). Torch's own works in bfloat16, which processors without such units emulate several
    times slower than float32. The update has the root mean square of an Adam step, rate times 0.2 (torch's
    ``adjust_lr_fn="match_rms_adamw"``).
    Weights of convolutions are taken as matrices, flattened from their second dimension on.

    Args:
        params: Matrices [d_out, d_in], or weights of convolutions [d_out, ...].
        lr: Rate, at least 0.
        momentum: In [0, 1).
        nesterov: Whether to look ahead.
        weight_decay: Decoupled, at least 0.
        ns_steps: Newton-Schulz iterations, at least 1.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        ns_steps: int = 5,
    ) -> None:
        check_amount("FullPrecisionMuon", lr=lr, weight_decay=weight_decay)
        check_several("FullPrecisionMuon", "parameters", params=params)
        check_flags("FullPrecisionMuon", nesterov=nesterov)
        check_fraction("FullPrecisionMuon", momentum=momentum)
        check_counts("FullPrecisionMuon", 1, ns_steps=ns_steps)
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "nesterov": nesterov,
            "weight_decay": weight_decay,
            "ns_steps": ns_steps,
        }
        super().__init__(params, defaults)
        for p in (p for group in self.param_groups for p in group["params"]):
            if p.ndim < 2:
                raise UserError(
                    f"FullPrecisionMuon: takes matrices and weights of convolutions, not a parameter of shape "
                    f"{tuple(p.shape)}; SplitOptimizer(matrix=..., other=...) gives the others to another."
                )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of all matrices that have a gradient."""
        loss = loss_of(closure)
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(p)
                buffer = state["momentum_buffer"].lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(buffer, group["momentum"]) if group["nesterov"] else buffer
                update = orthogonalize(update.flatten(1), group["ns_steps"])
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update.reshape(p.shape), alpha=-group["lr"] * 0.2 * max(update.shape) ** 0.5)
        return loss


def orthogonalize(x: Tensor, steps: int) -> Tensor:
    """X with its singular values moved close to 1, by Newton-Schulz iteration; zero stays zero [same shape]."""
    a, b, c = _COEFFICIENTS
    tall = x.shape[0] > x.shape[1]
    x = x.mT if tall else x
    x = x / torch.linalg.vector_norm(x).clamp_min(torch.finfo(x.dtype).tiny)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
