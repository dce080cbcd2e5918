"""What is hard for the numerics: rows, gradients and problems that are singular, huge, tiny, or all at once."""

import torch
from hypothesis import strategies as st
from torch import nn

from locoprop_lightning.local import LocalProblem, resolve_transfer

ROWS = {  # of random rows [n, d]
    "random": lambda y: y,
    "rank_one": lambda y: y[:, :1] @ y[:1],
    "duplicate_rows": lambda y: y[:1].expand_as(y).clone(),
    "duplicate_columns": lambda y: y[:, :1].expand_as(y).clone(),
    "dead": lambda y: y * (torch.arange(y.shape[1]) % 2),
    "one_alive": lambda y: y * (torch.arange(y.shape[1]) == 0),
    "zero": torch.zeros_like,
    "huge": lambda y: y * 1e6,
    "tiny": lambda y: y * 1e-6,
    "mixed": lambda y: y * torch.logspace(-6, 6, y.shape[1], dtype=y.dtype),
    "saturated": lambda y: 100 * y.sign(),
    "a_spike": lambda y: torch.cat([y[:1] * 1e3, y[1:]]),
}
TRANSFERS = ["identity", "tanh", "relu", "sigmoid", "softplus", "softmax"]
DTYPES = {"float32": torch.float32, "float64": torch.float64}
powers = st.sampled_from  # of ten


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def lambda_of(rows, bias, lambda_r, relative):
    """lambda_r of a problem, as it is or relative to the mean eigenvalue of C as the module takes it."""
    if not relative:
        return lambda_r
    trace = rows.square().sum() + len(rows) * bias
    return (lambda_r * trace / (rows.shape[1] + bias)).clamp_min(torch.finfo(rows.dtype).tiny)


@st.composite
def problems(draw, squared):
    """A hard problem, and a good one of the same layer that comes after it."""
    n, d_in, d_out = (draw(st.sampled_from(sizes)) for sizes in ([1, 2, 7, 12], [1, 2, 5, 9], [1, 3]))
    rows = ROWS[draw(st.sampled_from(list(ROWS)))](normal(n, d_in))
    transfer = "identity" if squared else draw(st.sampled_from(TRANSFERS))
    bias, relative, zero_weights = draw(st.booleans()), draw(st.booleans()), draw(st.booleans())
    lambda_r, lambda_a = 10.0 ** draw(powers([-15, -9, -6, -3, 0, 6])), 10.0 ** draw(powers([-6, 0, 3, 6]))
    size = 10.0 ** draw(powers([-20, -6, 0, 6]))
    dtype = DTYPES[draw(st.sampled_from(list(DTYPES)))]

    def problem(rows, direction, lambda_a, lambda_r, relative):
        rows = rows.to(dtype)
        weight = normal(d_out, d_in, seed=1).to(dtype) * (not zero_weights)
        b = normal(d_out, seed=2).to(dtype) * (not zero_weights) if bias else None
        a, f = nn.functional.linear(rows, weight, b), resolve_transfer(transfer)
        damping = lambda_of(rows, bias, lambda_r, relative)
        return LocalProblem(rows, a, direction.to(dtype), weight, b, f, lambda_a, damping, name="layer")

    hard = problem(rows, size * normal(n, d_out, seed=3), lambda_a, lambda_r, relative)
    good = problem(normal(n, d_in, seed=4), normal(n, d_out, seed=5), 1.0, 200.0, False)
    return hard, good
