"""The exact solution of the squared local loss: FOOF (review, eq. 5)."""

import torch
from torch import Tensor

from locoprop_lightning.errors import UserError
from locoprop_lightning.local import LocalProblem
from locoprop_lightning.solvers.solver import LocalSolver, Outcome, State

_SAMPLE = 128  # rows on which a step from stale factors is checked


class ClosedForm(LocalSolver):
    """W+ = W0 - lambda_a D^T Y (lambda_r I + C)^-1 (review, eq. 5; Benzing, 2022), for the squared loss alone.

    The defaults are exact on the current batch: by Cholesky, in the kernel form
    lambda_a D^T (lambda_r I + Y Y^T)^-1 Y where there are fewer rows than inputs. With ``average`` or ``refresh_every``
    C is n times a moving average of C/n, bias-corrected, gathered at each refresh; a step from such a C is checked:
    where J rises on a sample of at most 128 rows, the layer is not moved.

    A Cholesky factorisation that fails, as it can where lambda_r is below the rounding of C, is done again in float64
    with the negative eigenvalues that rounding left in C set to zero.

    Args:
        average: Decay of the moving average of C/n, in [0, 1); 0 takes the current batch alone.
        refresh_every: Steps between factorisations, at least 1.
    """

    def __init__(self, average: float = 0.0, refresh_every: int = 1) -> None:
        super().__init__()
        if not 0 <= average < 1:
            raise UserError(f"ClosedForm(average={average}): must be in [0, 1).")
        if refresh_every < 1:
            raise UserError(f"ClosedForm(refresh_every={refresh_every}): must be at least 1.")
        self.average = average
        self.refresh_every = refresh_every

    @property
    def _exact(self) -> bool:
        return self.average == 0 and self.refresh_every == 1

    def check(self, problem: LocalProblem) -> None:
        """Refuses a matching loss other than the squared one.

        Raises:
            UserError: Names the layer and its transfer.
        """
        if not problem.squared:
            raise UserError(
                f"ClosedForm solves the squared loss only, but layer {problem.name!r} matches through "
                f"{problem.transfer.name}: set objective to 'squared', or take an iterative solver."
            )

    def describe(self, problem: LocalProblem) -> str:  # noqa: D102
        kernel = self._exact and problem.n < problem.map.width
        return f"ClosedForm ({problem.n} x {problem.n} kernel)" if kernel else "ClosedForm"

    def run(self, problem: LocalProblem, state: State, record: bool = False) -> Outcome:  # noqa: D102
        growth = problem.direction.new_zeros(())
        if not self._exact:
            v = self._averaged(problem, state)
            growth = problem.sample(_SAMPLE).value(v)
        elif problem.n < problem.map.width:
            factor = _factorize(problem.map.kernel(), problem.lambda_r)
            scaled = torch.cholesky_solve(problem.direction.to(factor.dtype), factor).to(problem.direction.dtype)
            v = problem.map.adjoint(scaled).mul_(-problem.lambda_a)
        else:
            v = _solve(problem.first_gradient, _factorize(problem.map.gram(), problem.lambda_r))
        losses = torch.stack([problem.loss(problem.zeros()), problem.loss(v)]) if record else None
        return Outcome(v, growth, losses)

    def _averaged(self, problem: LocalProblem, state: State) -> Tensor:
        if state.get("steps", 0) % self.refresh_every == 0:
            current = problem.map.gram() / problem.n
            mean = state.get("mean", torch.zeros_like(current)).to(current)
            weight = state.get("weight", torch.zeros(())).to(current)  # 1 - average^updates, the bias correction
            new = self.average * mean + (1 - self.average) * current
            finite = new.sum().isfinite()
            state["mean"] = torch.where(finite, new, mean)
            state["weight"] = torch.where(finite, self.average * weight + (1 - self.average), weight)
            state["factor"] = _factorize(state["mean"] * (problem.n / state["weight"]), problem.lambda_r)
            state["rows"] = problem.n
            if not state["factor"].sum().isfinite():  # the next step tries again
                state["steps"] = -1
        state["steps"] = state.get("steps", 0) + 1
        factor = state["factor"] = state["factor"].to(problem.direction.device)  # a checkpoint's lies on the host
        # The factor is of n' C/n' + lambda_r for the n' rows of its refresh. A batch of n rows wants the same mean C:
        # (n C + lambda_r)^-1 = (n'/n) (n' C + lambda_r n'/n)^-1, which is exact where n = n'.
        return _solve(problem.first_gradient, factor) * (state["rows"] / problem.n)


def _factorize(c: Tensor, ridge: "float | Tensor") -> Tensor:
    """Lower Cholesky factor of ``c + ridge I`` [d, d]. One wait for the device."""
    damped = c.clone()
    damped.diagonal().add_(ridge)
    factor, info = torch.linalg.cholesky_ex(damped)
    if info.item() and c.isfinite().all():
        values, vectors = torch.linalg.eigh(c.double())
        damped = (vectors * values.clamp_min(0)) @ vectors.mT
        damped.diagonal().add_(ridge)
        factor, info = torch.linalg.cholesky_ex(damped)
    return factor.fill_(torch.nan) if info.item() else factor


def _solve(gradient: Tensor, factor: Tensor) -> Tensor:
    """-gradient (L L^T)^-1 [d_out, width]."""
    return torch.cholesky_solve(gradient.mT.to(factor.dtype), factor).mT.to(gradient.dtype).neg()
