import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from locoprop_lightning.local.linear_map import gram, gram_cost
from tests.support import close


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
