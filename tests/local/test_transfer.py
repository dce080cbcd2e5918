import numpy as np
import pytest
import torch

from locoprop_lightning.errors import UserError
from locoprop_lightning.local import resolve_transfer
from locoprop_lightning.local.transfer import Identity, LeakyReLU, ReLU, Sigmoid, Softmax, Softplus, Tanh

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
    for name in ("identity", "relu", "leaky_relu", "tanh", "sigmoid", "softplus", "softmax"):
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
