"""Sums of matrix powers by repeated squaring: T plain iterations on a squared loss at the cost of log T products."""

from torch import Tensor


def power_sum(x: Tensor, m: Tensor, terms: int) -> Tensor:
    """X (I + M + ... + M^(terms - 1)) [k, d].

    Args:
        x: X [k, d].
        m: M [d, d].
        terms: Number of terms, at least 1.
    """
    total, power = x.new_zeros(()), m
    while terms > 1:
        if terms % 2:  # the first term, and M times the sum of the others
            total = total + x
            x = x @ power
        else:
            x = x + x @ power
            if terms > 2:
                power = power @ power
        terms = terms - 1 if terms % 2 else terms // 2
    return total + x


def power_sum_products(terms: int) -> tuple[int, int]:
    """How many products X M and how many squarings ``power_sum`` takes."""
    products = squarings = 0
    while terms > 1:
        products += 1
        squarings += terms % 2 == 0 and terms > 2
        terms = terms - 1 if terms % 2 else terms // 2
    return products, squarings
