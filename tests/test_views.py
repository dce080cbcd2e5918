"""What objects show of themselves at a prompt and in a notebook."""

import copy
import pickle

import pytest
import torch
from torch import nn

from locoprop_lightning import BackpropModule, LocoPropModule, UserError, callbacks, data, oracles, solvers, tasks
from locoprop_lightning.networks import MLP
from locoprop_lightning.solvers import ClosedForm, FixedPointIteration, Recording
from tests.support import quiet_trainer


@pytest.mark.parametrize(
    ("made", "shown"),
    [
        (lambda: ClosedForm(), "ClosedForm()"),
        (lambda: ClosedForm(0.9, refresh_every=10, warmup=40), "ClosedForm(average=0.9, refresh_every=10)"),
        (lambda: FixedPointIteration(4), "FixedPointIteration(iterations=4)"),
        (lambda: solvers.InnerOptimizer(torch.optim.SGD), "InnerOptimizer(optimizer=SGD)"),
        (lambda: oracles.WhitenedOracle(damping=1.0), "WhitenedOracle(damping=1.0)"),
        (lambda: oracles.GradientOracle(), "GradientOracle()"),
        (lambda: tasks.Classification(5), "Classification(num_classes=5)"),
        (lambda: data.Digits(batch_size=3), "Digits(batch_size=3)"),
        (lambda: callbacks.LocalLossHistory(7), "LocalLossHistory(every_n_steps=7)"),
    ],
)
def test_parts_show_the_settings_that_they_were_given(made, shown):
    part = made()
    assert repr(part) == str(part) == repr(copy.deepcopy(part)) == shown


def test_a_setting_that_was_changed_is_shown_as_it_is():
    solver = pickle.loads(pickle.dumps(FixedPointIteration(4)))
    solver.iterations = 6
    assert repr(solver) == "FixedPointIteration(iterations=6)"
    with pytest.raises(TypeError, match="has no argument 'memory'; it has iterations"):
        FixedPointIteration(memory=3)


def module(**settings):
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.LayerNorm(16), nn.Linear(16, 10))
    return LocoPropModule(network, tasks.Classification(), FixedPointIteration(2), 30.0, 5000.0, **settings)


def test_a_module_shows_its_method_in_one_line():
    shown = repr(module(skip=["4"], damping="relative"))
    assert shown == (
        "LocoPropModule(Sequential of 1,242 parameters, Classification(), FixedPointIteration(iterations=2), "
        "GradientOracle(), lambda_a=30.0, lambda_r=5000.0, skip=['4'], damping='relative')"
    )
    other = BackpropModule(MLP(64, 16, 1), tasks.Classification(), torch.optim.SGD)
    assert repr(other) == "BackpropModule(MLP of 1,210 parameters, Classification())"


def test_layers_are_a_table_before_a_fit_and_after(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    own = module(skip=["4"])
    ahead = [row[3:] for row in own.layers.rows()]
    told = "found with the first batch"
    assert ahead == [
        ("-", "FixedPointIteration", told),
        ("-", "rest_optimizer", ""),
        ("-", "rest_optimizer", "skipped"),
    ]
    quiet_trainer(max_steps=1).fit(own, data.Digits(batch_size=100))
    layers = own.layers
    assert [row[0::3] for row in layers.rows()] == [("1", "tanh"), ("3", "-"), ("4", "-")]
    assert len(layers) == 3 and layers["4"] is layers[2] and [x.name for x in layers] == ["1", "3", "4"]
    assert repr(layers["1"]) == "LayerInfo('1', Linear, f=tanh)"
    assert repr(layers["4"]) == "LayerInfo('4', Linear, not local: skipped)"
    assert repr(own.engine.local["1"]) == "LocalLayer('1', Linear, f=tanh, lambda_a=30.0, lambda_r=5000.0)"
    text, html = str(layers), layers._repr_html_()
    assert "FixedPointIteration" in text and "AdamW" in text and "<td>FixedPointIteration</td><td></td>" in html
    with pytest.raises(UserError, match=r"layers\['2'\]: there is no such layer; there are 1, 3, 4."):
        layers["2"]


def test_a_layer_name_is_no_html():
    network = nn.ModuleDict({"<b>": nn.Linear(3, 2)})
    own = LocoPropModule(network, tasks.Classification(2), FixedPointIteration(2), 1.0, 1.0)
    assert "<td>&lt;b&gt;</td>" in own.layers._repr_html_()


def test_a_solution_is_shown_and_drawn(make_problem):
    from matplotlib.figure import Figure

    problem = make_problem("tanh", lambda_r=50.0)
    solution = FixedPointIteration(3).solve(problem, recording=Recording.CURVE)
    first, last = (f"{solution.losses[i].item():.4g}" for i in (0, -1))
    assert repr(solution).startswith("Solution('layer', solved, moved 0.0")
    assert repr(solution).endswith(f"of the weights' norm, local loss {first} -> {last})")
    axes = solution.plot(Figure().subplots())
    assert axes.lines[0].get_ydata().tolist() == solution.losses.tolist() and axes.lines[0].get_label() == "layer"
    bare = FixedPointIteration(3).solve(problem)
    assert "local loss" not in repr(bare)
    with pytest.raises(UserError, match="no losses were recorded; solve with recording=Recording.CURVE"):
        bare.plot()
