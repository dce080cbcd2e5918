"""Anderson acceleration of the fixed-point iteration."""

import torch
from torch import Tensor

from locoprop_lightning.errors import check_counts, check_flags, check_positive
from locoprop_lightning.local import LocalProblem, State
from locoprop_lightning.solvers.iterative import IterativeSolver, Step


class AndersonAcceleration(IterativeSolver):
    """Mixes the last iterates so that their combined residual is smallest (Anderson, 1965; Walker and Ni, 2011).

    Each output unit, a row of [W | b], is a problem of its own (the layer is one problem where F couples the units).
    With residuals r_i = -grad J(V_i) / lambda_r and weights alpha that sum to one and minimise ||sum_i alpha_i r_i||,
    the next iterate is sum_i alpha_i (V_i + beta r_i).

    With ``safeguard``, an extrapolation whose residual is larger than the last accepted one is refused: the unit's beta
    shrinks by 1 + the factor by which the residual grew (the secant estimate of what the step should have been), and
    the refused point serves the next mix as a secant only. The last iterate, whose residual would cost one more
    gradient, is applied where the one before it was accepted; else the unit ends on its last accepted iterate.

    Args:
        iterations: T, at least 1.
        memory: Number of iterates mixed, at least 1.
        ridge: Added to the diagonal of the residuals' Gram matrix.
        beta: Mixing, above 0.
        safeguard: Whether to refuse; False is the review's.
        relative_ridge: Whether the ridge is relative to the Gram matrix's mean diagonal entry; False is the review's.
    """

    def __init__(
        self,
        iterations: int = 10,  # T
        memory: int = 5,  # m
        ridge: float = 1e-5,
        beta: float = 1.0,
        safeguard: bool = True,
        relative_ridge: bool = True,
    ) -> None:
        super().__init__(iterations)
        check_flags("AndersonAcceleration", safeguard=safeguard, relative_ridge=relative_ridge)
        check_counts("AndersonAcceleration", 1, memory=memory)
        check_positive("AndersonAcceleration", ridge=ridge, beta=beta)
        self.memory = memory
        self.ridge = ridge
        self.beta = beta
        self.safeguard = safeguard
        self.relative_ridge = relative_ridge

    def init(self, problem: LocalProblem, state: State) -> "_History":  # noqa: D102
        v = problem.zeros()
        rows = 1 if problem.transfer.rowwise else v.shape[0]
        return _History(v.reshape(rows, -1), min(self.memory, self.iterations), self.beta)

    def step(self, problem: LocalProblem, v: Tensor, gradient: Tensor, k: int, carry: "_History") -> Step:
        """One mix of the history; the residual is that of the accepted iterates with the safeguard."""
        iterate = v.reshape(carry.best.shape)
        residual = (gradient / -problem.lambda_r).reshape(carry.best.shape)
        carry.push(iterate, residual, k)
        if not self.safeguard:
            return Step(carry.mix(self.ridge, self.relative_ridge).reshape(v.shape), carry)
        accepted = carry.accept(iterate, residual)
        mixed = carry.mix(self.ridge, self.relative_ridge)
        if 0 < k == self.iterations - 1:
            mixed = torch.where(accepted[:, None], mixed, carry.best)
        return Step(mixed.reshape(v.shape), carry, torch.linalg.vector_norm(carry.norm))


class _History:
    """The last iterates and residuals of independent rows, with the Gram matrices of the residuals.

    Args:
        v: First iterate [rows, size].
        memory: Iterates kept.
        beta: Mixing.
    """

    def __init__(self, v: Tensor, memory: int, beta: float) -> None:
        rows, size = v.shape
        self.memory = memory
        self.filled = 0
        self.iterates = v.new_zeros(rows, memory, size)  # V_i
        self.residuals = v.new_zeros(rows, memory, size)  # r_i
        self.gram = v.new_zeros(rows, memory, memory)  # r_i . r_j
        self.beta = v.new_full((rows, 1), beta)
        self.norm = v.new_full((rows,), torch.inf)  # of the last accepted residual
        self.best = v.clone()  # last accepted iterate

    def push(self, iterate: Tensor, residual: Tensor, k: int) -> None:
        """Writes over the oldest entry."""
        slot = k % self.memory
        self.filled = min(k + 1, self.memory)
        self.iterates[:, slot] = iterate
        self.residuals[:, slot] = residual
        products = torch.bmm(self.residuals, residual[:, :, None])[:, :, 0]
        self.gram[:, slot, :] = products
        self.gram[:, :, slot] = products

    def accept(self, iterate: Tensor, residual: Tensor) -> Tensor:
        """Says for each row whether its residual did not grow [rows]; takes the iterate or shrinks beta."""
        norm = torch.linalg.vector_norm(residual, dim=1)
        accepted = norm <= self.norm
        shrink = torch.where(accepted, 1.0, 1 / (1 + norm / self.norm))
        self.beta *= shrink[:, None]
        self.best = torch.where(accepted[:, None], iterate, self.best)
        self.norm = torch.where(accepted, norm, self.norm)
        return accepted

    def mix(self, ridge: float, relative: bool) -> Tensor:
        """sum_i alpha_i (V_i + beta r_i) [rows, size]."""
        c = self.filled
        gram = self.gram[:, :c, :c].double()
        if relative:
            scale = gram.diagonal(dim1=1, dim2=2).mean(1).clamp_min(torch.finfo(torch.float64).tiny)
            gram = gram / scale[:, None, None]
        gram = gram + ridge * torch.eye(c, dtype=gram.dtype, device=gram.device)
        ones = gram.new_ones(len(gram), c, 1)
        alpha = torch.cholesky_solve(ones, torch.linalg.cholesky_ex(gram).L)
        alpha = (alpha / alpha.sum(1, keepdim=True)).to(self.iterates.dtype).mT
        return (alpha @ self.iterates[:, :c] + self.beta[:, :, None] * (alpha @ self.residuals[:, :c]))[:, 0]
