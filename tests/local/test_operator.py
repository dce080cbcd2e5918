import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from locoprop_lightning.local import MatrixOperator, Rows
from locoprop_lightning.local.operator import gram, gram_cost, spread, times
from tests.support import close

both_biases = pytest.mark.parametrize("bias", [True, False])
CPU = torch.device("cpu")


@pytest.mark.parametrize("d", [1, 127, 128, 129, 255, 300, 511, 785])
def test_gram_in_blocks(d):
    x = torch.randn(7, d, dtype=torch.float64)
    with FlopCounterMode(display=False) as counter:
        c = gram(x)
    close(c, x.T @ x, 1e-12)
    assert gram_cost(7, d) == counter.get_total_flops() <= 14 * d * d


def test_four_blocks_take_five_eighths():
    assert gram_cost(10, 512) == 20 * 512**2 * 5 / 8


def test_gram_into_a_part_of_a_matrix():
    x = torch.randn(9, 300, dtype=torch.float64)
    whole = torch.zeros(301, 301, dtype=torch.float64)
    assert gram(x, whole[:300, :300]).data_ptr() == whole.data_ptr()
    close(whole[:300, :300], x.T @ x, 1e-12)
    assert (whole[300] == 0).all() and (whole[:, 300] == 0).all()


@pytest.mark.parametrize(("samples", "positions"), [(128, 784), (128, 196), (128, 49), (64, 64), (1024, 1)])
def test_spread_falls_on_all_samples_and_positions(samples, positions):
    index = spread(samples * positions, 32, CPU)
    assert len(index) == 32 and index.max() < samples * positions
    assert len((index // positions).unique()) == 32
    assert len((index % positions).unique()) >= min(positions, 16)
    assert torch.equal(spread(7, 32, CPU), torch.arange(7))


def test_spread_takes_different_rows_in_order():
    for n in (33, 100, 1000):
        index = spread(n, 32, CPU)
        assert index.dtype == torch.int64 and (index.diff() > 0).all() and torch.equal(index, spread(n, 32, CPU))


@pytest.mark.parametrize("groups", [1, 3])
def test_times(groups):
    v, c = torch.randn(6, 4, dtype=torch.float64), torch.randn(groups, 4, 4, dtype=torch.float64)
    expected = torch.cat([part @ matrix for part, matrix in zip(v.chunk(groups), c, strict=True)])
    close(times(v, c), expected, 1e-12)
    close(times(v, c[0]), v @ c[0], 1e-12)


def operator_and_rows(bias, n=9, d_in=4):
    """An operator, and [Y | 1]."""
    y = torch.randn(n, d_in, dtype=torch.float64)
    return MatrixOperator(y, bias), torch.cat([y, torch.ones_like(y[:, :1])], 1) if bias else y


@both_biases
def test_matrix_operator(bias):
    operator, y = operator_and_rows(bias)
    v, r = torch.randn(3, y.shape[1], dtype=torch.float64), torch.randn(9, 3, dtype=torch.float64)
    assert (operator.n, operator.rows_at_hand, operator.d_in, operator.width) == (9, 9, 4, y.shape[1])
    assert operator.groups == 1 and operator.device == CPU
    close(operator.apply(v), y @ v.T, 1e-12)
    start = r.clone()
    close(operator.apply(v, start=start), y @ v.T + r, 1e-12)
    assert torch.equal(start, r)
    close(operator.adjoint(r), r.T @ y, 1e-12)
    close(operator.gram(), y.T @ y, 1e-12)
    close(operator.gram(), operator.gram().T, 1e-12)  # not bit for bit with every BLAS
    close(operator.trace(), torch.trace(y.T @ y), 1e-12)
    close(operator.kernel(), y @ y.T, 1e-12)
    assert operator.dense() is operator and operator.whole() is operator and operator.whole_rows(r) is r
    close(operator.total(r), r.sum(), 1e-12)


@both_biases
def test_apply_and_adjoint_are_adjoint(bias):
    operator, y = operator_and_rows(bias)
    v, r = torch.randn(3, y.shape[1], dtype=torch.float64), torch.randn(9, 3, dtype=torch.float64)
    close((operator.apply(v) * r).sum(), (v * operator.adjoint(r)).sum(), 1e-12)


@both_biases
def test_select_and_sample(bias):
    operator, y = operator_and_rows(bias, n=50)
    v = torch.randn(3, y.shape[1], dtype=torch.float64)
    some = torch.tensor([3, 3, 49])
    assert operator.select(some).n == 3
    close(operator.select(some).apply(v), y[some] @ v.T, 1e-12)
    sampled, index = operator.sample(7)
    assert torch.equal(index, spread(50, 7, CPU)) and sampled.n == len(index) == 7
    close(sampled.apply(v), y[index] @ v.T, 1e-12)
    everything, index = operator.sample(50)
    assert torch.equal(index, torch.arange(50)) and everything.n == 50


def test_double():
    operator = MatrixOperator(torch.randn(4, 3), bias=True).double()
    assert operator.rows.dtype == torch.float64 and operator.bias


def test_a_product_copies_no_inputs():
    y = torch.randn(4, 3)
    assert MatrixOperator(y, bias=True).rows is y


def test_rows_that_are_all_at_hand():
    rows, x = Rows(), torch.randn(4)
    assert rows.count(40) == 40 and rows.sum(x) is x
    index, taken = rows.sample(40, 32, CPU)
    assert torch.equal(index, spread(40, 32, CPU)) and taken == len(index)
    index, taken = rows.sample(5, 32, CPU)
    assert torch.equal(index, torch.arange(5)) and taken == 5
