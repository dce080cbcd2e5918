"""What every solver promises, on every kind of problem that it accepts."""

import copy
import importlib
import io
import pkgutil

import pytest
import torch

from locoprop_lightning import solvers
from locoprop_lightning.errors import UserError
from locoprop_lightning.optimizers import TensorFlowRMSprop
from locoprop_lightning.solvers import (
    AndersonAcceleration,
    ClosedForm,
    ConjugateGradient,
    FixedPointIteration,
    GradientDescent,
    InnerOptimizer,
    IterativeSolver,
    LocalSolver,
    Majorization,
    Recording,
    Status,
)
from tests.support import KEPT, joined

ITERATIVE = {
    "fpi": FixedPointIteration,
    "anderson": AndersonAcceleration,
    "anderson_plain": lambda t: AndersonAcceleration(t, safeguard=False),
    "published": GradientDescent,
    "corrected": lambda t: GradientDescent(t, proximal=True, schedule="published"),
    "conjugate_gradient": ConjugateGradient,
    "majorization": Majorization,
    "majorization_nesterov": lambda t: Majorization(t, "nesterov"),
    "majorization_kept": lambda t: Majorization(t, **KEPT),
    "majorization_refreshed": lambda t: Majorization(t, refresh_every=3, warmup=0),
    "inner_sgd": lambda t: InnerOptimizer(lambda p: torch.optim.SGD(p, lr=1e-4, momentum=0.5), t),
    "inner_adam": lambda t: InnerOptimizer(lambda p: torch.optim.Adam(p, lr=1e-4), t, proximal=True),
    "inner_rmsprop": lambda t: InnerOptimizer(lambda p: TensorFlowRMSprop(p, lr=1e-4, momentum=0.5), t),
    "inner_anew": lambda t: InnerOptimizer(lambda p: torch.optim.Adam(p, lr=1e-4), t, persistent=False),
}
DIRECT = {
    "closed_form": ClosedForm,
    "closed_form_kept": lambda: ClosedForm(**KEPT),
    "closed_form_average": lambda: ClosedForm(average=0.9),
    "closed_form_refreshed": lambda: ClosedForm(refresh_every=3, warmup=0),
}
EVERY = {**{name: lambda make=make: make(10) for name, make in ITERATIVE.items()}, **DIRECT}
# J need not fall where the proximal term is left out, nor with an optimizer that knows nothing of J.
PROMISED = {name for name in EVERY if name != "published" and not name.startswith("inner")}
MONOTONE = {"fpi", "corrected", "conjugate_gradient", "majorization"}  # lambda_r is above lambda_max(C) here

PROBLEMS = {
    "tall": dict(n=12, d_in=5),
    "wide": dict(n=4, d_in=13),
    "no_bias": dict(n=12, d_in=5, bias=False),
    "tanh": dict(transfer="tanh", n=12, d_in=5),
    "tanh_wide": dict(transfer="tanh", n=4, d_in=13),
    "softmax": dict(transfer="softmax", n=12, d_in=5),
}
DTYPES = {"float64": torch.float64, "float32": torch.float32}

KEEP_MOMENTA = {"inner_sgd", "inner_adam", "inner_rmsprop"}
SQUARED_ONLY = {"conjugate_gradient", *DIRECT}
MATCHING = ("tanh", "tanh_wide", "softmax")


def pairs(names):
    """Each solver with each kind of problem that it takes."""
    return [(n, k) for n in names for k in PROBLEMS if not (n in SQUARED_ONLY and k in MATCHING)]


every_solver = pytest.mark.parametrize("name", EVERY)
every_pair = pytest.mark.parametrize(("name", "kind"), pairs(EVERY))
iterative_pair = pytest.mark.parametrize(("name", "kind"), pairs(ITERATIVE))
both_dtypes = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)


@pytest.fixture
def problem_for(make_problem):
    """Makes problems of a kind."""

    def make(solver, kind, **arguments):
        problem = make_problem(**{"lambda_a": 2.0, "lambda_r": 100.0, **PROBLEMS[kind], **arguments})
        solver.check(problem)
        return problem

    return make


@pytest.mark.parametrize("name", SQUARED_ONLY)
def test_a_matching_loss_is_refused_by_name(make_problem, name):
    make = EVERY[name]
    for kind in MATCHING:
        with pytest.raises(UserError, match="'layer'"):
            make().solve(make_problem(**PROBLEMS[kind]))


def unchanged(solution, problem):
    same_bias = problem.bias is None or torch.equal(solution.bias, problem.bias)
    return torch.equal(solution.weight, problem.weight) and same_bias


def equal(a, b):
    return torch.equal(a.weight, b.weight) and (a.bias is None or torch.equal(a.bias, b.bias)) and a.status is b.status


def numbers(state):
    """All tensors and numbers in a state."""
    if isinstance(state, dict):
        return [x for value in state.values() for x in numbers(value)]
    return [torch.as_tensor(state)] if isinstance(state, (torch.Tensor, int, float)) else []


def finite(state):
    return all(x.isfinite().all() for x in numbers(state))


def tensors(problem):
    found = dict(
        rows=problem.operator.rows,
        pre_activation=problem.pre_activation,
        direction=problem.direction,
        weight=problem.weight,
        first_gradient=problem.first_gradient(),
        gram=problem.gram(),
        lambda_r=torch.as_tensor(problem.lambda_r),
    )
    return found if problem.bias is None else found | {"bias": problem.bias}


def through_a_file(solver):
    file = io.BytesIO()
    torch.save(solver.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def subclasses(cls):
    return {cls} | {below for child in cls.__subclasses__() for below in subclasses(child)}


def test_no_solver_is_missing():
    """Every solver of the package that says how it runs or steps is exported, and is in the lists above."""
    for module in pkgutil.iter_modules(solvers.__path__):
        importlib.import_module(f"{solvers.__name__}.{module.name}")
    concrete = set()
    for solver in subclasses(LocalSolver):
        runs = solver.run not in (LocalSolver.run, IterativeSolver.run)
        steps = issubclass(solver, IterativeSolver) and solver.step is not IterativeSolver.step
        if solver.__module__.startswith(f"{solvers.__name__}.") and (runs or steps):
            concrete.add(solver)
    assert concrete <= {getattr(solvers, name) for name in solvers.__all__}
    assert concrete == {type(make()) for make in EVERY.values()}


@iterative_pair
@both_dtypes
def test_iterations(problem_for, name, kind, dtype):
    tolerance = dict.fromkeys(("rtol", "atol"), 1e-9 if dtype == torch.float64 else 1e-4)
    for iterations in (1, 2, 10):
        solver = ITERATIVE[name](iterations)
        problem = problem_for(solver, kind, dtype=dtype)
        plain, recorded = solver.solve(problem), ITERATIVE[name](iterations).solve(problem, record=Recording.CURVE)
        assert recorded.losses.shape == (iterations + 1,) and plain.losses is None
        for solution in (plain, recorded):
            assert solution.status is Status.SOLVED
            assert solution.weight.dtype == dtype and solution.weight.shape == problem.weight.shape
            assert (solution.bias is None) == (problem.bias is None)
            v = joined(solution, problem)
            if name in PROMISED:
                assert problem.value(v) < 0
            torch.testing.assert_close(recorded.losses[-1], problem.loss(v), **tolerance)
            if name in MONOTONE:
                rounding = 10 * torch.finfo(dtype).eps * recorded.losses[0]
                assert (recorded.losses.diff() <= rounding).all()
        torch.testing.assert_close(plain.weight, recorded.weight, **tolerance)
        torch.testing.assert_close(recorded.losses[0], problem.first_loss(), **tolerance)


@pytest.mark.parametrize(("name", "kind"), pairs(DIRECT))
@both_dtypes
def test_direct(problem_for, name, kind, dtype):
    solver = DIRECT[name]()
    problem = problem_for(solver, kind, dtype=dtype)
    solution = solver.solve(problem, record=Recording.CURVE)
    assert solution.status is Status.SOLVED and solution.losses.shape == (2,)
    assert solution.weight.dtype == dtype
    v = joined(solution, problem)
    assert problem.value(v) < 0
    assert problem.gradient(v).norm() < (1e-10 if dtype == torch.float64 else 1e-3) * problem.first_gradient().norm()


@every_pair
@pytest.mark.parametrize("seen", [0, 2], ids=["at_the_start", "later"])
def test_not_a_number(problem_for, name, kind, seen):
    for dtype in DTYPES.values():
        for where in ("rows", "direction"):
            solver = EVERY[name]()
            good, bad = (problem_for(solver, kind, dtype=dtype) for _ in range(2))
            if where == "rows":
                bad.operator.rows[1, 2] = torch.nan
                bad.pre_activation[1] = torch.nan
            else:
                bad.direction[2, 1] = torch.nan
            for _ in range(seen):
                assert solver.solve(good).status is Status.SOLVED
            assert solver.solve(bad).status is Status.NONFINITE
            assert finite(solver.state)
            solution = solver.solve(good)
            assert solution.status in (Status.SOLVED, Status.RETRIED)
            assert name not in PROMISED or good.value(joined(solution, good)) < 0
            assert finite(solver.state)


@every_pair
def test_zero_direction_or_rows(problem_for, name, kind):
    for dtype in DTYPES.values():
        for scale in (1.0, 0.0):
            solver = EVERY[name]()
            problem = problem_for(solver, kind, dtype=dtype, scale=scale)
            problem.direction.zero_()
            solution = solver.solve(problem)
            assert solution.status is Status.SOLVED and unchanged(solution, problem)
            assert finite(solver.state)
            assert solver.solve(problem_for(solver, kind, dtype=dtype)).status in (Status.SOLVED, Status.RETRIED)


@every_pair
def test_inputs_are_not_changed(problem_for, name, kind):
    solver = EVERY[name]()
    problem = problem_for(solver, kind)
    before = {key: x.clone() for key, x in tensors(problem).items()}
    for record in (False, True, False):
        solver.solve(problem, record=record).weight.add_(1)  # what is handed out is nobody else's
    for key, x in tensors(problem).items():
        assert torch.equal(x, before[key]), key
    settings = vars(EVERY[name]())
    for key, value in vars(solver).items():  # hyper-parameters stay
        if isinstance(value, int | float | str):
            assert value == settings[key]


@pytest.mark.parametrize(("name", "kind"), [p for p in pairs(EVERY) if p[1] in ("tall", "tanh", "softmax", "no_bias")])
def test_batches_of_different_size(problem_for, name, kind):
    solver = EVERY[name]()
    for n in (32, 32, 32, 19, 32, 3, 1, 32):
        problem = problem_for(solver, kind, n=32)
        problem.operator.rows, problem._pre_activation = problem.operator.rows[:n], problem.pre_activation[:n]
        problem._direction = problem.direction[:n]
        solution = solver.solve(problem)
        assert solution.status in (Status.SOLVED, Status.RETRIED)
        assert name not in PROMISED or problem.value(joined(solution, problem)) < 0
    assert finite(solver.state)


@every_pair
def test_state_goes_through_a_file(problem_for, name, kind):
    for dtype in DTYPES.values():
        solver = EVERY[name]()
        problems = [problem_for(solver, kind, dtype=dtype, seed=seed) for seed in range(6)]
        for problem in problems[:2]:
            solver.solve(problem)
        resumed = EVERY[name]()
        resumed.load_state_dict(through_a_file(solver))
        for problem in problems[2:]:
            assert equal(resumed.solve(copy.deepcopy(problem)), solver.solve(problem))
        for a, b in zip(numbers(resumed.state), numbers(solver.state), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize(("name", "kind"), [p for p in pairs(EVERY) if p[0] not in KEEP_MOMENTA])
def test_a_problem_given_twice_is_solved_alike(problem_for, name, kind):
    """What one solve leaves in the problem, and in a solver that keeps nothing, does not change the next."""
    solver = EVERY[name]()
    problem = problem_for(solver, kind)
    first, second, fresh = solver.solve(problem), solver.solve(problem), EVERY[name]().solve(problem_for(solver, kind))
    for solution in (second, fresh):
        torch.testing.assert_close(solution.weight, first.weight, rtol=1e-11, atol=1e-11)


@every_solver
@both_dtypes
def test_damping_may_be_a_tensor(problem_for, name, dtype):
    """Relative damping is one, on the device."""
    tolerance = dict.fromkeys(("rtol", "atol"), 1e-11 if dtype == torch.float64 else 1e-5)
    for kind in ("tall", "wide"):
        for record in (False, True):
            solver = EVERY[name]()
            problem = problem_for(solver, kind, dtype=dtype, lambda_r=torch.tensor(100.0, dtype=dtype))
            solution = solver.solve(problem, record)
            expected = EVERY[name]().solve(problem_for(solver, kind, dtype=dtype), record)
            assert solution.status is Status.SOLVED and solution.weight.dtype == dtype
            torch.testing.assert_close(solution.weight, expected.weight, **tolerance)


@iterative_pair
def test_curves_of_first_and_last_alone(problem_for, name, kind):
    solver = ITERATIVE[name](10)
    problem = problem_for(solver, kind)
    whole = solver.solve(problem, record=Recording.CURVE)
    again = ITERATIVE[name](10)
    again.whole_curves = False
    ends = again.solve(problem, record=Recording.CURVE)
    assert ends.losses.shape == (2,) and equal(ends, whole)
    torch.testing.assert_close(ends.losses, whole.losses[[0, -1]], rtol=1e-12, atol=1e-12)
