"""Settings by dotted name."""

import pytest

from locoprop_lightning import UserError
from locoprop_lightning.results.settings import NEUTRAL, flatten, pairs, read_settings


def test_flatten():
    nested = {"model": {"class_path": "a.B", "init_args": {"c": 1, "d": {"class_path": "e.F"}}}, "g": {}}
    assert flatten(nested) == {"model": "a.B", "model.c": 1, "model.d": "e.F", "g": "{}"}


def test_settings_of_a_run(tmp_path, capsys):
    assert read_settings(tmp_path) == {}
    (tmp_path / "config.yaml").write_text("model:\n  class_path: a.B\n  init_args: {c: 1}\n")
    assert read_settings(tmp_path) == {"model": "a.B", "model.c": 1}
    assert not capsys.readouterr().err
    for broken, named in (("a: [", True), ("just a text", False)):
        (tmp_path / "config.yaml").write_text(broken)
        assert read_settings(tmp_path) == {}
        assert ("config.yaml: cannot be read as YAML" in capsys.readouterr().err) is named


def test_a_setting_that_is_gone_makes_no_other_method():
    assert NEUTRAL.match("model.reduction") and not NEUTRAL.match("model.reduction_of") and not NEUTRAL.match("model.a")


def test_pairs():
    assert pairs(["a.b=1", "c=d=e", "f=", "a.b=2"]) == {"a.b": "2", "c": "d=e", "f": ""}
    with pytest.raises(UserError, match="--set b: must be KEY=VALUE, such as data.validation=5000."):
        pairs(["a=1", "b"])
