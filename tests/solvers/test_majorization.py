import pytest
import torch
from torch.nn import functional

from locoprop_lightning.errors import UserError
from locoprop_lightning.local import LocalProblem, resolve_transfer
from locoprop_lightning.local import transfer as transfers
from locoprop_lightning.solvers import ClosedForm, Majorization, Recording, RightPreconditioner, Status
from tests.support import Stateful, augmented, close, joined, replaced, with_units

PROBLEMS = 200
KNOWN = [t for t in transfers.Transfer.__subclasses__() if t.__module__ == transfers.__name__]
EVERY = [*(t() for t in KNOWN), transfers.LeakyReLU(0.3), transfers.LeakyReLU(2.0), transfers.Softplus(3.0)]
every_transfer = pytest.mark.parametrize("transfer", EVERY, ids=str)

F = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softplus": functional.softplus,
    "softmax": lambda a: a.softmax(-1),
    "leaky_relu": functional.leaky_relu,
    "relu": torch.relu,
}


def newton(problem):
    """The minimiser of J by Newton's method, with autograd's Hessian and the norm of the gradient as merit."""
    f, y = F[problem.transfer.name], augmented(problem)
    target = f(problem.pre_activation) - problem.lambda_a * problem.direction

    def gradient(v):
        v = v.reshape(problem.shape)
        return ((f(problem.pre_activation + y @ v.T) - target).T @ y + problem.lambda_r * v).flatten()

    v = problem.zeros().flatten()
    for _ in range(100):
        g = gradient(v)
        if g.norm() < 1e-11:
            break
        step = torch.linalg.solve(torch.autograd.functional.jacobian(gradient, v), g)
        length = 1.0
        while gradient(v - length * step).norm() > (1 - 1e-4 * length) * g.norm() and length > 1e-6:
            length /= 2
        v = v - length * step
    assert gradient(v).norm() < 1e-10
    return v.reshape(problem.shape)


@every_transfer
def test_never_raises_j(make_problem, transfer):
    generator = torch.Generator().manual_seed(7)

    def between(low, high):
        return low + int(torch.randint(high - low + 1, (), generator=generator))

    def power(low, high):
        return 10.0 ** (low + (high - low) * torch.rand((), generator=generator).item())

    for seed in range(PROBLEMS):
        problem = make_problem(
            transfer,
            n=between(2, 12),
            d_in=between(1, 8),
            d_out=between(1, 4),
            bias=seed % 2 == 0,
            lambda_a=power(-1, 2),
            lambda_r=power(-3, 1),
            seed=seed,
            scale=power(-1, 1),
        )
        solution = Majorization(6).solve(problem, recording=Recording.CURVE)
        assert solution.status is Status.SOLVED, seed
        j = (solution.losses - solution.losses[0]) * problem.n
        size = max(1.0, solution.losses.abs().max().item() * problem.n)
        assert (j.diff() <= 1e-11 * size).all(), (seed, j)
        assert j[-1] < 0


@every_transfer
def test_j_after_each_number_of_iterations(make_problem, transfer):
    problem = make_problem(transfer, lambda_r=0.1, lambda_a=5.0)
    values = [0.0]
    for iterations in range(1, 7):
        values.append(problem.value(joined(Majorization(iterations).solve(problem), problem)).item())
    assert all(after <= before + 1e-12 for before, after in zip(values, values[1:], strict=False))
    losses = Majorization(6).solve(problem, recording=Recording.CURVE).losses
    close((losses - losses[0]) * problem.n, torch.tensor(values, dtype=torch.float64), 1e-11)


@pytest.mark.parametrize("acceleration", [None, "nesterov"])
@pytest.mark.parametrize("n", [4, 12], ids=["kernel", "dense"])
@pytest.mark.parametrize("transfer", sorted(F))
def test_limit_is_the_solution_by_newton(make_problem, transfer, n, acceleration):
    problem = make_problem(transfer, n=n, lambda_a=3.0)
    solver = Majorization(800 if acceleration is None else 200, acceleration)
    solution = solver.solve(problem)
    assert solution.status is Status.SOLVED
    assert solver.preconditioner.uses_kernel(problem) == (n == 4)
    close(joined(solution, problem), newton(problem), 1e-8)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("n", [3, 12], ids=["kernel", "dense"])
def test_one_step_on_the_squared_loss_is_exact(make_problem, n, bias):
    problem = make_problem(n=n, d_in=6, bias=bias)
    exact = joined(ClosedForm().solve(problem), problem)
    for solver in (Majorization(1), Majorization(4), Majorization(1, "nesterov")):
        close(joined(solver.solve(problem), problem), exact, 1e-10)


@every_transfer
@pytest.mark.parametrize("bias", [True, False])
def test_kernel_equals_the_dense_form(make_problem, monkeypatch, transfer, bias):
    problem = make_problem(transfer, n=4, d_in=9, bias=bias)
    kernel = Majorization(5)
    assert kernel.preconditioner.uses_kernel(problem) and "4 x 4 kernel" in kernel.describe(problem)
    by_kernel = joined(kernel.solve(problem), problem)
    monkeypatch.setattr(RightPreconditioner, "uses_kernel", lambda *_: False)
    assert Majorization(5).describe(problem) == "Majorization"
    close(joined(Majorization(5).solve(problem), problem), by_kernel, 1e-10)


def test_kernel_in_float32_keeps_the_digits(make_problem):
    """lambda_r far below C, where X - C (C + lambda_r)^-1 X cancels."""
    problem = make_problem("tanh", n=4, d_in=9, lambda_r=1e-3, dtype=torch.float32)
    wide = make_problem("tanh", n=4, d_in=9, lambda_r=1e-3)
    v, expected = (joined(Majorization(1).solve(p), p) for p in (problem, wide))
    torch.testing.assert_close(v.double(), expected, rtol=1e-3, atol=1e-5)


def test_nesterov_needs_fewer_iterations(make_problem):
    problem = make_problem("tanh", n=30, d_in=6, lambda_a=0.5, lambda_r=0.05)
    # often saturated, where f' is far below its bound
    problem = replaced(problem, pre_activation=1.5 * problem.pre_activation)
    best = problem.loss(newton(problem))
    needed = {}
    for acceleration in (None, "nesterov"):
        losses = Majorization(400, acceleration).solve(problem, recording=Recording.CURVE).losses
        near = losses - best < 1e-8 * (losses[0] - best)
        assert near[-1]
        needed[acceleration] = int(near.to(torch.int).argmax())
    assert needed["nesterov"] < needed[None] / 4, needed


def test_nesterov_units_restart_alone(make_problem):
    """A unit is a problem of its own, unless F couples the units."""
    problem = make_problem("tanh", lambda_a=5.0, lambda_r=0.05)
    whole = joined(Majorization(30, "nesterov").solve(problem), problem)
    one = with_units(problem, slice(1, 2))
    close(joined(Majorization(30, "nesterov").solve(one), one), whole[1:2], 1e-11)


SETTINGS = {
    "refresh": dict(refresh_every=5, warmup=0),
    "average": dict(average=0.95, warmup=0),
    "both": dict(average=0.95, refresh_every=5, warmup=2),
}
kept = pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
SOLVERS = {
    "plain": lambda settings: Majorization(4, **settings),
    "nesterov": lambda settings: Majorization(4, "nesterov", **settings),
    "closed_form": lambda settings: ClosedForm(**settings),
}
every_solver = pytest.mark.parametrize("make", SOLVERS.values(), ids=SOLVERS)


def transfer_of(solver):
    return "identity" if isinstance(solver, ClosedForm) else "tanh"


@kept
@every_solver
def test_kept_factor_of_the_same_rows_is_exact(make_problem, make, settings):
    solver = Stateful(make(settings))
    problem = make_problem(transfer_of(solver.solver))
    expected = joined(make({}).solve(problem), problem)
    for _ in range(4):
        solution = solver.solve(problem)
        assert solution.status is Status.SOLVED
        close(joined(solution, problem), expected, 1e-10)


@kept
@every_solver
def test_rows_that_grow_are_solved_again(make_problem, make, settings):
    solver = Stateful(make(settings))
    problem = make_problem(transfer_of(solver.solver), lambda_r=0.5, scale=0.1)
    grown = make_problem(transfer_of(solver.solver), lambda_r=0.5, scale=3.0, seed=1)
    for _ in range(30 if settings.get("average") else 3):
        assert solver.solve(problem).status is Status.SOLVED
    solution = solver.solve(grown, Recording.CURVE)
    assert solution.status is Status.RETRIED
    v = joined(solution, grown)
    assert grown.value(v) < 0
    close(v, joined(make({}).solve(grown), grown), 1e-10)
    close(solution.losses[-1], grown.loss(v), 1e-12)
    # from here on the factor is the new one, or where it is an average, once a second batch has said the same
    again = solver.solve(grown)
    if settings.get("average"):
        assert grown.value(joined(again, grown)) < 0
        again = solver.solve(grown)
        assert again.status is Status.SOLVED and grown.value(joined(again, grown)) < 0
    else:
        assert again.status is Status.SOLVED
        close(joined(again, grown), v, 1e-10)


@kept
@every_solver
def test_rows_that_shrink_do_no_harm(make_problem, make, settings):
    solver = Stateful(make(settings))
    problem = make_problem(transfer_of(solver.solver), lambda_r=0.5, scale=3.0)
    shrunk = make_problem(transfer_of(solver.solver), lambda_r=0.5, scale=0.1, seed=1)
    for _ in range(3):
        solver.solve(problem)
    solution = solver.solve(shrunk)
    assert solution.status is Status.SOLVED
    assert shrunk.value(joined(solution, shrunk)) < 0


def test_arguments():
    with pytest.raises(UserError, match=r"Majorization\(acceleration='fast'\): take null or 'nesterov'"):
        Majorization(acceleration="fast")
    with pytest.raises(UserError, match=r"Majorization\(iterations=-1\): must be at least 1"):
        Majorization(-1)
    with pytest.raises(UserError, match=r"Majorization\(average=1\): must be in \[0, 1\)"):
        Majorization(average=1)
    with pytest.raises(UserError, match=r"Majorization\(refresh_every=0\)"):
        Majorization(refresh_every=0)


def test_nesterov_with_the_current_c_loses_no_layer_whose_loss_fell():
    """Where a few rows are much larger than the others, some of them alone would raise a false alarm."""
    for seed in range(20):
        torch.manual_seed(seed)
        y, d, w = (torch.randn(shape, dtype=torch.float64) for shape in ((512, 6), (512, 4), (4, 6)))
        y = y * (1.5 * torch.randn(512, 1, dtype=torch.float64)).exp()
        problem = LocalProblem(y, y @ w.T, d, w, None, resolve_transfer("identity"), lambda_a=0.1, lambda_r=1.0)
        solution = Majorization(3, "nesterov").solve(problem)
        assert problem.value(solution.weight - w) <= 0 and solution.status is Status.SOLVED
