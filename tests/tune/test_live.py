"""What the terminal shows while a sweep runs, and the searches behind it; no Ray process is needed."""

import io
from types import SimpleNamespace

import pytest
import yaml
from ray.tune.search.optuna import OptunaSearch
from rich.console import Console

from locoprop_lightning.tune.live import LiveTable
from locoprop_lightning.tune.space import Space
from locoprop_lightning.tune.sweep import sampler


def trial(name, status, epoch, value, **config):
    result = {} if epoch is None else {"epoch": epoch, "val/loss": value}
    return SimpleNamespace(custom_dirname=name, status=status, last_result=result, config=config)


TRIALS = [
    trial("3f9a1c07_00000", "TERMINATED", 9, 0.25, rate=0.1),
    trial("b", "ERROR", None, None, rate=0.2),
    trial("c", "RUNNING", 3, 0.5, rate=0.3),
    trial("d", "TERMINATED", 9, float("nan"), rate=0.4),
    trial("e", "TERMINATED", 9, 0.125, rate=0.5, solver="x"),
    trial("f", "RUNNING", None, None, rate=0.6),
]


def live(mode="min"):
    return LiveTable("val/loss", mode, "epoch", ["rate", "solver"], samples=8)


def drawn(rows, **arguments):
    console = Console(width=100, file=io.StringIO())
    console.print(live(**arguments).draw(TRIALS, rows))
    text = console.file.getvalue()
    _, _, *lines, _ = text.splitlines()
    return [line.split()[0] for line in lines], text


def test_those_in_training_come_first_then_the_best():
    order, text = drawn(10)
    assert order[:4] == ["c", "f", "e", "0"] and set(order[4:]) == {"b", "d"}
    assert "4 of 8 trials ended; best val/loss 0.125, trial e" in text
    assert drawn(3)[0] == ["c", "f", "e"]  # as many as there is room for
    assert drawn(10, mode="max")[0][:4] == ["c", "f", "0", "e"]


def test_80_columns_tell_all_settings_apart():
    names = ["model.lambda_a", "model.lambda_r", "model.solver.init_args.average", "model.optimizer.init_args.lr"]
    table = LiveTable("val/accuracy", "max", "epoch", names, samples=8)
    console = Console(width=80, file=io.StringIO())
    console.print(table.draw([trial("3f9a1c07_00004", "TERMINATED", 9, 0.25, **dict.fromkeys(names, 0.1234))], 5))
    head, _, row, _ = console.file.getvalue().splitlines()
    assert head.split() == ["trial", "status", "epoch", "val/accuracy", "lambda_a", "lambda_r", "average", "lr"]
    assert row.split() == ["4", "terminated", "9", "-", *["0.1234"] * 4]


def test_without_a_terminal_each_trial_that_ends_is_a_line(capsys):
    table = live()
    table.setup()
    table.on_step_end(1, TRIALS)
    table.on_trial_complete(1, TRIALS, TRIALS[4])
    table.on_trial_error(1, TRIALS, TRIALS[1])
    table.on_experiment_end(TRIALS)
    assert capsys.readouterr().out.splitlines() == [
        "trial e ended: epoch 9, val/loss 0.125, rate 0.5, solver x",
        "trial b failed: epoch 0, val/loss -, rate 0.2, solver -",
    ]


@pytest.mark.parametrize("name", ["random", "tpe", "gp", "cmaes"])
def test_a_search_tries_the_start_first_and_stays_in_the_space(name, tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "x": {"uniform": [-4, 4]},
                "n": {"integers": [1, 5]},
                "kind": {"choice": ["even", "odd"]},
                "y": {"loguniform": [0.01, 100], "when": {"kind": "odd"}},
            },
            sort_keys=False,
        )
    )
    start = {"x": 3.0, "n": 2, "kind": "even"}
    search = OptunaSearch(
        Space.load(path), metric="loss", mode="min", points_to_evaluate=[start], sampler=sampler(name, 0, 20)
    )
    losses = []
    for index in range(20):
        values = search.suggest(str(index))
        assert index or values == start
        assert -4 <= values["x"] <= 4 and values["n"] in range(1, 6) and ("y" in values) == (values["kind"] == "odd")
        assert 0.01 <= values.get("y", 1) <= 100
        losses.append((values["x"] - 1) ** 2 + (values["n"] - 4) ** 2 + (values["kind"] == "even"))
        search.on_trial_complete(str(index), {"loss": losses[-1]})
    if name in ("tpe", "gp"):  # they learn; in so few trials the others cannot
        assert min(losses) < losses[0] / 8 and sum(losses[10:]) < sum(losses[:10])
