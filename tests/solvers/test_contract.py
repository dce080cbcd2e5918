"""What every solver promises, on every kind of problem that it accepts."""

import copy
import importlib
import pkgutil

import pytest
import torch

from locoprop_lightning import solvers
from locoprop_lightning.errors import UserError
from locoprop_lightning.solvers import IterativeSolver, LocalSolver, Recording, Status
from tests import catalogue
from tests.catalogue import DIRECT, EVERY, ITERATIVE, KEEP_MOMENTA, KINDS, MONOTONE, PROMISED, SQUARED_ONLY, pairs
from tests.support import Stateful, finite, joined, same, with_rows

DTYPES = {"float64": torch.float64, "float32": torch.float32}
MATCHING = [kind for kind in KINDS if KINDS[kind].transfer != "identity"]
CONVERGED = (Status.SOLVED, Status.RETRIED)

every_solver = pytest.mark.parametrize("name", EVERY)
every_pair = pytest.mark.parametrize(("name", "kind"), pairs(EVERY))
iterative_pair = pytest.mark.parametrize(("name", "kind"), pairs(ITERATIVE))
both_dtypes = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)


def unchanged(solution, problem):
    same_bias = problem.bias is None or torch.equal(solution.bias, problem.bias)
    return torch.equal(solution.weight, problem.weight) and same_bias


def equal(a, b):
    return torch.equal(a.weight, b.weight) and (a.bias is None or torch.equal(a.bias, b.bias)) and a.status is b.status


def tensors(problem):
    """Everything that a problem is made of, and what it has made."""
    operator = problem.operator
    found = dict(
        inputs=operator.inputs if hasattr(operator, "inputs") else operator.rows,
        pre_activation=problem.pre_activation,
        direction=problem.direction,
        weight=problem.weight,
        first_gradient=problem.first_gradient(),
        gram=problem.gram(),
        lambda_r=torch.as_tensor(problem.lambda_r),
    )
    return found if problem.bias is None else found | {"bias": problem.bias}


def attributes(x):
    """All that hangs on an object of the package, by path."""
    found = {}
    for name, value in vars(x).items():
        found[name] = value
        if type(value).__module__.startswith("locoprop_lightning"):
            found |= {f"{name}.{below}": y for below, y in attributes(value).items()}
    return found


def spoiled(kind, dtype, where):
    """A problem with something that is not a number in its rows or in its direction."""
    layer, inputs, direction = catalogue.draw(kind, dtype=dtype)
    (inputs if where == "rows" else direction)[1].flatten()[2] = torch.nan
    return catalogue.problem_of(kind, layer, inputs, direction, 2.0, 100.0)


def subclasses(cls):
    return {cls} | {below for child in cls.__subclasses__() for below in subclasses(child)}


def test_no_solver_is_missing():
    """Every solver of the package that says how it runs or steps is exported, and is in the catalogue."""
    for module in pkgutil.iter_modules(solvers.__path__):
        importlib.import_module(f"{solvers.__name__}.{module.name}")
    concrete = set()
    for solver in subclasses(LocalSolver):
        runs = solver.run not in (LocalSolver.run, IterativeSolver.run)
        steps = issubclass(solver, IterativeSolver) and solver.step is not IterativeSolver.step
        if solver.__module__.startswith(f"{solvers.__name__}.") and (runs or steps):
            concrete.add(solver)
    assert concrete <= {getattr(solvers, name) for name in solvers.__all__}
    assert concrete == {type(catalogue.solver(name)) for name in EVERY}


def test_sets_of_the_catalogue_name_its_solvers():
    for names in (SQUARED_ONLY, PROMISED, MONOTONE, KEEP_MOMENTA, catalogue.AFFINE):
        assert set(names) <= set(EVERY)
    assert {name for name in EVERY if catalogue.solver(name).squared_only} == SQUARED_ONLY


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_the_catalogue_are_below_lambda_r(kind):
    problem = catalogue.problem(kind)
    assert torch.linalg.eigvalsh(problem.gram()).max() < problem.lambda_r


@pytest.mark.parametrize("name", sorted(SQUARED_ONLY))
def test_a_matching_loss_is_refused_by_name(name):
    for kind in MATCHING:
        with pytest.raises(UserError, match="'layer'"):
            catalogue.solver(name).solve(catalogue.problem(kind))


@pytest.mark.parametrize(("name", "kind"), pairs(EVERY))
def test_all_others_are_taken(name, kind):
    catalogue.solver(name).check(catalogue.problem(kind))


@iterative_pair
@both_dtypes
def test_iterations(name, kind, dtype):
    tolerance = dict.fromkeys(("rtol", "atol"), 1e-9 if dtype == torch.float64 else 1e-4)
    for iterations in (1, 2, 10):
        problem = catalogue.problem(kind, dtype=dtype)
        plain = catalogue.solver(name, iterations).solve(problem)
        recorded = catalogue.solver(name, iterations).solve(problem, recording=Recording.CURVE)
        assert recorded.losses.shape == (iterations + 1,) and plain.losses is None
        for solution in (plain, recorded):
            assert solution.status is Status.SOLVED and solution.problem is problem
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
def test_direct(name, kind, dtype):
    problem = catalogue.problem(kind, dtype=dtype)
    solution = catalogue.solver(name).solve(problem, recording=Recording.CURVE)
    assert solution.status is Status.SOLVED and solution.losses.shape == (2,)
    assert solution.weight.dtype == dtype
    v = joined(solution, problem)
    assert problem.value(v) < 0
    assert problem.gradient(v).norm() < (1e-10 if dtype == torch.float64 else 1e-3) * problem.first_gradient().norm()


@every_pair
@pytest.mark.parametrize("seen", [0, 2], ids=["at_the_start", "later"])
def test_not_a_number(name, kind, seen):
    for dtype in DTYPES.values():
        for where in ("rows", "direction"):
            solver = Stateful(catalogue.solver(name))
            good, bad = catalogue.problem(kind, dtype=dtype), spoiled(kind, dtype, where)
            for _ in range(seen):
                assert solver.solve(good).status is Status.SOLVED
            assert solver.solve(bad).status is Status.NONFINITE
            assert finite(solver.states)
            solution = solver.solve(good)
            assert solution.status in CONVERGED
            assert name not in PROMISED or good.value(joined(solution, good)) < 0
            assert finite(solver.states)


@every_pair
def test_zero_direction_or_rows(name, kind):
    for dtype in DTYPES.values():
        for scale in (1.0, 0.0):
            solver = Stateful(catalogue.solver(name))
            layer, inputs, direction = catalogue.draw(kind, dtype=dtype, scale=scale)
            problem = catalogue.problem_of(kind, layer, inputs, torch.zeros_like(direction), 2.0, 100.0)
            solution = solver.solve(problem)
            assert solution.status is Status.SOLVED and unchanged(solution, problem)
            assert finite(solver.states)
            assert solver.solve(catalogue.problem(kind, dtype=dtype)).status in CONVERGED


@every_pair
def test_inputs_and_settings_are_not_changed(name, kind):
    """Nor is a solver's own: what one solve leaves lies in the state, and what is handed out is nobody else's."""
    solver, twin = (Stateful(catalogue.solver(name)) for _ in range(2))
    problem, other = catalogue.problem(kind), catalogue.problem(kind)
    before = {key: x.clone() for key, x in tensors(problem).items()}
    settings = attributes(solver.solver)
    for recording in (Recording.NOTHING, Recording.CURVE, Recording.ENDS, Recording.NOTHING):
        solution, expected = solver.solve(problem, recording), twin.solve(other, recording)
        assert equal(solution, expected)
        solution.displacement.add_(1)
        solution.weight.add_(1)
    for key, x in tensors(problem).items():
        assert torch.equal(x, before[key]), key
    after = attributes(solver.solver)
    assert after.keys() == settings.keys() and all(after[key] is settings[key] for key in after)
    assert not any(isinstance(x, torch.Tensor) for x in after.values())


FEW = [pair for pair in pairs(EVERY) if pair[1] in ("tall", "tanh", "softmax", "no_bias", "convolution")]


@pytest.mark.parametrize(("name", "kind"), FEW)
def test_batches_of_different_size(name, kind):
    solver = Stateful(catalogue.solver(name))
    for n in (32, 32, 32, 19, 32, 3, 1, 32):
        whole = catalogue.problem(kind, n=8 if kind == "convolution" else 32)
        assert whole.n == 32
        problem = with_rows(whole, torch.arange(n))
        solution = solver.solve(problem)
        assert solution.status in CONVERGED
        assert name not in PROMISED or problem.value(joined(solution, problem)) < 0
    assert finite(solver.states)


@every_pair
def test_state_goes_through_a_file(name, kind):
    for dtype in DTYPES.values():
        solver = Stateful(catalogue.solver(name))
        problems = [catalogue.problem(kind, dtype=dtype, seed=seed) for seed in range(6)]
        for problem in problems[:2]:
            solver.solve(problem)
        resumed = solver.resumed(catalogue.solver(name))
        for problem in problems[2:]:
            assert equal(resumed.solve(copy.deepcopy(problem)), solver.solve(problem))
        assert same(resumed.states, solver.states)


@pytest.mark.parametrize(("name", "kind"), [p for p in pairs(EVERY) if p[0] not in KEEP_MOMENTA])
def test_a_problem_given_twice_is_solved_alike(name, kind):
    """What one solve leaves in the problem, and in the state of a solver that learns nothing, changes no other."""
    solver, problem = Stateful(catalogue.solver(name)), catalogue.problem(kind)
    first, second = solver.solve(problem), solver.solve(problem)
    fresh = catalogue.solver(name).solve(catalogue.problem(kind))
    for solution in (second, fresh):
        torch.testing.assert_close(solution.weight, first.weight, rtol=1e-11, atol=1e-11)


@every_pair
def test_without_a_state_every_solve_is_the_first(name, kind):
    solver = catalogue.solver(name)
    first, second = (solver.solve(catalogue.problem(kind)) for _ in range(2))
    assert equal(first, second)


@every_solver
@both_dtypes
def test_damping_may_be_a_tensor(name, dtype):
    """Relative damping is one, on the device."""
    tolerance = dict.fromkeys(("rtol", "atol"), 1e-11 if dtype == torch.float64 else 1e-5)
    for kind in ("tall", "wide"):
        for recording in (Recording.NOTHING, Recording.CURVE):
            problem = catalogue.problem(kind, dtype=dtype, lambda_r=torch.tensor(100.0, dtype=dtype))
            solution = catalogue.solver(name).solve(problem, recording=recording)
            expected = catalogue.solver(name).solve(catalogue.problem(kind, dtype=dtype), recording=recording)
            assert solution.status is Status.SOLVED and solution.weight.dtype == dtype
            torch.testing.assert_close(solution.weight, expected.weight, **tolerance)


@every_pair
def test_ends_are_those_of_the_curve(name, kind):
    problem = catalogue.problem(kind)
    curve, ends = (catalogue.solver(name).solve(problem, recording=r) for r in (Recording.CURVE, Recording.ENDS))
    assert ends.losses.shape == (2,) and equal(ends, curve)
    torch.testing.assert_close(ends.losses, curve.losses[[0, -1]], rtol=1e-12, atol=1e-12)
