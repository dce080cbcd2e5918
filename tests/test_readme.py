"""The example of the README works as it stands."""

import re

from tests.support import ROOT

BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_python_example_trains(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    scope = {}
    (block,) = BLOCKS
    exec(block, scope)
    assert scope["trainer"].global_step == 2 * 12
    assert scope["trainer"].callback_metrics["val/accuracy"] > 0.5
    assert "smoothed" in capsys.readouterr().out
