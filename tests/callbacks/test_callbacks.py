import contextlib
import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import DummyLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader, TensorDataset

from locoprop_lightning import BackpropModule, LocoPropModule, UserError
from locoprop_lightning.callbacks import FitSummary, LocalLossMonitor, PredictionWriter, StepTimer
from locoprop_lightning.callbacks.fit_summary import next_commands, summary_line
from locoprop_lightning.data import Digits
from locoprop_lightning.networks import MLP
from locoprop_lightning.observer import SolveObserver
from locoprop_lightning.solvers import ClosedForm, FixedPointIteration, Recording
from locoprop_lightning.tasks import Classification

QUIET = {"enable_progress_bar": False, "enable_model_summary": False}


def fit(folder, *callbacks, lambda_r=10.0):
    module = LocoPropModule(
        MLP(64, 16, 1), Classification(), ClosedForm(), lambda_a=30.0, lambda_r=lambda_r, objective="squared"
    )
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        log_every_n_steps=1,
        logger=TensorBoardLogger(folder, name=None, version="", default_hp_metric=False),
        callbacks=list(callbacks),
        enable_checkpointing=False,
        **QUIET,
    )
    trainer.fit(module, Digits(batch_size=500))
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return trainer, events


def test_scalars_of_a_run(tmp_path):
    _, events = fit(tmp_path, LocalLossMonitor(every_n_steps=2))
    tags = set(events.Tags()["scalars"])
    assert {"train/loss", "train/accuracy", "val/loss", "val/accuracy", "lr"} <= tags
    assert [e.step for e in events.Scalars("train/loss")] == [0, 1, 2]
    for layer in ("1", "3"):
        first, last, reduction = (events.Scalars(f"local_loss/{layer}/{t}") for t in ("first", "last", "reduction"))
        assert [e.step for e in first] == [0, 2]
        for f, k, r in zip(first, last, reduction, strict=True):
            assert 0 < k.value < f.value
            assert r.value == pytest.approx(1 - k.value / f.value, rel=1e-5)
        sizes, outside = (events.Scalars(f"local_loss/{layer}/{t}") for t in ("displacement", "out_of_range"))
        assert all(0 < e.value < 1 for e in sizes) and all(e.value == 0 for e in outside)  # the identity has any value


def test_nothing_is_recorded_when_switched_off(tmp_path):
    _, events = fit(tmp_path, LocalLossMonitor(every_n_steps=0))
    assert not any(tag.startswith("local_loss") for tag in events.Tags()["scalars"])


def test_summary_smooths_the_raw_losses(tmp_path, capsys):
    _, events = fit(tmp_path, FitSummary())
    losses = [e.value for e in events.Scalars("train/loss")]
    smoothed = losses[0]
    for loss in losses[1:]:
        smoothed = 0.7 * smoothed + 0.3 * loss
    printed = capsys.readouterr().out
    assert f"{losses[-1]:.4f} (smoothed {smoothed:.4f})" in printed
    assert f"  see the curves       tensorboard --logdir {tmp_path.parent}\n" in printed  # where the run has a name


class Told(WandbLogger):
    """Of a run with an address or without one, as wandb has it."""

    experiment = None

    def __init__(self, url):
        self.experiment = SimpleNamespace(url=url, dir="my runs/offline-run-1/files")


def test_the_summary_names_what_fits_the_loggers():
    folder = Path("runs/digits/foof/version_0")
    board = TensorBoardLogger("runs", name="digits/foof", version=0, default_hp_metric=False)
    csv = CSVLogger("runs", name="digits/foof", version=0)
    assert next_commands([board], folder) == [
        ("see the curves", "tensorboard --logdir runs/digits/foof"),
        ("compare", "locoprop-compare runs/digits"),
    ]
    assert next_commands([csv], folder) == [
        ("see the metrics", "less -S runs/digits/foof/version_0/metrics.csv"),
        ("compare", "locoprop-compare runs/digits"),
    ]
    assert [name for name, _ in next_commands([board, csv], folder)] == ["see the curves", "see the metrics", "compare"]
    assert next_commands([DummyLogger()], folder) == []
    assert next_commands([Told(None)], folder) == [("upload the curves", "wandb sync 'my runs/offline-run-1'")]
    assert next_commands([Told("https://wandb.ai/me/p/runs/1")], folder) == [
        ("see the curves", "https://wandb.ai/me/p/runs/1")
    ]
    assert next_commands([board], Path("my runs/a"))[0][1] == "tensorboard --logdir 'my runs'"


@pytest.mark.parametrize(
    ("logs", "above", "methods"),
    [
        ("lightning_logs/version_0", "lightning_logs", "lightning_logs"),
        ("{here}/lightning_logs/version_0", "lightning_logs", "lightning_logs"),
        ("{here}/foof/version_0", "foof", "foof"),
        ("{here}/runs/foof/version_0", "runs/foof", "runs"),
        ("/logs/lightning_logs/version_0", "/logs/lightning_logs", "/logs/lightning_logs"),
        ("/logs/foof/version_0", "/logs/foof", "/logs"),
    ],
)
def test_runs_are_compared_below_a_folder_of_logs_alone(folder, logs, above, methods):
    board = TensorBoardLogger("runs", default_hp_metric=False)
    told = dict(next_commands([board], Path(logs.format(here=folder))))
    assert told == {"see the curves": f"tensorboard --logdir {above}", "compare": f"locoprop-compare {methods}"}


def test_a_long_command_of_the_summary_is_continued_on_a_terminal_alone(monkeypatch):
    command = "locoprop test --config runs/version_0/config.yaml --ckpt_path runs/version_0/checkpoints/last.ckpt"
    assert summary_line("test", command) == f"  {'test':<20} {command}"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    lines = summary_line("test", command).splitlines()
    assert max(map(len, lines)) <= 80 and len(lines) == 3
    assert shlex.split(" ".join(line.removesuffix("\\") for line in lines))[1:] == shlex.split(command)
    monkeypatch.setenv("COLUMNS", "200")
    assert summary_line("test", command) == f"  {'test':<20} {command}"


def test_summary_goes_on_over_a_resume():
    first, second = FitSummary(), FitSummary()
    for step, loss in enumerate((1.0, 2.0)):
        first.on_train_batch_end(SimpleNamespace(global_step=step), None, {"loss": torch.tensor(loss)}, None, 0)
    second.load_state_dict(first.state_dict())
    second.on_train_batch_end(SimpleNamespace(global_step=2), None, {"loss": torch.tensor(3.0)}, None, 0)
    assert second.state_dict()["smoothed"].item() == pytest.approx(0.7 * (0.7 * 1 + 0.3 * 2) + 0.3 * 3)


def test_summary_tells_a_resume(tmp_path, capsys):
    first = FitSummary()
    fit(tmp_path / "first", first)
    assert "since the resume" not in capsys.readouterr().out
    second = FitSummary()
    second.load_state_dict(first.state_dict())
    fit(tmp_path / "second", second)
    assert " for the 3 steps since the resume" in capsys.readouterr().out


def test_an_interrupted_fit_has_a_summary(tmp_path, capsys):
    class Interrupt(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx == 1:
                raise KeyboardInterrupt

    with contextlib.suppress(SystemExit):
        fit(tmp_path, FitSummary(), Interrupt())
    printed = capsys.readouterr().out
    assert "smoothed" in printed and re.search(r"steps +2\n", printed)


def test_a_resume_at_the_end_says_that_nothing_was_trained(tmp_path, capsys):
    summary = FitSummary()
    summary.load_state_dict({"smoothed": torch.tensor(1.0), "seconds": 1.0, "steps": 3})
    trainer = Trainer(
        max_epochs=0, accelerator="cpu", logger=False, callbacks=[summary], enable_checkpointing=False, **QUIET
    )
    module = LocoPropModule(MLP(64, 16, 1), Classification(), ClosedForm(), 30.0, 10.0, objective="squared")
    trainer.fit(module, Digits(batch_size=500))
    assert "Nothing was trained: the checkpoint is at step 0" in capsys.readouterr().out


def test_summary_says_where_most_solutions_failed(tmp_path, capsys):
    module = LocoPropModule(MLP(64, 16, 1), Classification(), FixedPointIteration(10), lambda_a=30.0, lambda_r=1.0)
    trainer = Trainer(
        accelerator="cpu", max_steps=3, logger=False, callbacks=[FitSummary()], enable_checkpointing=False, **QUIET
    )
    trainer.fit(module, Digits(batch_size=500))
    printed = capsys.readouterr().out
    assert "3 diverged of 3 local solutions" in printed and "a larger lambda_r or a smaller lambda_a helps" in printed


def test_summary_counts_its_own_seconds_where_it_resumes_within_an_epoch(monkeypatch):
    monkeypatch.setattr("time.perf_counter", lambda: 1e6)  # far from the zero that the clock never showed
    summary = FitSummary()
    summary.on_fit_start(None, None)  # no epoch starts
    summary.on_train_epoch_end(None, None)
    assert summary.state_dict()["seconds"] == 0


def test_arguments():
    with pytest.raises(UserError, match="every_n_steps=-1"):
        LocalLossMonitor(every_n_steps=-1)


def module():
    return LocoPropModule(MLP(64, 16, 1), Classification(), ClosedForm(), 30.0, 10.0, objective="squared")


def quiet_trainer(folder, *callbacks, **options):
    options = {"max_epochs": 1, "accelerator": "cpu", "enable_checkpointing": False} | options
    logger = TensorBoardLogger(folder, name=None, version="", default_hp_metric=False)
    return Trainer(logger=logger, log_every_n_steps=1, callbacks=list(callbacks), **options, **QUIET)


def test_the_most_that_an_observer_asks_for_is_recorded(tmp_path):
    class Asks(SolveObserver):
        def __init__(self, what):
            self.what, self.told = what, []

        def recording(self, trainer):
            return self.what if trainer.global_step == 1 else Recording.NOTHING

        def on_solved(self, trainer, problems, reports, counts):
            self.told.append((trainer.global_step, problems.keys(), {n: len(r.losses) for n, r in reports.items()}))

    trained = LocoPropModule(MLP(64, 16, 1), Classification(), FixedPointIteration(4), lambda_a=30.0, lambda_r=1e5)
    observers = [Asks(what) for what in Recording]
    quiet_trainer(tmp_path, *observers).fit(trained, Digits(batch_size=500))
    for observer in observers:
        assert observer.told == [(1, {"1", "3"}, {"1": 5, "3": 5})]


def test_a_monitor_leaves_nothing_switched_on(tmp_path):
    trained = module()
    before = dict(vars(trained.solver))
    quiet_trainer(tmp_path / "a", LocalLossMonitor(5), max_steps=1).fit(trained, Digits(batch_size=500))
    own = {name: value for name, value in vars(trained.solver).items() if name not in ("log", "log_dict")}
    assert own == before  # the two are Lightning's
    quiet_trainer(tmp_path / "b", max_steps=1).fit(trained, Digits(batch_size=500))
    events = EventAccumulator(str(tmp_path / "b")).Reload()
    assert not any(tag.startswith("local_loss") for tag in events.Tags()["scalars"])


def test_the_stopwatch_stands_still_outside_a_fit(tmp_path, capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    class Passing(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            now[0] += 2.0

        def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
            now[0] += 100.0

    summary, trained = FitSummary(), module()
    trainer = quiet_trainer(tmp_path, summary, Passing())
    trainer.validate(trained, Digits(batch_size=500), verbose=False)
    now[0] += 1000.0
    trainer.fit(trained, Digits(batch_size=500))
    assert "milliseconds a step  2000.0" in capsys.readouterr().out and summary.seconds == 6.0
    now[0] += 1000.0
    assert summary.seconds == 6.0
    trainer.fit(trained, Digits(batch_size=500))  # its epochs are over
    assert "Nothing was trained" in capsys.readouterr().out


def test_an_interrupt_during_validation_has_a_summary(tmp_path, capsys):
    class Interrupt(Callback):
        def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
            if not trainer.sanity_checking:
                raise KeyboardInterrupt

    with contextlib.suppress(SystemExit):
        quiet_trainer(tmp_path, FitSummary(), Interrupt()).fit(module(), Digits(batch_size=500))
    assert re.search(r"steps +3\n", capsys.readouterr().out)


def test_pace_counts_steps_not_batches(tmp_path):
    trained = BackpropModule(MLP(64, 16, 1), Classification(), lambda p: torch.optim.SGD(p, lr=0.1))
    timer = StepTimer()
    quiet_trainer(tmp_path, timer, accumulate_grad_batches=3).fit(trained, Digits(batch_size=250))
    assert timer.steps == 2  # of six batches


def test_a_pace_after_a_resume_is_that_of_a_whole_interval():
    first, second = StepTimer(), StepTimer()
    first.steps, first._passed = 20, 2.0
    second.load_state_dict(first.state_dict())
    second.steps, second._passed = 30, 30.0
    steps, seconds = second._logged
    assert (second.steps - steps, second.seconds - seconds) == (50, 32.0)


def test_histograms_of_what_is_not_finite(tmp_path):
    class Broken(Digits):
        def train_dataloader(self):
            batch = torch.full((32, 64), torch.nan), torch.zeros(32, dtype=torch.int64)
            return DataLoader(TensorDataset(*batch), batch_size=16)

    quiet_trainer(tmp_path, LocalLossMonitor(1, histograms=True)).fit(module(), Broken(batch_size=500))


def test_failed_solves_are_logged_of_a_solver_that_records_nothing(tmp_path):
    class Silent(FixedPointIteration):
        def run(self, problem, state, recording):
            return super().run(problem, state, Recording.NOTHING)

    trained = LocoPropModule(MLP(64, 16, 1), Classification(), Silent(10), lambda_a=30.0, lambda_r=1.0)
    quiet_trainer(tmp_path, LocalLossMonitor(1)).fit(trained, Digits(batch_size=500))
    events = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0}).Reload()
    tags = {tag for tag in events.Tags()["scalars"] if tag.startswith("local_loss")}
    counts = trained.engine.counts.items()
    assert tags == {f"local_loss/{layer}/status/{status}" for layer, failed in counts for status in failed} and tags
    assert [e.value for e in events.Scalars(min(tags))][-1] == 3


@pytest.mark.parametrize("widths", [(3, 3), (3, 5)])
def test_predictions_are_written_whatever_their_lengths(tmp_path, widths, capsys):
    writer, parts = PredictionWriter(str(tmp_path / "out.pt")), [torch.rand(4, width) for width in widths]
    for index, part in enumerate(parts):
        writer.on_predict_batch_end(None, None, part, None, index)
    writer.on_predict_end(None, None)
    found = torch.load(tmp_path / "out.pt", weights_only=True)
    expected = torch.cat(parts) if widths[0] == widths[1] else parts
    torch.testing.assert_close(found, expected)
    assert capsys.readouterr().out.startswith("8 predictions")
