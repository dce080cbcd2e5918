"""Cells, order and tables of methods."""

import math

import pytest

from locoprop_lightning.results.table import cell, markdown, method_rows, rank


@pytest.mark.parametrize(
    ("values", "form", "expected"),
    [
        ([], ".3f", "-"),
        ([None, None], ".3f", "-"),
        ([0.25, None], ".3f", "0.250"),
        ([3.0, 1.0, 2.0], ".1f", "2.0 (1.0..3.0)"),
        ([2.0, 2.0], ".1f", "2.0"),
        ([1.0, math.inf, math.inf], ".1f", "non-finite (1.0..non-finite)"),
        ([123456.0], ".3f", "1.23e+05"),
        ([123456.0], ".0f", "123456"),
    ],
)
def test_cells(values, form, expected):
    assert cell(values, form) == expected


def test_rank_puts_the_best_first_and_what_is_no_number_last():
    values = [None, 0.5, -math.inf, math.nan, 2.0]
    assert sorted(values, key=lambda value: rank(value, False))[:3] == [-math.inf, 0.5, 2.0]
    assert sorted(values, key=lambda value: rank(value, True))[:2] == [2.0, 0.5]
    assert rank(None, True) == rank(math.nan, False) == math.inf


def test_columns_without_values_can_be_left_out():
    columns = {"one": (".1f", lambda run: run), "none": (".1f", lambda run: None)}
    methods = {"a": [1.0, 2.0], "b": [3.0]}
    head, line = "| method | seeds | one | none |", "|---|---:|---:|---:|"
    rows = ["| a | 2 | 1.5 (1.0..2.0) | - |", "| b | 1 | 3.0 | - |"]
    assert markdown(method_rows(methods, columns, "seeds")).splitlines() == [head, line, *rows]
    head, line, first, _ = markdown(method_rows(methods, columns, empty=False)).splitlines()
    assert (head, line) == ("| method | runs | one |", "|---|---:|---:|") and first == "| a | 2 | 1.5 (1.0..2.0) |"
