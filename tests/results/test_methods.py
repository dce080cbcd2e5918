"""Which runs belong together."""

import pytest
import yaml

from locoprop_lightning.cli import main
from locoprop_lightning.results.logs import read_runs
from locoprop_lightning.results.methods import by_method
from tests.results.support import LOSSES, settings, write

QUIET = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]


def test_settings_tell_methods_apart(tmp_path):
    for version, (seed, lambda_a) in enumerate([(0, 1.0), (1, 1.0), (0, 2.0), (0, 1.0)]):
        write(tmp_path / "foof" / f"version_{version}", LOSSES, settings=settings(seed, lambda_a))
    methods = by_method(read_runs([str(tmp_path)], "train/loss"), "train/loss")
    assert {name: sorted(run.folder.name for run in runs) for name, runs in methods.items()} == {
        "foof (lambda_a=1.0)": ["version_1", "version_3"],  # of two runs with seed 0 the newer
        "foof (lambda_a=2.0)": ["version_2"],
    }


def test_another_class_is_told_without_the_settings_that_come_with_it(tmp_path):
    solvers = [
        {"class_path": "locoprop_lightning.solvers.ClosedForm", "init_args": {"average": 0, "warmup": 40, "gather": 1}},
        {"class_path": "mine.Descent", "init_args": {"sweeps": 1}},
        {"class_path": "mine.Descent", "init_args": {"sweeps": 2}},
    ]
    for version, solver in enumerate(solvers):
        made = settings()
        made["model"]["init_args"]["solver"] = solver
        write(tmp_path / f"foof/version_{version}", settings=made)
    methods = by_method(read_runs([str(tmp_path)], "train/loss"), "train/loss")
    assert sorted(methods) == [
        "foof (solver=ClosedForm)",
        "foof (solver=Descent, sweeps=1)",
        "foof (solver=Descent, sweeps=2)",
    ]


def test_methods_that_differ_in_much_are_named_by_their_runs(tmp_path, capsys):
    lengths = {0: 2, 1: 3, 2: 4, 3: 4}
    for version, (seed, value) in enumerate([(0, 1), (0, 1), (1, 1), (0, 2)]):
        made = settings(seed, **{name: value for name in "abcd"})
        write(tmp_path / f"foof/version_{version}", LOSSES[: lengths[version]], settings=made)
    methods = by_method(read_runs([str(tmp_path)], "train/loss"), "train/loss")
    assert {name: [run.folder.name for run in runs] for name, runs in methods.items()} == {
        "foof (version_1, version_2)": ["version_1", "version_2"],  # the data are those of the runs that are named
        "foof (version_3)": ["version_3"],
    }
    told = f"of 2 runs with seed 0 the longest, {tmp_path}/foof/version_1, is shown"
    assert capsys.readouterr().err == f"foof (version_1, version_2): {told}\n"


def test_settings_of_one_name_are_told_with_what_they_belong_to(tmp_path):
    for version, rates in enumerate([(1, 1), (1, 2), (2, 1)]):
        made = settings(first={"lr": rates[0]}, second={"lr": rates[1]})
        write(tmp_path / f"foof/version_{version}", settings=made)
    methods = by_method(read_runs([str(tmp_path)], "train/loss"), "train/loss")
    assert "foof (first.lr=1, second.lr=2)" in methods


def test_folders_of_one_name_are_told_by_those_above(tmp_path):
    for folder, lambda_a in (("a/foof/version_0", 1.0), ("a/foof/version_1", 2.0), ("b/foof/version_0", 1.0)):
        write(tmp_path / folder, settings=settings(lambda_a=lambda_a))
    methods = by_method(read_runs([str(tmp_path)], "train/loss"), "train/loss")
    assert sorted(methods) == ["a/foof (lambda_a=1.0)", "a/foof (lambda_a=2.0)", "b/foof"]


def test_runs_without_settings_and_runs_with_a_label(tmp_path):
    for name in ("a/version_0", "a/version_1", "b"):
        write(tmp_path / name)
    runs = read_runs([f"mine={tmp_path / 'a'}", str(tmp_path / "b")], "train/loss")
    methods = by_method(runs, "train/loss")
    assert {name: len(members) for name, members in methods.items()} == {"mine": 2, "b": 1}
    alone = by_method(read_runs([str(tmp_path / "a")], "train/loss"), "train/loss")
    assert sorted(alone) == ["a (version_0)", "a (version_1)"]


def test_one_label_for_two_methods_is_said(tmp_path, capsys):
    for version, (seed, lambda_a) in enumerate([(0, 1.0), (1, 1.0), (0, 2.0)]):
        write(tmp_path / f"version_{version}", LOSSES, settings=settings(seed, lambda_a))
    both = [f"mine={tmp_path / f'version_{version}'}" for version in (0, 1)]
    assert len(by_method(read_runs(both, "train/loss"), "train/loss")["mine"]) == 2
    assert capsys.readouterr().err == ""
    by_method(read_runs([f"mine={tmp_path}"], "train/loss"), "train/loss")
    assert "mine: its 3 runs are shown as one method, though they differ in model.lambda_a" in capsys.readouterr().err


def test_a_resumed_run_goes_on_where_the_first_was_left(tmp_path):
    write(tmp_path / "foof/version_0", [4.0, 2.0, 1.0, 99.0], pace=100.0, settings=settings())
    resumed = settings(ckpt_path="foof/version_0/checkpoints/epoch=0-step=3.ckpt")
    write(tmp_path / "foof/version_1", [0.5, 0.2], start=3, pace=200.0, settings=resumed)
    ((_, (run,)),) = by_method(read_runs([str(tmp_path)], "train/loss"), "train/loss").items()
    assert run.values("train/loss").tolist() == pytest.approx([4.0, 2.0, 1.0, 0.5, 0.2])
    assert run.seconds("train/loss").tolist() == pytest.approx([0.1, 0.2, 0.3, 0.5, 0.7])


def test_a_run_that_went_on_from_the_last_checkpoint_names_it_and_is_joined_to_the_first(folder):
    def fit(epochs, *more):
        main(["fit", "--config", "digits/foof", f"--trainer.max_epochs={epochs}", *QUIET, *more])

    fit(1)
    fit(2, "--ckpt_path=last")
    (run,) = read_runs(["runs"], "train/loss")
    assert run.steps("train/loss").tolist() == list(range(24))
    assert run.settings["ckpt_path"] == "runs/digits/foof/version_0/checkpoints/step=12.ckpt"
    for command in ("validate", "test"):
        main([command, "--config", "digits/foof", *QUIET, "--ckpt_path=best"])
        (settings,) = folder.glob("runs/digits/foof/version_[2-9]/config.yaml")
        assert yaml.safe_load(settings.read_text())["ckpt_path"] == "runs/digits/foof/version_1/checkpoints/best.ckpt"
        settings.unlink()


def test_a_resumed_run_is_joined_to_its_own_only(tmp_path):
    """Another root may hold a run of the same relative path."""
    point = "lightning_logs/version_0/checkpoints/x.ckpt"
    write(tmp_path / "a/lightning_logs/version_0", [4.0, 3.0, 2.0], settings=settings())
    write(tmp_path / "a/lightning_logs/version_1", [1.0, 0.5], start=3, settings=settings(ckpt_path=point))
    write(tmp_path / "b/lightning_logs/version_0", [400.0, 300.0, 200.0], settings=settings())
    runs = read_runs([str(tmp_path / "b"), str(tmp_path / "a")], "train/loss")
    assert [run.values("train/loss").tolist() for run in runs] == [[400, 300, 200], [4, 3, 2, 1, 0.5]]
    assert len(by_method(runs, "train/loss")) == 2


def test_a_fork_leaves_the_run_that_it_came_from(tmp_path):
    write(tmp_path / "foof/version_0", [4.0, 3.0, 2.0, 1.0], settings=settings())
    fork = settings(lambda_a=2.0, ckpt_path="foof/version_0/checkpoints/x.ckpt")
    write(tmp_path / "foof/version_1", [9.0], start=2, settings=fork)
    runs = read_runs([str(tmp_path)], "train/loss")
    assert [run.values("train/loss").tolist() for run in runs] == [[4, 3, 2, 1], [4, 3, 9]]


def test_a_chain_goes_through_a_run_that_logged_nothing(tmp_path):
    write(tmp_path / "foof/version_0", [9.0, 8.0, 7.0], settings=settings())
    for version, start, losses in ((1, 3, []), (2, 3, [5.0, 4.0])):
        point = f"/gone/foof/version_{version - 1}/checkpoints/x.ckpt"  # the runs were moved
        write(tmp_path / f"foof/version_{version}", losses, start, settings=settings(ckpt_path=point))
        (tmp_path / f"foof/version_{version}/events.out.tfevents.0").touch()
    (run,) = read_runs([str(tmp_path)], "train/loss")
    assert run.values("train/loss").tolist() == [9, 8, 7, 5, 4]


def test_a_test_of_a_checkpoint_is_no_run_of_its_metric(tmp_path):
    write(tmp_path / "foof/version_0", settings=settings(lambda_a=2.0))
    tested = settings(ckpt_path="foof/version_0/checkpoints/x.ckpt")
    write(tmp_path / "foof/version_1", [0.1], tag="test/loss", settings=tested)
    (run,) = read_runs([str(tmp_path)], "train/loss")
    assert run.folder.name == "version_0"


def test_folders_that_make_methods(tmp_path, monkeypatch):
    def names(*roots):
        return {name: len(runs) for name, runs in by_method(read_runs(list(roots), "train/loss"), "train/loss").items()}

    for folder in ("before/foof", "after/foof"):
        for seed in (0, 1):
            quiet = settings(seed)
            quiet["trainer"] = quiet["trainer"] | {"enable_progress_bar": bool(seed)}
            write(tmp_path / folder / f"seed{seed}", settings=quiet)
    monkeypatch.chdir(tmp_path)
    assert names("before") == {"foof": 2}
    assert names("before", "after") == {"before/foof": 2, "after/foof": 2}
    assert names("x=before", "y=after") == {"x": 2, "y": 2}
    monkeypatch.chdir(tmp_path / "before/foof")
    assert names(".") == {"foof": 2}


def test_trials_of_a_sweep_are_named_by_it_and_their_number(tmp_path):
    for trial in (0, 12):
        for seed in (0, 1):
            write(tmp_path / f"tune/first/3f9a1c07_{trial:05d}/seed_{seed}", settings=settings(seed, trial + 1.0))
    methods = by_method(read_runs([str(tmp_path)], "train/loss"), "train/loss")
    assert {name: len(runs) for name, runs in methods.items()} == {"first, trial 0": 2, "first, trial 12": 2}
