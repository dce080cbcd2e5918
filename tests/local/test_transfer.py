import math

import numpy as np
import pytest
import torch
from torch import nn

from locoprop_lightning.errors import UserError
from locoprop_lightning.local import LocalProblem, resolve_transfer
from locoprop_lightning.local.activations import (
    CELU,
    ELU,
    SELU,
    Hardsigmoid,
    Hardtanh,
    LogSigmoid,
    ReLU6,
    Softsign,
    SquaredReLU,
)
from locoprop_lightning.local.transfer import Identity, LeakyReLU, ReLU, Sigmoid, Softmax, Softplus, Tanh, Transfer
from locoprop_lightning.solvers import AndersonAcceleration, Majorization, Status

TRANSFERS = [
    Identity(),
    ReLU(),
    LeakyReLU(),
    LeakyReLU(2.5),
    Tanh(),
    Sigmoid(),
    Softplus(),
    Softplus(0.5),
    Softplus(3.0),
    Softmax(),
    SquaredReLU(),
    ELU(),
    ELU(0.3, 2.0, 3.0),
    CELU(1.7),
    SELU(),
    Softsign(),
    LogSigmoid(),
    Hardtanh(),
    Hardtanh(-0.5, math.inf),
    Hardtanh(-2.0, 1.0, 0.7, 0.3),
    ReLU6(),
    Hardsigmoid(),
]
every_transfer = pytest.mark.parametrize("transfer", TRANSFERS, ids=repr)


def points(n=6, d=4, scale=2.0):
    a = scale * torch.randn(n, d, dtype=torch.float64)
    return torch.where(a.abs() < 0.05, a + 0.2, a)  # away from the kinks


@every_transfer
def test_f_is_the_gradient_of_F(transfer):
    a = points().requires_grad_()
    assert torch.autograd.gradcheck(transfer.F, (a,), atol=1e-7)
    (gradient,) = torch.autograd.grad(transfer.F(a).sum(), a)
    torch.testing.assert_close(gradient, transfer.f(a.detach()), rtol=1e-10, atol=1e-12)


@every_transfer
def test_in_place_f(transfer):
    a = points()
    expected = transfer.f(a).clone()
    over = a.clone()
    result = transfer.f_(over)
    assert result.data_ptr() == over.data_ptr()
    torch.testing.assert_close(result, expected, rtol=0, atol=0)


@every_transfer
def test_bound_of_the_jacobian(transfer):
    for scale in (0.1, 1.0, 5.0):
        for row in points(n=8, scale=scale):
            jacobian = torch.autograd.functional.jacobian(transfer.f, row[None])[0, :, 0]
            eigenvalues = torch.linalg.eigvalsh(jacobian)
            assert eigenvalues.min() >= -1e-12
            assert eigenvalues.max() <= transfer.bound + 1e-12


@pytest.mark.parametrize(("transfer", "row"), [(Sigmoid(), [0.0, 0.0]), (Tanh(), [0.0]), (Softmax(), [0.0, 0.0])])
def test_bound_is_reached(transfer, row):
    a = torch.tensor([row], dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(transfer.f, a)[0, :, 0]
    torch.testing.assert_close(torch.linalg.eigvalsh(jacobian).max().item(), transfer.bound)


@every_transfer
def test_values_are_in_range(transfer):
    low, high = transfer.range
    value = transfer.f(points())
    assert (value >= low).all() and (value <= high).all()


@every_transfer
def test_divergence(transfer):
    a, z = points(), points()
    divergence = transfer.divergence(z, a)
    assert divergence.shape == (6,)
    assert (divergence >= -1e-12).all()
    assert (transfer.divergence(torch.zeros_like(a), a) == 0).all()


@every_transfer
def test_divergence_far_out_and_close_by(transfer):
    """Where the step is small, 1/2 f' z^2 is a relative 1e-6 away; where it is large, nothing overflows."""
    a = points(n=20)
    z = 1e-5 * torch.randn_like(a)
    jacobians = torch.stack([torch.autograd.functional.jacobian(transfer.f, row) for row in a])
    expected = torch.einsum("ni,nij,nj->n", z, jacobians, z) / 2
    away = torch.where(expected > 1e-13, expected, torch.nan).nanmean()
    error = (transfer.divergence(z, a) - expected).abs().max()
    assert error < 1e-4 * away + 1e-15
    for far in (torch.tensor([[-1e4, 1e4, 0.0]]), torch.tensor([[1e4, -1e4, 3.0]])):
        value = transfer.divergence(-2 * far, far)
        assert value.dtype == torch.float32 and value.isfinite().all() and (value >= 0).all()


@pytest.mark.parametrize(
    ("transfer", "function"),
    [
        (SquaredReLU(), lambda a: a.relu() ** 2),
        (ELU(0.3), lambda a: nn.functional.elu(a, 0.3)),
        (CELU(1.7), lambda a: nn.functional.celu(a, 1.7)),
        (SELU(), nn.functional.selu),
        (Softsign(), nn.functional.softsign),
        (LogSigmoid(), nn.functional.logsigmoid),
        (Hardtanh(-0.5, 2.0), lambda a: nn.functional.hardtanh(a, -0.5, 2.0)),
        (ReLU6(), nn.functional.relu6),
        (Hardsigmoid(), nn.functional.hardsigmoid),
    ],
    ids=lambda x: repr(x) if isinstance(x, Transfer) else "",
)
def test_f_is_torchs(transfer, function):
    a = torch.linspace(-9, 9, 181, dtype=torch.float64)[None]
    torch.testing.assert_close(transfer.f(a), function(a), rtol=1e-12, atol=1e-12)


@every_transfer
def test_solutions_of_the_matching_loss(transfer):
    """What the solvers of M end at is a minimum of J, written out with F and autograd."""
    y, w = points(12, 5), points(3, 5) / 4
    d, b = points(12, 3) / 4, points(1, 3)[0] / 4
    a = y @ w.T + b
    problem = LocalProblem(y, a, d, w, b, transfer, lambda_a=0.5, lambda_r=30.0)
    solvers = [AndersonAcceleration(120, ridge=1e-12)]
    if math.isfinite(transfer.bound):
        solvers.append(Majorization(400))
    for solver in solvers:
        solution = solver.solve(problem)
        assert solution.status is Status.SOLVED
        w1, b1 = (p.clone().requires_grad_() for p in (solution.weight, solution.bias))
        new = y @ w1.T + b1
        divergence = transfer.F(new).sum() - transfer.F(a).sum() - (transfer.f(a) * (new - a)).sum()
        proximal = ((w1 - w).square().sum() + (b1 - b).square().sum()) * 15.0
        (divergence + 0.5 * (d * (new - a)).sum() + proximal).backward()
        first = torch.linalg.vector_norm(problem.first_gradient())
        assert torch.linalg.vector_norm(torch.cat([w1.grad, b1.grad[:, None]], 1)) < 1e-7 * first


def test_majorization_needs_a_bound():
    y, w = points(12, 5), points(3, 5)
    problem = LocalProblem(y, y @ w.T, points(12, 3), w, None, SquaredReLU(), 0.5, 30.0, name="fc")
    with pytest.raises(UserError, match=r"'fc' matches through squared_relu, .*transfers=\{'fc': 'relu'\}"):
        Majorization(3).solve(problem)


@pytest.mark.parametrize("beta", [0.5, 1.0, 4.0])
def test_softplus_integral_against_quadrature(beta):
    nodes, weights = np.polynomial.legendre.leggauss(200)
    transfer = Softplus(beta)
    for a in (-30.0, -3.0, -0.1, 0.0, 0.2, 4.0, 30.0):
        x = (nodes + 1) / 2 * a
        integral = np.sum(weights * np.logaddexp(0, beta * x) / beta) * a / 2  # from 0 to a
        ends = transfer.F(torch.tensor([0.0, a], dtype=torch.float64))
        assert (ends[1] - ends[0]).item() == pytest.approx(integral, rel=1e-9, abs=1e-12)
    far = transfer.F(torch.tensor(-500.0, dtype=torch.float64)).item()
    assert far == pytest.approx(0, abs=1e-12)
    assert transfer.F(torch.tensor(0.0, dtype=torch.float64)).item() == pytest.approx(np.pi**2 / 12 / beta**2)


def test_integrals_do_not_overflow():
    a = torch.tensor([[-1e4, 1e4]], dtype=torch.float64)
    for transfer in TRANSFERS:
        assert transfer.F(a).isfinite().all() and transfer.f(a).isfinite().all()


def test_names():
    for name in {transfer.name for transfer in TRANSFERS}:
        assert resolve_transfer(name).name == name
    mine = Softplus(2.0)
    assert resolve_transfer(mine) is mine
    with pytest.raises(UserError, match="There is no transfer 'gelu'; take one of identity, relu"):
        resolve_transfer("gelu")


def test_arguments():
    with pytest.raises(UserError, match=r"LeakyReLU\(slope=-0.1\)"):
        LeakyReLU(-0.1)
    with pytest.raises(UserError, match=r"Softplus\(beta=0\)"):
        Softplus(0)
    with pytest.raises(UserError, match=r"ELU\(alpha=0\)"):
        ELU(0)
    with pytest.raises(UserError, match=r"Hardtanh\(low=1, high=1\): low must be below high"):
        Hardtanh(1, 1)
