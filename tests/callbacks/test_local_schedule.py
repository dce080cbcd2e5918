"""Lambdas and iterations by step."""

import pytest
import torch

from locoprop_lightning import BackpropModule, LocoPropModule, UserError
from locoprop_lightning.callbacks import LocalSchedule
from locoprop_lightning.cli import main
from locoprop_lightning.data import Digits
from locoprop_lightning.networks import MLP
from locoprop_lightning.observer import SolveObserver
from locoprop_lightning.solvers import ClosedForm, ConjugateGradient, FixedPointIteration, GradientDescent, Recording
from locoprop_lightning.tasks import Classification
from tests.support import ROOT, quiet_trainer, same


class Watch(SolveObserver):
    """Takes down the lambdas of the problems, and how many iterations there were."""

    def __init__(self):
        self.seen = {}

    def recording(self, trainer):
        return Recording.CURVE

    def on_solved(self, trainer, problems, reports, counts):
        self.seen[trainer.global_step] = {
            name: (p.lambda_a, float(p.lambda_r), len(reports[name].losses) - 1) for name, p in problems.items()
        }


def module(solver=None, **settings):
    torch.manual_seed(0)
    solver = solver or FixedPointIteration(2)
    return LocoPropModule(MLP(64, 16, 1), Classification(), solver, **{"lambda_a": 30.0, "lambda_r": 5000.0} | settings)


def fit(schedule, own, max_steps=6, max_epochs=None, **settings):
    watch = Watch()
    callbacks = [schedule, watch] if schedule else [watch]
    trainer = quiet_trainer(callbacks=callbacks, max_steps=max_steps, max_epochs=max_epochs)
    trainer.fit(own, Digits(batch_size=100, seed=0), weights_only=True, **settings)
    return watch.seen, trainer


@pytest.mark.parametrize(
    ("between", "middle"), [("constant", (1.0, 3)), ("linear", (0.505, 6)), ("exponential", (0.1, 5))]
)
def test_values_between_steps(between, middle):
    schedule = LocalSchedule(lambda_a={0: 1, 2: 1, 6: 0.01}, iterations={0: 3, 2: 3, 6: 9}, between=between)
    ends = [(1.0, 1.0, 3), (0.01, 1.0, 9)]
    assert [tuple(schedule.at(step)) for step in (0, 2, 6, 9)] == [ends[0], ends[0], ends[1], ends[1]]
    factor, _, iterations = schedule.at(4)
    assert (pytest.approx(factor), iterations) == middle


def test_the_steps_of_a_fit_have_what_is_scheduled():
    schedule = LocalSchedule(lambda_a={0: 1, 2: 0.5}, lambda_r={0: 2, 4: 1}, iterations={0: 1, 3: 4})
    own = module(overrides={"3": {"lambda_a": 10}})
    seen, _ = fit(schedule, own)
    assert [seen[i]["1"] for i in (0, 1, 2, 3, 5)] == [
        (30.0, 10000.0, 1),
        (30.0, 10000.0, 1),
        (15.0, 10000.0, 1),
        (15.0, 10000.0, 4),
        (15.0, 5000.0, 4),
    ]
    assert seen[0]["3"][0] == 10.0 and seen[2]["3"][0] == 5.0
    assert own.solver.iterations == 2 and fit(None, own, 1)[0][0]["1"] == (30.0, 5000.0, 2)


def test_a_constant_schedule_is_that_setting():
    scheduled, plain = module(damping="relative"), module(FixedPointIteration(5), damping="relative", lambda_a=15.0)
    fit(LocalSchedule(lambda_a={0: 0.5}, iterations={0: 5}), scheduled)
    fit(None, plain)
    assert same(dict(scheduled.state_dict()), dict(plain.state_dict()))


def test_lengths_in_activations_are_scheduled_too():
    settings = {"objective": "squared", "step_length": "activations"}
    scheduled = module(ClosedForm(), lambda_a=0.2, **settings)
    plain = module(ClosedForm(), lambda_a=0.1, **settings)
    fit(LocalSchedule(lambda_a={0: 0.5}), scheduled)
    fit(None, plain)
    assert same(dict(scheduled.state_dict()), dict(plain.state_dict()))


def test_a_resumed_fit_has_the_schedule_of_the_whole(tmp_path):
    schedule = {
        "lambda_a": {0: 1, 25: 0.1},
        "lambda_r": {0: 1, 25: 3},
        "iterations": {0: 2, 25: 6},
        "between": "linear",
    }
    whole, part, resumed = module(), module(), module()
    fit(LocalSchedule(**schedule), whole, -1, 2)
    _, trainer = fit(LocalSchedule(**schedule), part, -1, 1)
    trainer.save_checkpoint(tmp_path / "part.ckpt")
    seen, _ = fit(LocalSchedule(**schedule), resumed, -1, 2, ckpt_path=tmp_path / "part.ckpt")
    assert list(seen) == list(range(15, 30)) and seen[19]["1"][2] == round(2 + 4 * 19 / 25)
    assert same(dict(whole.state_dict()), dict(resumed.state_dict()))


@pytest.mark.parametrize("solver", [ConjugateGradient, GradientDescent])
def test_every_solver_with_iterations_takes_them(solver):
    own = module(solver(3), objective="squared")
    fit(LocalSchedule(iterations={0: 1, 1: 5}), own, 2)
    assert own.solver.taking(7).iterations == 7 and own.solver.taking(None) is own.solver


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: LocalSchedule(lambda_a={}), r"LocalSchedule\(lambda_a=\{\}\): give values by step"),
        (lambda: LocalSchedule(lambda_a={0: -1}), r"lambda_a\[0\]=-1\): must be above 0"),
        (lambda: LocalSchedule(lambda_r={-1: 1}), "step of lambda_r=-1"),
        (lambda: LocalSchedule(iterations={0: 2.5}), r"iterations\[0\]=2.5\): must be a whole number"),
        (lambda: LocalSchedule(lambda_a=3), "LocalSchedule.lambda_a=3.: must be values by step"),
        (lambda: LocalSchedule(between="cubic"), "take one of constant, linear, exponential"),
        (
            lambda: fit(LocalSchedule(iterations={0: 2}), module(ClosedForm(), objective="squared")),
            "solver=ClosedForm: has no iterations to schedule; leave them out",
        ),
        (
            lambda: fit(LocalSchedule({0: 1}), BackpropModule(MLP(64, 16, 1), Classification(), torch.optim.Adam)),
            "LocalSchedule: BackpropModule has no lambdas; take it with LocoPropModule",
        ),
    ],
)
def test_what_is_refused(call, said):
    with pytest.raises(UserError, match=said):
        call()


def test_from_the_command_line(folder):
    config = str(ROOT / "configs" / "digits" / "locoprop_s_fpi.yaml")
    schedule = [
        "--trainer.callbacks",
        "locoprop_lightning.callbacks.LocalSchedule",
        "--trainer.callbacks.iterations",
        "{0: 2, 1: 4}",
    ]
    quiet = ["--trainer.logger=false", "--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]
    main(["fit", "--config", config, *schedule, *quiet, "--trainer.max_steps=2"])
    saved = torch.load(next(folder.rglob("step=2.ckpt")), weights_only=True)
    assert saved["settings"]["trainer.callbacks"].count("LocalSchedule") == 1
