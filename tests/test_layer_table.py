"""The table of layers in terminals of any width."""

import pytest

from locoprop_lightning.layer_table import table_text

REASON = "its output goes into a normalisation of the kind that torch computes in one function"
ROWS = [
    ("encoder.layers.0.self_attention.out_proj", "NonDynamicallyQuantizableLinear", "512x512 + 512", "identity",
     "AndersonAcceleration", ""),
    ("norm", "LayerNorm", "512 + 512", "-", "AdamW", REASON),
]  # fmt: skip


@pytest.mark.parametrize("width", [40, 60, 80, 100, 160, 300])
def test_names_of_classes_are_never_cut(width):
    text = table_text(ROWS, width)
    for row in ROWS:
        assert all(cell in text for cell in row[1:5])
    joined = "".join(line.split("│")[1].strip() for line in text.splitlines() if line.startswith("│"))
    assert joined.startswith(ROWS[0][0])  # folded, perhaps


def test_notes_stand_beside_where_there_is_room_and_below_otherwise():
    assert "Note" in table_text(ROWS, 300) and "Note" not in table_text(ROWS, 100)
    below = table_text([*ROWS, ("head", *ROWS[1][1:])], 80)
    assert f"{REASON}: norm, head" in " ".join(below.split())
    assert "Note" not in table_text(ROWS[:1], 300)


def test_a_narrow_table_breaks_at_words_and_dots():
    rows = [
        ("blocks.0.attention.q", "Linear", "128x128 + 128", "identity",
         "FullPrecisionMuon (lr 0.02) + AdamW (lr 0.001)", ""),
        ("tokens", "Embedding", "128x128", "-", "AdamW (lr 0.001)", ""),
    ]  # fmt: skip
    lines = table_text(rows, 80).splitlines()
    assert max(map(len, lines)) <= 80
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    assert [row[0] for row in cells] == ["blocks.0", ".attention.q", "", "tokens"]
    assert [row[4] for row in cells[:3]] == ["FullPrecisionMuon (lr", "0.02) + AdamW (lr", "0.001)"]


def test_a_table_that_fits_is_no_wider_than_the_terminal():
    short = [("1", "Linear", "512x784 + 512", "identity", "AndersonAcceleration", "")]
    assert max(map(len, table_text(short, 80).splitlines())) <= 80
