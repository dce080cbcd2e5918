"""What all solvers have from their base: how layers are solved, tried again, and what is kept of a solve."""

import pytest
import torch

from locoprop_lightning.errors import UserError
from locoprop_lightning.solvers import ClosedForm, LocalSolver, Outcome, Recording, Status
from tests import catalogue
from tests.catalogue import EVERY
from tests.support import replaced

ENDINGS = {  # growth of the first attempt and of the second, None without one
    "solved": (-1.0, None, Status.SOLVED),
    "diverged": (1.0, None, Status.DIVERGED),
    "nonfinite": (torch.nan, None, Status.NONFINITE),
    "retried": (1.0, -1.0, Status.RETRIED),
    "retried_nonfinite": (torch.nan, -1.0, Status.RETRIED),
    "diverged_again": (torch.nan, 1.0, Status.DIVERGED),
    "nonfinite_again": (1.0, torch.nan, Status.NONFINITE),
}
every_ending = pytest.mark.parametrize(("first", "second", "status"), ENDINGS.values(), ids=ENDINGS)


class Scripted(LocalSolver):
    """Solves whose growth is given by the layer's name, and what it was asked to do."""

    def __init__(self, script):
        self.script = script
        self.calls = []

    def outcome(self, problem, growth, learnt):
        v = problem.zeros() + (1 if learnt == "first" else 2)
        return Outcome(v, v.new_tensor(growth), None, learnt)

    def run(self, problem, state, recording):
        self.calls.append(("run", problem.name, recording))
        return self.outcome(problem, self.script[problem.name][0], "first")

    def retry(self, problem, state, status, recording):
        self.calls.append(("retry", problem.name, status, recording))
        growth = self.script[problem.name][1]
        return None if growth is None else self.outcome(problem, growth, "second")

    def keep(self, state, outcome):
        self.calls.append(("keep", outcome.learnt))
        state["kept"] = outcome.learnt


@every_ending
@pytest.mark.parametrize("recording", Recording)
def test_attempts(make_problem, first, second, status, recording):
    solver, state = Scripted({"layer": (first, second)}), {}
    solution = solver.solve(make_problem(), state, recording)
    expected = [("run", "layer", recording)]
    if first != -1.0:
        expected.append(("retry", "layer", Status.DIVERGED if first == 1.0 else Status.NONFINITE, recording))
    last = "first" if second is None else "second"
    if status is not Status.NONFINITE:  # what is not finite is not kept
        expected.append(("keep", last))
    assert solver.calls == expected
    assert state == ({} if status is Status.NONFINITE else {"kept": last})
    assert solution.status is status
    assert (solution.displacement == (1 if last == "first" else 2)).all()


def test_layers_that_failed_alone_are_tried_again(make_problem):
    solver = Scripted({name: ending[:2] for name, ending in ENDINGS.items()})
    problems, states = {name: make_problem(name=name) for name in ENDINGS}, {name: {} for name in ENDINGS}
    groups, agreed = [], []

    def run_all(tasks):
        groups.append(list(tasks))
        return {name: task() for name, task in tasks.items()}

    def agree(flags):
        agreed.append(len(flags))
        return flags

    solutions = solver.solve_all(problems, states, Recording.ENDS, run_all, agree)
    failed = [name for name, ending in ENDINGS.items() if ending[0] != -1.0]
    again = [name for name, ending in ENDINGS.items() if ending[1] is not None]
    assert groups == [list(ENDINGS), failed] and agreed == [len(ENDINGS), len(again)]
    assert {name: solution.status for name, solution in solutions.items()} == {n: e[2] for n, e in ENDINGS.items()}
    assert all(solutions[name].problem is problems[name] for name in ENDINGS)
    kept = {name for name, state in states.items() if state}
    assert kept == {name for name, ending in ENDINGS.items() if ending[2] is not Status.NONFINITE}


def test_a_device_is_waited_for_once_where_nothing_failed(make_problem):
    solver, agreed = Scripted({"layer": (-1.0, None)}), []
    solver.solve_all({"layer": make_problem()}, {"layer": {}}, agree=lambda flags: agreed.append(len(flags)) or flags)
    assert agreed == [1]


def test_no_layers_are_solved():
    assert Scripted({}).solve_all({}, {}) == {}


def test_records_no_gradients(make_problem):
    class Asks(Scripted):
        def run(self, problem, state, recording):
            assert not torch.is_grad_enabled()
            assert not torch.backends.cudnn.allow_tf32
            return super().run(problem, state, recording)

    allowed = torch.backends.cudnn.allow_tf32
    with torch.enable_grad():
        Asks({"layer": (-1.0, None)}).solve(make_problem())
    assert torch.backends.cudnn.allow_tf32 is allowed


def test_a_refused_problem_is_not_begun(make_problem):
    class Refusing(Scripted):
        squared_only = True

    solver, state = Refusing({"layer": (-1.0, None)}), {}
    with pytest.raises(
        UserError, match="Refusing solves the squared loss only, but layer 'layer' matches through tanh"
    ):
        solver.solve(make_problem("tanh"), state)
    assert not solver.calls and not state
    assert solver.describe(make_problem("tanh")) == "Refusing"
    nameless = make_problem("tanh")
    nameless.name = ""
    with pytest.raises(UserError, match="but the problem matches through tanh"):
        solver.solve(nameless)


@pytest.mark.parametrize("name", EVERY)
def test_order_of_layers(make_problem, name):
    names, results = ["a", "b", "c"], []
    for order in (names, names[::-1]):
        solver, states = catalogue.solver(name, 5), {layer: {} for layer in names}
        for _ in range(3):
            problems = {n: make_problem(seed=names.index(n), name=n, lambda_r=40.0) for n in order}
            solutions = solver.solve_all(problems, states)
        results.append(solutions)
    assert all(torch.equal(results[0][layer].displacement, results[1][layer].displacement) for layer in names)


def test_solve_all_is_solve_for_each(make_problem):
    problems = {name: make_problem(seed=seed, name=name) for seed, name in enumerate("ab")}
    bad = replaced(problems["a"], direction=problems["a"].direction * torch.nan, name="bad")
    together = ClosedForm().solve_all(problems | {"bad": bad}, {name: {} for name in ("a", "b", "bad")})
    assert together["bad"].status is Status.NONFINITE
    for name, problem in problems.items():
        assert together[name].status is Status.SOLVED
        assert torch.equal(together[name].displacement, ClosedForm().solve(problem).displacement)
