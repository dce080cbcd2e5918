"""The pictures of the docs can be drawn again, and show the package as it is."""

import html

import pytest

from scripts import house_picture, idea_picture
from tests.support import ROOT

PICTURES = ROOT / "docs" / "pictures"


@pytest.mark.parametrize(("script", "name"), [(idea_picture, "idea"), (house_picture, "house")])
def test_pictures_are_drawn_for_light_and_dark_pages(script, name, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", [name, str(tmp_path)])
    script.main()
    light, dark = ((tmp_path / file).read_text() for file in (f"{name}.svg", f"{name}-dark.svg"))
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.svg", f"{name}-dark.svg"}
    assert light.count("<path") == dark.count("<path") > 50
    assert "fill: #ffffff" in light and "fill: #ffffff" not in dark  # the paper


@pytest.mark.parametrize("name", house_picture.INKS)
def test_the_house_is_drawn_as_it_stands(name):
    assert house_picture.arrows() in html.unescape((PICTURES / f"{name}.svg").read_text()), (
        "draw it again: PYTHONPATH=. python scripts/house_picture.py docs/pictures"
    )
