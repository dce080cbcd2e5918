import pytest
import torch
from torch import nn

from locoprop_lightning.errors import UserError
from locoprop_lightning.local import LocalProblem, resolve_transfer
from locoprop_lightning.solvers import (
    AndersonAcceleration,
    ClosedForm,
    FixedPointIteration,
    GradientDescent,
    Recording,
    Status,
)
from tests.support import close, joined

ITERATIVE = [
    FixedPointIteration,
    AndersonAcceleration,
    lambda t: AndersonAcceleration(t, safeguard=False),
    GradientDescent,
    lambda t: GradientDescent(t, proximal=True, schedule="published"),
]
IDS = ["fpi", "anderson", "anderson_plain", "published", "corrected"]
iterative = pytest.mark.parametrize("make", ITERATIVE, ids=IDS)
every_solver = pytest.mark.parametrize("make", [*ITERATIVE, lambda t: ClosedForm()], ids=[*IDS, "closed_form"])


def rows(problem):
    """[Y | 1]."""
    y = problem.operator.rows
    return y if problem.bias is None else torch.cat([y, torch.ones_like(y[:, :1])], 1)


def largest_eigenvalue(problem):
    return torch.linalg.eigvalsh(problem.operator.gram()).max().item()


@pytest.mark.parametrize("transfer", ["identity", "tanh"])
@pytest.mark.parametrize("bias", [True, False])
def test_one_iteration_is_back_propagation(transfer, bias):
    lambda_a, lambda_r = 0.8, 3.0
    layer = nn.Linear(5, 4, bias=bias).double()
    x, y = torch.randn(9, 5, dtype=torch.float64), torch.randn(9, 4, dtype=torch.float64)
    before = [p.detach().clone() for p in layer.parameters()]
    with taped({"layer": layer}) as tape:
        nn.functional.mse_loss(resolve_transfer(transfer).f(layer(x)), y).backward()
    record = tape.records["layer"]
    a, g = record.pre_activation(record.operator()), record.gradient()
    problem = LocalProblem(
        record.operator(), a, g, before[0], before[1] if bias else None, resolve_transfer(transfer), lambda_a, lambda_r
    )
    solution = FixedPointIteration(1).solve(problem)
    torch.optim.SGD(layer.parameters(), lr=lambda_a / lambda_r).step()
    close(solution.weight, layer.weight.detach(), 1e-12)
    if bias:
        close(solution.bias, layer.bias.detach(), 1e-12)
    assert solution.status is Status.SOLVED


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "solver",
    [
        FixedPointIteration(400),
        AndersonAcceleration(60, ridge=1e-14),
        AndersonAcceleration(60, ridge=1e-14, safeguard=False),
        GradientDescent(400, proximal=True),
    ],
    ids=["fpi", "anderson", "anderson_plain", "gradient_descent"],
)
def test_converges_to_closed_form(make_problem, solver, bias):
    problem = make_problem(bias=bias)
    problem.lambda_r = 1.2 * largest_eigenvalue(problem)
    solution, exact = solver.solve(problem), ClosedForm().solve(problem)
    assert solution.status is Status.SOLVED
    close(joined(solution, problem), joined(exact, problem), 1e-8)


def test_anderson_converges_where_the_fixed_point_does_not(make_problem):
    problem = make_problem(n=20, d_in=4)
    problem.lambda_r = largest_eigenvalue(problem) / 4
    exact = joined(ClosedForm().solve(problem), problem)
    for safeguard in (True, False):
        solution = AndersonAcceleration(60, memory=8, ridge=1e-14, safeguard=safeguard).solve(problem)
        assert solution.status is Status.SOLVED
        close(joined(solution, problem), exact, 1e-7)
    assert FixedPointIteration(60).solve(problem).status is Status.DIVERGED


@pytest.mark.parametrize("transfer", ["tanh", "softmax", "relu", "softplus"])
def test_matching_solution_is_stationary(make_problem, transfer):
    problem = make_problem(transfer)
    problem.lambda_r = 1.5 * largest_eigenvalue(problem)
    for solver in (FixedPointIteration(200), AndersonAcceleration(40, ridge=1e-14)):
        v = joined(solver.solve(problem), problem)
        assert problem.gradient(v).abs().max() < 1e-8 * problem.first_gradient().abs().max()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("n", [3, 12], ids=["kernel", "gram"])
def test_closed_form_is_equation_5(make_problem, bias, n):
    problem = make_problem(n=n, d_in=6, bias=bias)
    y = rows(problem)
    c = y.T @ y + problem.lambda_r * torch.eye(y.shape[1], dtype=y.dtype)
    expected = -problem.lambda_a * torch.linalg.solve(c, (problem.direction.T @ y).T).T
    close(joined(ClosedForm().solve(problem), problem), expected, 1e-10)
    assert ("kernel" in ClosedForm().describe(problem)) == (n == 3)


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_published_steps_are_a_polynomial(make_problem, steps):
    problem = make_problem()
    eta = 0.3 / largest_eigenvalue(problem)
    y = rows(problem)
    c, gradient = y.T @ y, problem.direction.T @ y
    power, total = torch.eye(len(c), dtype=c.dtype), torch.zeros_like(c)
    for _ in range(steps):
        total = total + power
        power = power @ (torch.eye(len(c), dtype=c.dtype) - eta * c)
    solution = GradientDescent(steps, rate=eta).solve(problem)
    close(joined(solution, problem), -eta * problem.lambda_a * gradient @ total, 1e-12)


def test_inner_schedule(make_problem):
    problem = make_problem("tanh")
    v = problem.zeros()
    for k in range(6):
        v = v - 0.01 * max(1 - k / 6, 0.25) * problem.gradient(v, proximal=False)
    close(joined(GradientDescent(6, rate=0.01, schedule="published").solve(problem), problem), v, 1e-12)


@iterative
@pytest.mark.parametrize("transfer", ["identity", "tanh", "softmax"])
@pytest.mark.parametrize("iterations", [1, 2, 10])
def test_number_of_losses(make_problem, make, transfer, iterations):
    problem = make_problem(transfer, lambda_r=60.0)
    solution = make(iterations).solve(problem, record=Recording.CURVE)
    assert solution.losses.shape == (iterations + 1,)
    close(solution.losses[0], problem.first_loss(), 1e-12)
    close(solution.losses[-1], problem.loss(joined(solution, problem)), 1e-12)
    assert solution.status is Status.SOLVED
    if make is not GradientDescent:  # the published one leaves the proximal term out
        assert solution.losses[-1] < solution.losses[0]
    plain = make(iterations).solve(problem)
    assert plain.losses is None and torch.equal(plain.weight, solution.weight)


@every_solver
def test_losses_of_s_are_the_local_loss(make_problem, make):
    problem = make_problem(lambda_r=60.0)
    solution = make(4).solve(problem, record=Recording.CURVE)
    v = joined(solution, problem)
    w = torch.cat([solution.weight, solution.bias[:, None]], 1)
    loss = (rows(problem) @ w.T - problem.target).square().sum() / 2 + problem.lambda_r / 2 * v.square().sum()
    close(solution.losses[-1], loss / problem.n, 1e-12)


@every_solver
def test_zero_gradient_leaves_the_weights(make_problem, make):
    problem = make_problem()
    problem.direction.zero_()
    solution = make(10).solve(problem)
    assert solution.status is Status.SOLVED
    assert torch.equal(solution.weight, problem.weight) and torch.equal(solution.bias, problem.bias)


@iterative
@pytest.mark.parametrize("transfer", ["tanh", "softmax"])
def test_zero_gradient_leaves_the_weights_of_m(make_problem, make, transfer):
    problem = make_problem(transfer)
    problem.direction.zero_()
    solution = make(10).solve(problem)
    assert solution.status is Status.SOLVED
    assert torch.equal(solution.weight, problem.weight) and torch.equal(solution.bias, problem.bias)


@every_solver
def test_inputs_are_not_changed(make_problem, make):
    problem, twin = make_problem(lambda_r=60.0), make_problem(lambda_r=60.0)
    make(5).solve(problem, record=Recording.CURVE)
    for name in ("pre_activation", "direction", "weight", "bias", "first_gradient"):
        assert torch.equal(getattr(problem, name), getattr(twin, name)), name
    assert torch.equal(problem.operator.rows, twin.operator.rows)


@every_solver
def test_not_a_number(make_problem, make):
    problem = make_problem()
    problem.direction[2, 1] = torch.nan
    assert make(10).solve(problem).status is Status.NONFINITE


@pytest.mark.parametrize("transfer", ["identity", "relu"])
def test_divergence_is_noticed(make_problem, transfer):
    problem = make_problem(transfer)
    problem.lambda_r = 0.05 * largest_eigenvalue(problem)
    assert FixedPointIteration(10).solve(problem).status is Status.DIVERGED


def test_rows_of_anderson_are_independent(make_problem):
    problem = make_problem("tanh", lambda_r=30.0)
    whole = AndersonAcceleration(6).solve(problem)
    one = make_problem("tanh", lambda_r=30.0)
    one = LocalProblem(
        one.operator.rows,
        one.pre_activation[:, :1],
        one.direction[:, :1],
        one.weight[:1],
        one.bias[:1],
        one.transfer,
        one.lambda_a,
        one.lambda_r,
    )
    close(AndersonAcceleration(6).solve(one).weight, whole.weight[:1], 1e-12)


class Module:
    """What a solver needs of a Lightning module."""

    record_losses, guard = False, True

    def __init__(self, problems):
        self.problems, self.committed = problems, {}

    def commit(self, name, v):
        self.committed[name] = v


def test_order_of_layers(make_problem):
    names = ["a", "b", "c"]
    for make in (lambda: AndersonAcceleration(5), lambda: ClosedForm(average=0.9, refresh_every=2)):
        results = []
        for order in (names, names[::-1]):
            module = Module({n: make_problem(seed=names.index(n), name=n, lambda_r=40.0) for n in order})
            solver = make()
            for _ in range(3):
                solver.on_before_optimizer_step(None, module, None)
            results.append(module.committed)
        assert all(torch.equal(results[0][n], results[1][n]) for n in names)


def test_second_attempts_are_applied_and_counted(make_problem, caplog):
    solver, module = ClosedForm(refresh_every=10, warmup=0), Module({"layer": make_problem(lambda_r=0.5, scale=0.1)})
    solver.on_before_optimizer_step(None, module, None)
    assert solver.counts == {}
    grown = make_problem(lambda_r=0.5, scale=3.0, seed=1)
    module.problems = {"layer": grown}
    solver.on_before_optimizer_step(None, module, None)
    assert solver.counts == {"layer": {"retried": 1}} and not caplog.records
    assert solver.state["layer"]["age"] == 1  # as after any other refresh
    close(module.committed["layer"], joined(ClosedForm().solve(grown), grown), 1e-10)


@pytest.mark.parametrize("retried", [False, True])
def test_a_refused_layer_is_said_once(make_problem, caplog, retried):
    """Whether or not a second attempt was counted before."""
    solver, module = ClosedForm(refresh_every=10, warmup=0), Module({"layer": make_problem(lambda_r=0.5, scale=0.1)})
    solver.on_before_optimizer_step(None, module, None)
    if retried:
        module.problems = {"layer": make_problem(lambda_r=0.5, scale=3.0, seed=1)}
        solver.on_before_optimizer_step(None, module, None)
    bad = make_problem()
    bad.direction[0, 0] = torch.nan
    module.problems = {"layer": bad}
    for _ in range(2):
        solver.on_before_optimizer_step(None, module, None)
    assert module.committed["layer"] is None
    assert solver.counts["layer"]["nonfinite"] == 2
    assert [r.getMessage() for r in caplog.records] == [
        "Layer 'layer': its local solution was not finite, and the layer keeps its weights (said once, then counted); "
        "look at the inputs and the loss first."
    ]


def test_closed_form_refuses_a_matching_loss(make_problem):
    with pytest.raises(UserError, match="squared loss only, but layer 'layer' matches through tanh: set objective"):
        ClosedForm().solve(make_problem("tanh"))


@pytest.mark.parametrize("refresh_every", [1, 3])
def test_average_of_a_constant_is_the_constant(make_problem, refresh_every):
    problem = make_problem()
    exact = ClosedForm().solve(problem)
    solver = ClosedForm(average=0.9, refresh_every=refresh_every)
    for _ in range(5):
        close(solver.solve(problem).weight, exact.weight, 1e-10)


def test_average_agrees_over_batch_sizes(make_problem):
    """Twice the rows with the same mean C: as if C were n times the mean, and the exact step of that batch."""
    problem = make_problem()
    double = LocalProblem(
        problem.operator.rows.repeat(2, 1),
        problem.pre_activation.repeat(2, 1),
        problem.direction.repeat(2, 1),
        problem.weight,
        problem.bias,
        problem.transfer,
        problem.lambda_a,
        2 * problem.lambda_r,
        name="layer",
    )
    stale = ClosedForm(average=0.9, refresh_every=2)
    stale.solve(problem)
    close(stale.solve(double).weight, ClosedForm().solve(double).weight, 1e-10)
    fresh = ClosedForm(average=0.9)
    fresh.solve(problem)
    close(fresh.state["layer"]["mean"] / fresh.state["layer"]["weight"], problem.operator.gram() / problem.n, 1e-12)
    close(fresh.solve(double).weight, ClosedForm().solve(double).weight, 1e-10)
    close(fresh.state["layer"]["mean"] / fresh.state["layer"]["weight"], problem.operator.gram() / problem.n, 1e-12)


def test_average_takes_in_nothing_nonfinite(make_problem):
    problem, bad = make_problem(), make_problem()
    bad.operator.rows = bad.operator.rows.clone()
    bad.operator.rows[0, 0] = torch.inf
    solver = ClosedForm(average=0.9)
    first = solver.solve(problem)
    assert solver.solve(bad).status is Status.NONFINITE
    assert solver.state["layer"]["mean"].isfinite().all()
    again = solver.solve(problem)
    assert again.status is Status.SOLVED
    close(again.weight, first.weight, 1e-10)


def test_arguments():
    cases = [
        (lambda: FixedPointIteration(0), r"FixedPointIteration\(iterations=0\): must be at least 1"),
        (lambda: AndersonAcceleration(iterations=-2), r"AndersonAcceleration\(iterations=-2\)"),
        (lambda: AndersonAcceleration(memory=0), r"memory=0\): must be at least 1"),
        (lambda: AndersonAcceleration(ridge=0.0), r"ridge=0.0\): must be above 0"),
        (lambda: AndersonAcceleration(beta=-1.0), r"beta=-1.0\): must be above 0"),
        (lambda: GradientDescent(rate=0.0), r"rate=0.0\): must be above 0"),
        (lambda: ClosedForm(average=1.0), r"average=1.0\): must be in \[0, 1\)"),
        (lambda: ClosedForm(refresh_every=0), r"refresh_every=0\): must be at least 1"),
    ]
    for make, message in cases:
        with pytest.raises(UserError, match=message):
            make()


def test_stale_factor_of_a_nonfinite_batch_is_not_kept(make_problem):
    solver = ClosedForm(average=0.9, refresh_every=10)
    bad, good = make_problem("identity"), make_problem("identity")
    bad.operator.rows[0, 0] = torch.nan
    assert solver.solve(bad).status is Status.NONFINITE
    solution = solver.solve(good)
    assert solution.status is Status.SOLVED
    close(solution.weight, ClosedForm().solve(good).weight, 1e-10)


def test_a_factorisation_that_fails_in_float32_is_mended():
    y = torch.rand(40, 1) + 1e-4 * torch.rand(40, 8)  # nearly of rank one: C is singular in float32
    d = torch.randn(40, 3)
    w = torch.zeros(3, 8)
    problem = LocalProblem(y, y @ w.t(), d, w, None, resolve_transfer("identity"), lambda_a=1.0, lambda_r=1e-7)
    damped = problem.operator.gram()
    damped.diagonal().add_(1e-7)
    assert torch.linalg.cholesky_ex(damped).info.item() > 0
    solution = ClosedForm().solve(problem)
    assert solution.status is Status.SOLVED
    double = LocalProblem(*(t.double() for t in (y, y @ w.t(), d, w)), None, resolve_transfer("identity"), 1.0, 1e-7)
    assert double.value(solution.weight.double()) < 0
