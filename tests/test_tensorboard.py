"""What a real TensorBoard server, and a real browser, show of a real run."""

import os

import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from locoprop_lightning import BackpropModule, LocoPropModule
from locoprop_lightning.callbacks import HyperparameterLogger, LocalLossMonitor, StepTimer
from locoprop_lightning.data import Digits
from locoprop_lightning.networks import MLP
from locoprop_lightning.observer import SolveObserver
from locoprop_lightning.solvers import AndersonAcceleration
from locoprop_lightning.tasks import Classification
from tests.support import quiet_trainer, script

pytestmark = pytest.mark.processes  # a server, and a browser where there is one
page = script("tensorboard_screenshot", "scripts")
LAYERS, STEPS, RUN, ITERATIONS = ("1", "3"), (0, 2, 4, 6, 8), "digits/mine", 4
SETTINGS = {"data.batch_size": 500, "model.lambda_a": 100.0, "odd": None}
WHOLE = (0, 2, 4, 8)  # the first and those at 1, 2, 4 intervals


class Witness(SolveObserver):
    """Keeps what was recorded."""

    def __init__(self):
        self.reports, self.losses = {}, []

    def on_solved(self, trainer, problems, reports, counts):
        self.reports[trainer.global_step] = reports

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(outputs["loss"].item())


def fit(folder, loggers, *callbacks, module=None):
    seed_everything(0, verbose=False)
    module = module or LocoPropModule(MLP(64, 16, 1), Classification(), AndersonAcceleration(ITERATIONS), 100.0, 300.0)
    trainer = quiet_trainer(
        max_epochs=3,
        log_every_n_steps=1,
        logger=loggers,
        callbacks=list(callbacks),
        default_root_dir=folder,
    )
    trainer.fit(module, Digits(batch_size=500, seed=0))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of 9 steps, and what the solver returned at each."""
    folder, witness = tmp_path_factory.mktemp("logs"), Witness()
    logger = TensorBoardLogger(folder, name=RUN, version="", default_hp_metric=False)
    monitor = LocalLossMonitor(every_n_steps=2, histograms=True)
    before = dict(os.environ)
    fit(folder, logger, monitor, StepTimer(), HyperparameterLogger(SETTINGS), witness)
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    return folder, witness


@pytest.fixture(scope="module")
def address(run):
    with page.server(run[0]) as address:
        for _ in range(100):
            if RUN in page.get(address, "runs"):
                break
            page.time.sleep(0.1)
        yield address


def scalars(address, tag, run=RUN):
    points = page.get(address, f"plugin/scalars/scalars?run={run.replace('/', '%2F')}&tag={tag.replace('/', '%2F')}")
    return {step: value for _, step, value in points}


def hparams(address, what, asked):
    """What the HParams tab is told."""
    path = f"{address}/data/plugin/hparams/{what}"
    request = page.urllib.request.Request(path, asked.encode(), {"Content-Type": "application/json"})
    with page.urllib.request.urlopen(request, timeout=30) as answer:
        return page.json.load(answer)


def test_the_server_lists_the_tags(address):
    tags = page.get(address, "plugin/scalars/tags")
    kinds = ("first", "last", "reduction", "out_of_range", "displacement")
    expected = {f"local_loss/{layer}/{kind}" for layer in LAYERS for kind in kinds}
    expected |= {"train/loss", "train/accuracy", "val/loss", "val/accuracy", "lr", "time/step_ms"}
    assert expected <= set(tags[RUN])
    assert page.get(address, "runs") == [RUN]  # a sampled step is no run: of more than 40, none is selected


def test_values_are_what_the_solver_returned(address, run):
    _, witness = run
    assert list(scalars(address, "train/loss").values()) == pytest.approx(witness.losses)
    for layer in LAYERS:
        read = {kind: scalars(address, f"local_loss/{layer}/{kind}") for kind in ("first", "last", "displacement")}
        assert tuple(read["first"]) == STEPS
        for step in STEPS:
            report = witness.reports[step][layer]
            assert len(report.losses) == (ITERATIONS + 1 if step in WHOLE else 2)
            assert read["first"][step] == pytest.approx(report.losses[0].item())
            assert read["last"][step] == pytest.approx(report.losses[-1].item())
            assert read["displacement"][step] == pytest.approx(report.displacement.item())
    events = EventAccumulator(str(run[0] / RUN)).Reload()
    for layer in LAYERS:
        curves = {event.step: make_ndarray(event.tensor_proto) for event in events.Tensors(f"inner/{layer}")}
        assert tuple(curves) == WHOLE
        for step, curve in curves.items():
            assert curve.tolist() == pytest.approx(witness.reports[step][layer].losses.tolist())
    paces = scalars(address, "time/step_ms")
    assert len(paces) == 9 and all(0 < pace < 60_000 for pace in paces.values())


def test_layout_image_histograms_and_settings(address):
    layout = page.get(address, "plugin/custom_scalars/layout")["category"]
    bands, *lines = layout
    edges = {chart["title"]: chart["margin"]["series"] for chart in bands["chart"]}
    for name in LAYERS:
        (band,) = edges[f"Layer {name}: before (edge) and after (line)"]
        assert [band["value"], band["upper"]] == [f"local_loss/{name}/last", f"local_loss/{name}/first"]
    assert {c["title"]: c["multiline"]["tag"] for part in lines for c in part["chart"]} == {
        "Local loss after the solve": ["^local_loss/.*/last$"],
        "Milliseconds a step": ["^time/step_ms$"],
    }
    for tag in ("heat_map", "inner_curves"):
        asked = f"run={RUN.replace('/', '%2F')}&tag=local_loss%2F{tag}&sample=0"
        images = page.get(address, f"plugin/images/images?{asked}")
        assert [image["step"] for image in images] == list(WHOLE)
    histograms = page.get(address, "plugin/histograms/tags")[RUN]
    assert set(histograms) == {f"local_loss/{layer}/target_shift" for layer in LAYERS}
    listed = hparams(address, "experiment", "{}")
    first = ["model.lambda_a", "model.lambda_r", "model.optimizer.lr", "model.oracle", "model.solver"]
    assert [info["name"] for info in listed["hparamInfos"]] == [*first, "data.batch_size"]
    assert [info["name"]["tag"] for info in listed["metricInfos"]] == ["val/accuracy", "val/loss", "train/loss"]
    statuses = '"allowedStatuses":["STATUS_SUCCESS","STATUS_UNKNOWN","STATUS_RUNNING"]'
    asked = f'{{"startIndex":0,"sliceSize":10,{statuses},"colParams":[]}}'
    (group,) = hparams(address, "session_groups", asked)["sessionGroups"]
    assert group["hparams"] == {"model.lambda_a": 100.0, "data.batch_size": 500.0}
    values = {value["name"]["tag"]: value["value"] for value in group["metricValues"]}
    assert values["val/accuracy"] == pytest.approx(list(scalars(address, "val/accuracy").values())[-1])
    assert "val/loss" in values and "train/loss" in values


@pytest.mark.skipif(not (page.CHROMIUM.exists() and page.DRIVER.exists()), reason="needs Chromium and its driver")
def test_a_browser_draws_the_curves(address):
    with page.browser(1400, 900) as driver:
        page.open_tab(driver, address, "scalars")
        assert page.drawn(driver) >= 3
        page.open_tab(driver, address, "custom_scalars")
        titles = driver.execute_script(
            page.DEEP + "return found.map(e => e.textContent)", "h2, h3, .category-name, span"
        )
        assert page.drawn(driver) >= len(LAYERS) and any("Local loss" in title for title in titles)
        charts = driver.execute_script(
            page.DEEP + "return found.filter(e => !e.children.length).map(e => e.textContent.trim())", "*"
        )
        drawn = [text.split(":")[0] for text in charts if text.startswith("Layer ")]
        assert drawn == [f"Layer {name}" for name in LAYERS]


def test_steps_that_are_not_logged_wait_for_nothing_more(tmp_path, monkeypatch):
    """On a GPU these are the calls that wait; Lightning's own and the solver's are the same in both runs."""
    calls = [0]
    for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__"):
        original = getattr(torch.Tensor, name)

        def counted(self, *args, original=original, **kwargs):
            calls[0] += 1
            return original(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, counted)

    class Count(Callback):
        def __init__(self):
            self.steps = []

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            calls[0] = 0

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.steps.append(calls[0])

    counts = []
    for every in (0, 4):
        count = Count()
        logger = TensorBoardLogger(tmp_path, name=str(every), version="", default_hp_metric=False)
        fit(tmp_path, logger, LocalLossMonitor(every_n_steps=every), StepTimer(), count)
        counts.append(count.steps)
    more = [step for step, (without, with_) in enumerate(zip(*counts, strict=True)) if with_ > without]
    assert more == [0, 4, 8]


def test_other_loggers_and_modules(tmp_path):
    csv = CSVLogger(tmp_path, name="csv", version="")
    fit(tmp_path, csv, LocalLossMonitor(every_n_steps=2), StepTimer(), HyperparameterLogger({"lambda_a": 1.0}))
    header = (tmp_path / "csv/metrics.csv").read_text().splitlines()[0]
    assert "local_loss/1/last" in header and "time/step_ms" in header
    assert "lambda_a: 1.0" in (tmp_path / "csv/hparams.yaml").read_text()
    with pytest.warns(UserWarning, match="no logger to take the local losses; give it one, or take LocalLossHistory"):
        fit(tmp_path, False, LocalLossMonitor(), StepTimer(), HyperparameterLogger({}))
    fit(tmp_path, False, LocalLossMonitor(every_n_steps=0))
    adam = BackpropModule(MLP(64, 16, 1), Classification(), lambda p: torch.optim.Adam(p))
    board = TensorBoardLogger(tmp_path, name="adam", version="", default_hp_metric=False)
    fit(tmp_path, board, LocalLossMonitor(), StepTimer(), HyperparameterLogger({}), module=adam)
