import pytest
import yaml

from locoprop_lightning.errors import UserError
from locoprop_lightning.tune.check import check
from locoprop_lightning.tune.study.spec import Budget, load
from locoprop_lightning.tune.trial import build
from tests.support import ROOT

ADAM = "configs/digits/adam.yaml"
STUDIES = sorted((ROOT / "tune" / "studies").glob("*.yaml"))


def study(tmp_path, **content):
    path = tmp_path / "s.yaml"
    path.write_text(yaml.safe_dump({"methods": {"adam": ADAM}} | content))
    return path


def test_a_method_is_a_configuration_with_a_space(tmp_path):
    (tmp_path / "mine.yaml").write_text((ROOT / ADAM).read_text())
    mine = {"config": "mine.yaml", "space": {"model.optimizer.lr": {"uniform": [0, 1]}}, "set": {"data.batch_size": 64}}
    loaded = load(study(tmp_path, methods={"adam": ADAM, "mine": mine}, workload={"trainer.max_epochs": 2}), [])
    adam, own = loaded.methods.values()
    assert adam.config == ROOT / ADAM and list(adam.space.dimensions) == ["model.optimizer.lr"]
    assert own.config == tmp_path / "mine.yaml" and own.settings == {"trainer.max_epochs": 2, "data.batch_size": 64}
    assert (loaded.title, loaded.judge, loaded.reference, loaded.budget) == ("s", "train/loss", "adam", Budget())


def test_methods_can_be_added(tmp_path):
    more = tmp_path / "more.yaml"
    more.write_text(f"mine: {ADAM}\n")
    assert list(load(study(tmp_path), []).methods) == ["adam"]
    assert list(load(study(tmp_path), [more]).methods) == ["adam", "mine"]
    more.write_text(f"adam: {ADAM}\n")
    with pytest.raises(UserError, match="adam is a method of the study already; give it another name"):
        load(study(tmp_path), [more])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"methods": {}}, "name at least one"),
        ({"workloads": {}}, "workloads: is none of budget, judge"),
        ({"methods": {"a/b": ADAM}}, "a method's name has letters"),
        ({"methods": {"a": "no.yaml"}}, "a: config: no.yaml: there is no such file"),
        ({"methods": {"a": {"space": {}}}}, "must be a configuration, or"),
        ({"methods": {"a": {"config": ADAM, "spaces": 1}}}, "spaces is none of config, space, set"),
        ({"methods": {"a": {"config": ADAM, "space": {"x": {"uniform": [1, 0]}}}}}, "uniform must be two numbers"),
        ({"workload": {"model.optimizer.lr": 1}}, "is of the workload, and searched by its space"),
        ({"budget": {"trials": 0}}, "trials=0"),
        ({"budget": {"epochs": 3}}, "epochs is none of trials, seeds, threads"),
        ({"reference": "sgd"}, "sgd is none of the methods adam"),
        ({"judge": "test/accuracy"}, "must be train/loss or a metric of held-out data"),
        ({"workload": 3}, "workload: must be a mapping"),
    ],
)
def test_refusals(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        load(study(tmp_path, **content), [])


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_shipped_studies_load(path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert load(path, []).reference


@pytest.mark.slow
@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_method_of_a_shipped_study_begins(path, monkeypatch, fashion_mnist):
    monkeypatch.setattr("sys.argv", ["tune"])
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # Lightning calls a deprecated method of its
    study = load(path, [])
    first, *_ = study.methods.values()
    check(first.config, first.space, study.judge, first.settings, 1)
    for method in study.methods.values():
        cli = build(str(method.config), 0, 1, {**method.settings, "model.lr_scheduler": None})
        cli.model.configure_optimizers()  # where names of the network's layers are held against it
