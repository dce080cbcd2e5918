import copy
import weakref

import pytest
import torch
from torch import nn

from locoprop_lightning.errors import UserError
from locoprop_lightning.optimizers import TensorFlowRMSprop
from locoprop_lightning.solvers import GradientDescent, InnerOptimizer, Recording, Status
from tests.support import Stateful, augmented, close, flat, joined, replaced, same

OPTIMIZERS = {
    "adam": lambda p: torch.optim.Adam(p, lr=1e-3),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=1e-4, momentum=0.5, nesterov=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.5),
    "tensorflow_rmsprop": lambda p: TensorFlowRMSprop(p, lr=1e-3, momentum=0.5, eps=1e-5),
}
every_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
both_losses = pytest.mark.parametrize("transfer", ["identity", "tanh"])
both_gradients = pytest.mark.parametrize("proximal", [True, False])
both_schedules = pytest.mark.parametrize("schedule", ["constant", "published"])


def batches(make_problem, transfer, number=3):
    """The same layer on different rows."""
    return [make_problem(transfer, lambda_a=20.0, seed=seed) for seed in range(number)]


def gradient(problem, v, proximal):
    """By the formula."""
    y = augmented(problem)
    f, a = problem.transfer.f, problem.pre_activation
    return (f(a + y @ v.T) - problem.target).T @ y + (problem.lambda_r * v if proximal else 0)


def by_hand(problems, make, iterations, proximal, published=False, rates=None):
    """One optimizer over all problems, each from displacement zero."""
    v = nn.Parameter(problems[0].zeros())
    optimizer = make([v])
    rates = rates or [optimizer.param_groups[0]["lr"]] * len(problems)
    found = []
    for problem, rate in zip(problems, rates, strict=True):
        v.data.zero_()
        for k in range(iterations):
            optimizer.param_groups[0]["lr"] = rate * (max(1 - k / iterations, 0.25) if published else 1.0)
            v.grad = gradient(problem, v.detach(), proximal)
            optimizer.step()
        found.append(v.detach().clone())
    return found


@both_losses
@both_gradients
@both_schedules
def test_sgd_is_gradient_descent(make_problem, transfer, proximal, schedule):
    problem = make_problem(transfer)
    for iterations in (1, 2, 7):
        expected = GradientDescent(iterations, 0.01, proximal, schedule).solve(problem, recording=Recording.CURVE)
        make = InnerOptimizer(lambda p: torch.optim.SGD(p, lr=0.01), iterations, proximal, schedule=schedule)
        solver = Stateful(make)
        for _ in range(2):  # it has no state
            solution = solver.solve(problem, Recording.CURVE)
            close(joined(solution, problem), joined(expected, problem), 1e-12)
            close(solution.losses, expected.losses, 1e-12)
            assert solution.status is expected.status is Status.SOLVED


@every_optimizer
@both_losses
@both_gradients
@both_schedules
def test_state_goes_on_from_batch_to_batch(make_problem, optimizer, transfer, proximal, schedule):
    problems = batches(make_problem, transfer)
    solver = Stateful(InnerOptimizer(optimizer, 3, proximal, schedule=schedule))
    expected = by_hand(problems, optimizer, 3, proximal, schedule == "published")
    for problem, v in zip(problems, expected, strict=True):
        solution = solver.solve(problem)
        assert solution.status is Status.SOLVED
        close(joined(solution, problem), v, 1e-11)


@every_optimizer
def test_without_persistence_each_batch_starts_anew(make_problem, optimizer):
    problems = batches(make_problem, "tanh")
    solver = Stateful(InnerOptimizer(optimizer, 3, persistent=False))
    for problem in problems:
        close(joined(solver.solve(problem), problem), by_hand([problem], optimizer, 3, False)[0], 1e-11)
    assert not flat(solver.states)


def test_without_persistence_the_state_of_a_checkpoint_is_not_used(make_problem):
    first, second = batches(make_problem, "tanh", 2)
    saved = Stateful(InnerOptimizer(OPTIMIZERS["adam"], 3))
    saved.solve(first)
    solver = saved.resumed(InnerOptimizer(OPTIMIZERS["adam"], 3, persistent=False))
    close(joined(solver.solve(second), second), by_hand([second], OPTIMIZERS["adam"], 3, False)[0], 1e-11)


@every_optimizer
@both_losses
def test_resumes_bit_for_bit(make_problem, optimizer, transfer):
    problems = batches(make_problem, transfer, 4)
    whole, part = (Stateful(InnerOptimizer(optimizer, 3, schedule="published")) for _ in range(2))
    expected = [whole.solve(problem) for problem in problems]
    for problem in problems[:2]:
        part.solve(problem)
    resumed = part.resumed(InnerOptimizer(optimizer, 3, schedule="published"))
    for problem, solution in zip(problems[2:], expected[2:], strict=True):
        again = resumed.solve(problem)
        assert torch.equal(again.weight, solution.weight) and torch.equal(again.bias, solution.bias)
    assert same(whole.states, resumed.states)


def test_what_was_learnt_is_in_the_state_alone(make_problem):
    """A solver that has solved other batches begins anew with a new state."""
    first, second = batches(make_problem, "tanh", 2)
    solver = Stateful(InnerOptimizer(OPTIMIZERS["adam"], 3))
    solver.solve(first)
    solver.states = {}
    close(joined(solver.solve(second), second), by_hand([second], OPTIMIZERS["adam"], 3, False)[0], 1e-11)


@pytest.mark.parametrize("name", ["adam", "tensorflow_rmsprop"])
def test_an_edited_rate_holds_on_load(make_problem, name):
    problems, optimizer = batches(make_problem, "tanh", 2), OPTIMIZERS[name]

    def slower(p):
        made = optimizer(p)
        made.param_groups[0]["lr"] = 1e-4
        return made

    saved = Stateful(InnerOptimizer(optimizer, 3))
    saved.solve(problems[0])
    solver = saved.resumed(InnerOptimizer(slower, 3))
    v = joined(solver.solve(problems[1]), problems[1])
    close(v, by_hand(problems, optimizer, 3, False, rates=[1e-3, 1e-4])[1], 1e-11)


@every_optimizer
@pytest.mark.parametrize("seen", [0, 2], ids=["at_the_start", "later"])
def test_a_refused_problem_leaves_the_state(make_problem, optimizer, seen):
    problems, bad = batches(make_problem, "tanh", 4), make_problem("tanh")
    bad.direction[2, 1] = torch.nan
    solver, spared = (Stateful(InnerOptimizer(optimizer, 3)) for _ in range(2))
    for problem in problems[:seen]:
        for s in (solver, spared):
            s.solve(problem)
    before = copy.deepcopy(solver.states)
    for _ in range(2):
        assert solver.solve(bad).status is Status.NONFINITE
        assert same(solver.states.get("layer", {}), before.get("layer", {}))
    for problem in problems[seen:]:
        got, expected = (s.solve(problem) for s in (solver, spared))
        assert got.status is Status.SOLVED and torch.equal(got.weight, expected.weight)


def test_is_judged_by_finiteness_alone(make_problem):
    """A large momentum would have the guard refuse every later batch, and never decay."""
    solver = Stateful(InnerOptimizer(lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.5), 3))
    assert solver.solve(make_problem(lambda_a=20000.0)).status is Status.SOLVED
    assert solver.solve(make_problem(lambda_a=1.0)).status is Status.SOLVED


def test_layers_have_their_own_state(make_problem):
    a, b = make_problem(lambda_a=20.0, name="a"), make_problem(lambda_a=20.0, name="b", d_in=7, seed=1)
    solver = Stateful(InnerOptimizer(OPTIMIZERS["adam"], 3))
    for _ in range(2):
        found = [joined(solver.solve(p), p) for p in (a, b)]
    for v, problem in zip(found, (a, b), strict=True):
        close(v, by_hand([problem, problem], OPTIMIZERS["adam"], 3, False)[1], 1e-11)


def test_lbfgs_is_refused(make_problem):
    solver = InnerOptimizer(lambda p: torch.optim.LBFGS(p))
    for _ in range(2):
        with pytest.raises(UserError, match="LBFGS.* needs a closure"):
            solver.solve(make_problem())


def test_arguments():
    with pytest.raises(UserError, match=r"InnerOptimizer\(iterations=-1\): must be at least 1"):
        InnerOptimizer(OPTIMIZERS["adam"], -1)
    with pytest.raises(UserError, match=r"InnerOptimizer\(schedule='linear'\): take one of constant, published"):
        InnerOptimizer(OPTIMIZERS["adam"], schedule="linear")


def test_another_optimizer_starts_anew(make_problem):
    before, problem = make_problem(seed=0), make_problem(seed=1)
    adam = Stateful(InnerOptimizer(lambda p: torch.optim.Adam(p, lr=1e-3), 3))
    adam.solve(before)
    make = lambda: InnerOptimizer(lambda p: torch.optim.RMSprop(p, lr=1e-3), 3)  # noqa: E731
    resumed = adam.resumed(make())
    assert torch.equal(resumed.solve(problem).weight, make().solve(problem).weight)


@every_optimizer
@pytest.mark.parametrize("persistent", [True, False])
@pytest.mark.parametrize("bad", [False, True])
def test_nothing_of_a_finished_solve_hangs_on_the_solver(make_problem, optimizer, persistent, bad):
    """Its state of a layer is as large as the weights; one that is not kept is freed."""
    made = []

    def watched(p):
        made.append(weakref.ref(p[0]))
        return optimizer(p)

    solver, problem = Stateful(InnerOptimizer(watched, 3, persistent=persistent)), make_problem("tanh")
    if bad:
        problem = replaced(problem, direction=problem.direction * torch.nan)
    before = dict(vars(solver.solver))
    for recording in Recording:
        solver.solve(problem, recording)
    assert vars(solver.solver) == before and not any(isinstance(x, torch.Tensor) for x in before.values())
    assert len(made) == 3 and all(parameter() is None for parameter in made)
    assert bool(solver.states["layer"]) == (persistent and not bad)
