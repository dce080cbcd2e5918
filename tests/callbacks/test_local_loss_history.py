"""Local losses in memory."""

import sys

import pytest
import torch
from torch import nn

from locoprop_lightning import LocoPropModule, UserError
from locoprop_lightning.callbacks import LocalLossHistory
from locoprop_lightning.data import Digits
from locoprop_lightning.networks import MLP
from locoprop_lightning.observer import SolveObserver
from locoprop_lightning.solvers import AndersonAcceleration
from locoprop_lightning.tasks import Classification
from tests.support import quiet_trainer


def module(network=None):
    torch.manual_seed(0)
    network = network or MLP(64, 16, 1)
    return LocoPropModule(network, Classification(), AndersonAcceleration(4, memory=2), lambda_a=30.0, lambda_r=1000.0)


class Seen(SolveObserver):
    """Takes down what it is told."""

    def __init__(self):
        self.told = {}

    def on_solved(self, trainer, problems, reports, counts):
        self.told[trainer.global_step] = reports


def fit(*callbacks, network=None, **settings):
    trainer = quiet_trainer(callbacks=list(callbacks), **settings)
    trainer.fit(module(network), Digits(batch_size=100, seed=0))
    return trainer


def test_the_history_is_what_was_recorded():
    history, seen = LocalLossHistory(every_n_steps=2), Seen()
    fit(history, seen, max_steps=5)
    assert history.steps == [0, 2, 4] and history.layers == ["1", "3"]
    assert history["1"].shape == (3, 5)
    for row, step in zip(history["3"], history.steps, strict=True):
        assert torch.equal(row, seen.told[step]["3"].losses)
    ends = LocalLossHistory(curves=False)
    fit(ends, max_steps=3)
    assert ends["1"].shape == (3, 2)
    torch.testing.assert_close(ends["1"][0], history["1"][0, [0, -1]])
    with pytest.raises(
        UserError, match=r"LocalLossHistory\['2'\]: is no layer that was solved; there are \['1', '3'\]"
    ):
        history["2"]


def test_a_frame_has_a_row_a_solve_or_an_iteration():
    pytest.importorskip("pandas", reason="pandas is not installed")
    history = LocalLossHistory()
    fit(history, max_steps=3)
    frame, inner = history.frame(), history.frame(inner=True)
    assert list(frame) == ["step", "layer", "first", "last", "reduction", "displacement", "out_of_range"]
    assert len(frame) == 3 * 2 and len(inner) == 3 * 2 * 5
    one = frame[(frame.step == 2) & (frame.layer == "1")].iloc[0]
    assert (one["first"], one["last"]) == (history["1"][2, 0].item(), history["1"][2, -1].item())
    assert one.reduction == pytest.approx(1 - one["last"] / one["first"]) and one.displacement > 0
    assert inner.loss[(inner.layer == "3") & (inner.step == 1)].tolist() == history["3"][1].tolist()


def test_without_pandas_the_way_out_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match="pandas is not installed; `pip install pandas`, or take the tensors"):
        LocalLossHistory().frame()


class Sometimes(nn.Module):
    """Calls its middle layer at every second training batch."""

    def __init__(self):
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(64, 16), nn.Linear(16, 16), nn.Linear(16, 10)
        self.calls = 0

    def forward(self, x):
        x = torch.tanh(self.first(x.flatten(1)))
        self.calls += self.training
        return self.last(torch.tanh(self.middle(x)) if self.calls % 2 or not self.training else x)


def test_a_layer_that_is_not_solved_has_no_loss():
    history = LocalLossHistory()
    fit(history, network=Sometimes(), max_steps=4)
    assert history["middle"].isnan().all(1).tolist() == [False, True, False, True]
    assert not history["first"].isnan().any()


def test_a_resumed_fit_goes_on_and_a_new_one_begins_anew(tmp_path):
    whole, part = LocalLossHistory(), LocalLossHistory()
    fit(whole, max_epochs=2)
    trainer = fit(part, max_epochs=1)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    resumed = LocalLossHistory()
    again = quiet_trainer(callbacks=[resumed], max_epochs=2)
    again.fit(module(), Digits(batch_size=100, seed=0), ckpt_path=tmp_path / "one.ckpt", weights_only=True)
    assert resumed.steps == whole.steps == list(range(30))
    assert torch.equal(resumed["1"], whole["1"])
    fit(resumed, max_steps=2)
    assert resumed.steps == [0, 1]
