"""Factors and inverses of damped moments, with a stated way out where an algorithm of torch fails."""

from collections.abc import Callable

import torch
from torch import Tensor

_DOUBTFUL = 1e-3  # relative error by rounding from which a solution is made in float64

Damping = float | Tensor


def eigh(c: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues [..., d], ascending, and eigenvectors [..., d, d] of a symmetric c; NaN for what is not finite.

    Where the algorithm does not converge, as it can fail to with many equal eigenvalues, it is given c in float64, and
    then c with a diagonal added that is below the rounding of its type; NaN where that does not do either.
    """
    finite = c.sum().isfinite()
    safe = torch.where(finite, c, torch.zeros_like(c))  # it refuses what is not finite
    for attempt in (lambda: safe, safe.double, lambda: _spread(safe)):
        try:
            values, vectors = torch.linalg.eigh(attempt())
        except torch.linalg.LinAlgError:
            continue
        return torch.where(finite, values, torch.nan).to(c.dtype), vectors.to(c.dtype)
    return torch.full_like(c[..., 0], torch.nan), torch.full_like(c, torch.nan)


def _spread(c: Tensor) -> Tensor:
    """C in float64, with different entries added to its diagonal, of the size of the rounding of its type."""
    size = c.diagonal(dim1=-2, dim2=-1).abs().amax(-1, keepdim=True).double() * torch.finfo(c.dtype).eps
    steps = torch.linspace(0.5, 1, c.shape[-1], dtype=torch.float64, device=c.device)
    return c.double() + torch.diag_embed(size * steps)


def inverse_root(c: Tensor, damping: Damping) -> Tensor:
    """(c + damping I)^-1/2 [..., d, d], symmetric; NaN where ``c`` is not finite."""
    values, vectors = eigh(c)
    return (vectors * (values.clamp_min(0) + damping).rsqrt()[..., None, :]) @ vectors.mT


def factorize(c: Tensor, damping: Damping, wide: Callable[[], Tensor] | None = None) -> Tensor:
    """Lower Cholesky factor of c + damping I [..., d, d]; NaN where c is not finite. One wait for the device.

    It is made in float64, and is float64, where the factorisation fails, as it can where the damping is below the
    rounding of c; with ``wide`` also where what is solved with it would be off by more than about a thousandth. A
    damping with which it would be so in float64 too is raised to where it is not.

    Args:
        c: C, symmetric and without negative eigenvalues but for rounding.
        damping: Added to the diagonal.
        wide: Makes C in float64, from what it is a sum of.
    """
    factor, info = torch.linalg.cholesky_ex(_damped(c, damping))
    failed = info > 0
    if wide is not None:  # by the trace first, which costs next to nothing and is no less than the norm
        failed = failed | _doubtful(factor, c.diagonal(dim1=-2, dim2=-1).sum(-1))
    if not failed.any():  # the wait
        return factor
    if wide is not None and not ((info > 0) | _doubtful(factor, _size(c))).any():
        return factor
    if not c.isfinite().all():
        return factor.fill_(torch.nan)
    exact = c.double() if wide is None or c.dtype == torch.float64 else wide()
    least = _size(exact) * (torch.finfo(exact.dtype).eps / 2 / _DOUBTFUL)
    damping = torch.maximum(least, torch.as_tensor(damping, dtype=exact.dtype, device=exact.device))[..., None]
    factor, info = torch.linalg.cholesky_ex(_damped(exact, damping))
    if info.any():  # the rounding of a smaller type has left negative eigenvalues
        values, vectors = eigh(exact)
        exact = (vectors * values.clamp_min(0)[..., None, :]) @ vectors.mT
        factor, info = torch.linalg.cholesky_ex(_damped(exact, damping))
    return factor.fill_(torch.nan) if info.any() else factor


def _size(c: Tensor) -> Tensor:
    """The norm of each matrix [...]."""
    return torch.linalg.vector_norm(c, dim=(-2, -1))


def _doubtful(factor: Tensor, size: Tensor) -> Tensor:
    """Whether what is solved with a factor may be off by more than ``_DOUBTFUL`` [...].

    Args:
        factor: The factor of C + damping I. The squares of its diagonal go down to about the smallest eigenvalue, which
            is the damping where C is singular.
        size: Size of C [...], which its rounding is relative to.
    """
    smallest = factor.diagonal(dim1=-2, dim2=-1).amin(-1)
    return size * (torch.finfo(factor.dtype).eps / 2 / _DOUBTFUL) > smallest.square()


def _damped(c: Tensor, damping: Damping) -> Tensor:
    damped = c.clone()
    damped.diagonal(dim1=-2, dim2=-1).add_(damping)
    return damped


def invert(c: Tensor, damping: Damping, wide: Callable[[], Tensor] | None = None) -> Tensor:
    """(c + damping I)^-1 [..., d, d], in float64 where ``factorize`` is; of a diagonal c [d] its own."""
    if c.dim() == 1:
        return 1 / (c + damping)
    return torch.cholesky_inverse(factorize(c, damping, wide))
