import json
import math
import re

import pytest
import yaml

from locoprop_lightning.tune.study import report
from locoprop_lightning.tune.study.paces import FILE
from locoprop_lightning.tune.study.spec import load
from locoprop_lightning.tune.study.standing import Standing
from locoprop_lightning.tune.study.store import FINALS, TRIALS, Store, write_curve
from locoprop_lightning.tune.study.tables import best_so_far, steps_to, tuning
from tests.support import ROOT

LR = "model.optimizer.lr"
LOSSES = {"adam": (1.0, 0.5, 0.4), "fast": (0.5, 0.25, 0.2), "broken": (1.0, 2.0, math.inf)}


@pytest.fixture
def study(tmp_path):
    """A study of three methods, one of which is not finite, with three trials and three seeds."""
    path = tmp_path / "s.yaml"
    config = str(ROOT / "configs" / "digits" / "adam.yaml")
    budget = {"trials": 3, "seeds": 3}
    content = {"title": "T", "note": "N.", "budget": budget, "methods": dict.fromkeys(LOSSES, config)}
    path.write_text(yaml.safe_dump(content))
    store = Store(tmp_path / "out", list(LOSSES))
    loaded = load(path, [])
    standing = Standing(loaded.methods["adam"], loaded, store)  # the others have the same settings
    same = {"device": "x86_64", "torch": "2", "mark": standing.mark, "local": False, "values": {LR: 0.002}}
    final = standing.final_mark(same)
    for name, scales in LOSSES.items():
        for trial in range(3):
            done = trial != 1
            line = {"method": name, "trial": trial, "value": 0.9 - 0.1 * trial, "status": "done" if done else "stopped"}
            store.add(TRIALS, same | line)
        for seed in (1, 2, 3):
            losses = [scale * 0.9**seed * 0.99**step for step in range(100) for scale in scales[:1]]
            losses = losses if math.isfinite(scales[2]) else [*losses[:50], math.inf]
            fine = len(losses) == 100
            line = {"method": name, "seed": seed, "steps": len(losses), "status": "done" if fine else "non-finite"}
            line |= {"value": losses[-1] if fine else None, "highest": 1.0, "test/accuracy": 0.9 if fine else None}
            store.add(FINALS, same | {"mark": final} | line)
            write_curve(store.curve(name, seed), losses)
    pace = {"mark": final, "machine": "x86_64, 2 threads", "when": "2026-01-01"}
    paces = {"adam": {"ms": 10.0} | pace, "fast": {"ms": 30.0} | pace}
    (tmp_path / "out" / FILE).write_text(json.dumps(paces))
    return loaded, store


def row(text, name, place=0):
    found = [line for line in text.splitlines() if re.match(rf"\| (\d+ )?{name} \|", line)][place]
    return [cell.strip() for cell in found.strip("|").split("|")]


def test_the_page(study):
    told = report.write(*study)
    page = (study[1].folder / "report.md").read_text()
    assert told.endswith(f"report: {study[1].folder / 'report.md'}") and page.startswith("# T\n\nN.")
    assert "Not finished" not in page and "A run has 100 steps" in page
    ends = [line.split("|")[1].strip() for line in told.splitlines()[2:5]]
    assert ends == ["fast", "adam", "broken"]  # the lowest loss first
    assert row(page, "broken")[2] == "non-finite"
    for name in re.findall(r"\(([\w.]+\.svg)\)", page):
        assert (study[1].folder / name).read_text().startswith("<?xml")
        assert (study[1].folder / name).with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert len(re.findall(r"\.svg\)", page)) == 4


def test_steps_and_seconds_to_the_rival(study):
    """The same curve from half the height: it is there after the steps in which a loss halves, ln 2 / -ln 0.99 = 69."""
    report.write(*study)
    page = (study[1].folder / "report.md").read_text()
    heads, adam, fast, broken = (row(page, name, 1) for name in ("method", *LOSSES))
    assert heads[-2].startswith("steps to 0.3") and heads[-2].endswith("of adam's")
    assert adam[-2:] == ["1.00", "1.00"] and broken[-2:] == ["-", "-"]
    steps, seconds = map(float, fast[-2:])
    assert steps == pytest.approx(0.31, abs=0.02) and seconds == pytest.approx(3 * steps, abs=0.02)
    assert heads[6] == "0.25 s" and row(page, "fast", 1)[6] != "-"


def test_which_differences_stand(study):
    report.write(*study)
    page = (study[1].folder / "report.md").read_text()
    table = page[page.index("## Which differences stand") :]
    assert row(table, "fast")[1:] == ["", "<", "<"] and row(table, "broken")[1:] == [">", ">", ""]
    assert "3 of 3 pairs are decided" in table


def test_how_easy_a_method_was_to_tune(study):
    report.write(*study)
    page = (study[1].folder / "report.md").read_text()
    table = page[page.index("## Tuning") :]
    assert row(table, "adam") == ["adam", "3", "0.9", "0.7", "0.8", "1", "0"]
    assert row(table, "adam", 1) == ["adam", f"{LR}=0.002", f"{LR} loguniform 1e-06, 0.05"]
    done = [{"status": "done", "value": value} for value in (0.5, None, 0.7, 0.2)]
    assert best_so_far(done, rising=False) == [0.5, 0.5, 0.5, 0.2] and best_so_far(done, rising=True)[2] == 0.7
    assert math.isnan(best_so_far([{"status": "stopped", "value": 0.1}], rising=False)[0])
    heads, long, short = tuning({"long": done, "short": done[:2]}, rising=False)
    assert heads[2:5] == ["as shipped", "best of 3", "best of all"]
    assert long[:5] == ["long", "4", "0.5", "0.5", "0.2"] and short[:5] == ["short", "2", "0.5", "-", "0.5"]


def test_a_study_under_way_says_what_is_missing(study):
    loaded, store = study
    budget = loaded.budget._replace(seeds=4)
    report.write(loaded._replace(budget=budget), store)
    assert "**Not finished** for any of the 3 methods." in (store.folder / "report.md").read_text()
    (store.folder / FINALS).unlink()
    assert "as shipped" in report.write(loaded, store)


def test_lines_of_other_settings_are_not_shown(study):
    """A method that the study no longer names, and one whose settings were edited since."""
    loaded, store = study
    methods = dict(loaded.methods)
    del methods["fast"]
    methods["broken"] = methods["broken"]._replace(settings={"data.batch_size": 7})
    report.write(loaded._replace(methods=methods), store)
    page = (store.folder / "report.md").read_text()
    assert "with other settings: broken, fast." in page and "**Not finished** for broken." in page
    with pytest.raises(IndexError):
        row(page, "fast")


def test_tuned_values_in_the_configuration_make_no_other_method(study):
    loaded, store = study
    adam = loaded.methods["adam"]
    edited = store.folder / "adam.yaml"
    edited.write_text(re.sub(r"lr: \S+?}", "lr: 0.5}", adam.config.read_text()))
    assert edited.read_text() != adam.config.read_text()
    old, new = Standing(adam, loaded, store), Standing(adam._replace(config=edited), loaded, store)
    assert new.mark == old.mark and len(new.finals) == 3
    edited.write_text(adam.config.read_text().replace("batch_size: ", "batch_size: 1"))
    assert Standing(adam._replace(config=edited), loaded, store).mark != old.mark


def test_a_run_that_broke_down_has_no_last_loss(study):
    """Wherever it had come to: a low loss at the crash is no result."""
    loaded, store = study
    for line in store.lines(FINALS):
        if line["method"] == "fast":
            store.add(FINALS, line | {"status": "failed", "value": None})
    page = report.write(loaded, store)
    assert row(page, "fast")[2] == "non-finite" and row(page, "adam")[2] != "non-finite"


def test_a_test_metric_says_of_how_many_runs(study):
    loaded, store = study
    store.add(FINALS, store.lines(FINALS)[0] | {"status": "failed", "test/accuracy": None})
    page = report.write(loaded, store)
    assert row(page, "adam")[3] == "0.9000 in 2 of 3" and row(page, "fast")[3] == "0.9000"


def test_a_reference_that_breaks_down_is_no_target(study):
    loaded, store = study
    report.write(loaded._replace(reference="broken"), store)
    page = (store.folder / "report.md").read_text()
    assert "Most runs of broken ended without a finite loss" in page and "steps to inf" not in page


def test_steps_to_a_target():
    from locoprop_lightning.results.runs import LOSS, Run
    from locoprop_lightning.results.table import best_first

    run = Run({LOSS: {step: (1.0 - step / 10, 0.0) for step in range(10)}}, ROOT)
    ((curves,),) = best_first({"a": [run]}, LOSS, 0.0).values()
    assert steps_to(curves, 0.75) == 4 and steps_to(curves, 1.0) == 1 and steps_to(curves, 0.05) == math.inf


def test_figures_name_the_best_of_either_kind_and_the_reference():
    methods = ["a", "b", "ours 1", "c", "ours 2", "ours 3", "ours 4", "d", "rival"]
    local = {name for name in methods if name.startswith("ours")}
    named = ["a", "b", "ours 1", "c", "ours 2", "ours 3", "rival"]
    assert report.in_focus(methods, local, "rival") == named
    assert report.in_focus(methods[:7], local, "a") == methods[:7]
