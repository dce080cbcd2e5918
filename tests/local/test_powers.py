import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from locoprop_lightning.local.powers import power_sum, power_sum_products

every_number = pytest.mark.parametrize("terms", range(1, 21))


class Products(TorchDispatchMode):
    """Counts matrix products by the number of rows of their left factor."""

    def __init__(self):
        super().__init__()
        self.rows = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._overloadpacket is torch.ops.aten.mm:
            self.rows.append(args[0].shape[0])
        return func(*args, **(kwargs or {}))


def factors():
    return torch.randn(2, 5, dtype=torch.float64), torch.randn(5, 5, dtype=torch.float64) / 3


@every_number
def test_against_a_plain_sum(terms):
    x, m = factors()
    expected = sum(x @ torch.linalg.matrix_power(m, j) for j in range(terms))
    torch.testing.assert_close(power_sum(x, m, terms), expected, rtol=1e-12, atol=1e-12)


@every_number
def test_number_of_products(terms):
    x, m = factors()
    with Products() as products:
        power_sum(x, m, terms)
    assert power_sum_products(terms) == (products.rows.count(2), products.rows.count(5))
    assert len(products.rows) <= 3 * terms.bit_length()


def test_factors_are_not_changed():
    x, m = factors()
    before = x.clone(), m.clone()
    power_sum(x, m, 12)
    assert torch.equal(x, before[0]) and torch.equal(m, before[1])
