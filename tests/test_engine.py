"""The engine and its layers, without a trainer."""

import pytest
import torch
from torch import nn

from locoprop_lightning.distributed import Communicator, share_batch
from locoprop_lightning.engine import LocalEngine
from locoprop_lightning.errors import UserError
from locoprop_lightning.layers import LinearKind, kind, kind_of
from locoprop_lightning.local import MatrixOperator
from locoprop_lightning.local_layer import LocalLayer
from locoprop_lightning.oracles import GradientOracle, RMSOracle, WhitenedOracle
from locoprop_lightning.sampling import sampled_gradients
from locoprop_lightning.settings import LocalSettings
from locoprop_lightning.solvers import (
    AndersonAcceleration,
    ClosedForm,
    FixedPointIteration,
    InnerOptimizer,
    LocalSolver,
    Majorization,
    Recording,
    Status,
)
from locoprop_lightning.tasks import Classification
from tests.support import Stateful, augmented, close, joined, replaced, same, through_a_file

KEEPS = dict(refresh_every=10, warmup=0)


class Parallel(nn.Module):
    """Layers side by side."""

    def __init__(self, names):
        super().__init__()
        for name in names:
            setattr(self, name, nn.Linear(5, 3))

    def forward(self, x):
        return sum(layer(x) for layer in self.children())


def engine_of(network, solver, x, oracle=None, **settings):
    """An engine that knows its layers."""
    options = dict(
        lambda_a=0.7,
        lambda_r=2.0,
        objective="squared",
        output_transfer="identity",
        transfers={},
        skip=[],
        damping="absolute",
        overrides={},
        guard=True,
    )
    engine = LocalEngine(network, solver, oracle or GradientOracle(), LocalSettings(**options | settings))
    alone = Communicator()
    assert engine.discover(network, x, alone) and not engine.discover(network, x, alone)
    return engine


def parallel(solver, names=("layer",), **settings):
    """An engine of layers that fit ``make_problem``'s problems."""
    network = Parallel(names).double()
    return engine_of(network, solver, torch.randn(2, 5, dtype=torch.float64), **settings)


def batch_of(recording=Recording.NOTHING):
    """A batch of one process, which wishes for a recording."""
    return share_batch(Communicator(), torch.zeros(2, 5), torch.zeros(2, 3), 2, recording)


def step(engine, *problems, recording=Recording.NOTHING):
    """Solves and writes, as a step does."""
    solutions = engine.solve({problem.name: problem for problem in problems}, batch_of(recording))
    engine.write(solutions)
    return solutions


def written(engine, name="layer"):
    """The displacement that stands where gradients are, None without."""
    layer = engine.local[name].module
    if layer.weight.grad is None:
        assert layer.bias.grad is None
        return None
    return -torch.cat([layer.weight.grad, layer.bias.grad[:, None]], 1)


def nonfinite(problem):
    direction = problem.direction.clone()
    direction[0, 0] = torch.nan
    return replaced(problem, direction=direction)


def diverging(problem):
    """For fixed-point iteration."""
    return replaced(problem, lambda_r=0.05 * torch.linalg.eigvalsh(problem.gram()).max().item())


def test_displacements_are_written_and_applied(make_problem):
    engine, problems = parallel(ClosedForm(), "ab"), [make_problem(name=n, seed=ord(n)) for n in "ab"]
    before = {name: layer.module.weight.detach().clone() for name, layer in engine.local.items()}
    solutions = step(engine, *problems)
    for problem in problems:
        name = problem.name
        assert solutions[name].status is Status.SOLVED
        close(written(engine, name), joined(ClosedForm().solve(problem), problem), 1e-12)
        torch.optim.SGD(engine.local[name].module.parameters(), lr=1.0).step()
        moved = engine.local[name].module.weight.detach() - before[name]
        close(moved, solutions[name].displacement[:, :5], 1e-12)
    assert engine.counts == {}


@pytest.mark.parametrize(
    "make",
    [lambda: AndersonAcceleration(5), lambda: ClosedForm(average=0.9, refresh_every=2)],
    ids=["anderson", "closed_form"],
)
def test_order_of_layers(make_problem, make):
    names, results = ["a", "b", "c"], []
    for order in (names, names[::-1]):
        engine = parallel(make(), names)
        for _ in range(3):
            step(engine, *(make_problem(seed=names.index(n), name=n, lambda_r=40.0) for n in order))
        results.append({name: written(engine, name) for name in names})
    assert all(torch.equal(results[0][name], results[1][name]) for name in names)


def test_layers_go_on_from_step_to_step(make_problem):
    solver = InnerOptimizer(lambda p: torch.optim.Adam(p, lr=1e-3), 3)
    engine, alone = parallel(solver), Stateful(solver)
    for seed in range(3):
        problem = make_problem(seed=seed)
        step(engine, problem)
        assert torch.equal(written(engine), alone.solve(problem).displacement)
    assert same(engine.layers["layer"].solver_state, alone.states["layer"])


def test_second_attempts_are_applied_and_counted(make_problem, caplog):
    engine = parallel(ClosedForm(**KEEPS))
    step(engine, make_problem(lambda_r=0.5, scale=0.1))
    assert engine.counts == {}
    grown = make_problem(lambda_r=0.5, scale=3.0, seed=1)
    step(engine, grown)
    assert engine.counts == {"layer": {"retried": 1}} and not caplog.records
    assert engine.layers["layer"].solver_state["preconditioner"]["age"] == 1  # as after any other refresh
    close(written(engine), joined(ClosedForm().solve(grown), grown), 1e-10)


@pytest.mark.parametrize("retried", [False, True])
def test_a_refused_layer_is_said_once(make_problem, caplog, retried):
    """Whether or not a second attempt was counted before."""
    engine = parallel(ClosedForm(**KEEPS))
    step(engine, make_problem(lambda_r=0.5, scale=0.1))
    if retried:
        step(engine, make_problem(lambda_r=0.5, scale=3.0, seed=1))
    assert written(engine) is not None
    for _ in range(2):
        step(engine, nonfinite(make_problem()))
    assert written(engine) is None
    assert engine.counts["layer"]["nonfinite"] == 2
    assert engine.counts["layer"].get("retried", 0) == retried
    assert [r.getMessage() for r in caplog.records] == [
        "Layer 'layer': its local solution was not finite, and the layer keeps its weights (said once, then counted); "
        "look at the inputs and the loss first, then take a larger lambda_r."
    ]


@pytest.mark.parametrize("guard", [True, False])
def test_a_diverged_layer_is_said_once(make_problem, caplog, guard):
    engine = parallel(FixedPointIteration(10), "ab", guard=guard)
    for _ in range(3):
        solutions = step(engine, diverging(make_problem(name="a")), make_problem(name="b", lambda_r=100.0))
    assert solutions["a"].status is Status.DIVERGED and solutions["b"].status is Status.SOLVED
    assert engine.counts == {"a": {"diverged": 3}}
    if guard:
        assert written(engine, "a") is None
    else:
        assert torch.equal(written(engine, "a"), solutions["a"].displacement)
    assert torch.equal(written(engine, "b"), solutions["b"].displacement)
    assert [r.getMessage() for r in caplog.records] == [
        "Layer 'a': its local solution diverged (said once, then counted); "
        "a larger lambda_r or a smaller lambda_a helps."
    ]


@pytest.mark.parametrize("guard", [True, False])
def test_without_a_guard_a_stale_inverse_is_what_it_is(make_problem, guard):
    """As in the papers, which invert at some steps and take what comes at the others."""
    engine = parallel(ClosedForm(refresh_every=50), guard=guard)
    first = make_problem(lambda_r=0.5, scale=0.1)
    for _ in range(60):  # the first ones all have a new inverse
        assert step(engine, first)["layer"].status is Status.SOLVED
    grown = make_problem(lambda_r=0.5, scale=30.0, seed=1)
    solution = step(engine, grown)["layer"]
    exact = ClosedForm().solve(grown).displacement
    if guard:
        assert solution.status is Status.RETRIED
        torch.testing.assert_close(solution.displacement, exact, rtol=1e-9, atol=0)
    else:
        assert solution.status is Status.DIVERGED and torch.equal(written(engine), solution.displacement)
        assert (solution.displacement - exact).norm() > 10 * exact.norm()


@pytest.mark.parametrize("guard", [True, False])
def test_what_is_applied(guard):
    engine = parallel(ClosedForm(), guard=guard)
    applied = {status for status in Status if engine.applies(status)}
    assert applied == {Status.SOLVED, Status.RETRIED} | (set() if guard else {Status.DIVERGED})


@pytest.mark.parametrize("recording", Recording)
def test_reports(make_problem, recording):
    """Of what was recorded; a refused solution moves nothing."""
    engine = parallel(FixedPointIteration(4), "ab")
    good, bad = make_problem(name="a", lambda_r=100.0), nonfinite(make_problem(name="b"))
    solutions = step(engine, good, bad, recording=recording)
    reports = engine.reports(solutions, batch_of(Recording.CURVE))
    if recording is Recording.NOTHING:
        assert reports == {}
        return
    assert reports.keys() == {"a", "b"}
    for name in "ab":
        assert reports[name].losses is solutions[name].losses
        assert len(reports[name].losses) == (2 if recording is Recording.ENDS else 5)
    assert torch.equal(reports["a"].displacement, good.relative(solutions["a"].displacement))
    assert reports["a"].displacement > 0 and reports["b"].displacement == 0
    assert torch.equal(reports["a"].out_of_range, good.out_of_range())


def fresh(engine, solver=None, oracle=None):
    """Another engine of such a network."""
    network, x = Parallel(engine.layers).double(), torch.randn(2, 5, dtype=torch.float64)
    return engine_of(network, solver or ClosedForm(**KEEPS), x, oracle or RMSOracle())


def state_of(engine):
    return engine.layers["layer"].state_dict()


@pytest.fixture
def saved(make_problem):
    """An engine that has learnt, and its checkpoint."""
    engine = fresh(parallel(ClosedForm()))
    step(engine, make_problem(scale=0.1, lambda_r=0.5))
    step(engine, make_problem(scale=3.0, lambda_r=0.5, seed=1))
    engine.oracle.observe(torch.randn(4, 3), [], 4, engine.layers["layer"].oracle_state)
    checkpoint = {}
    engine.save(checkpoint)
    assert checkpoint["local_layers"]["layers"].keys() == {"layer"} and state_of(engine)["counts"] == {"retried": 1}
    return engine, through_a_file(checkpoint)


def test_what_evolves_is_saved_and_goes_on(make_problem, saved):
    engine, checkpoint = saved
    resumed = fresh(engine)
    resumed.load(checkpoint)
    assert same(state_of(resumed), state_of(engine))
    problem = make_problem(seed=2, lambda_r=0.5)
    for each in (engine, resumed):
        step(each, problem)
    assert torch.equal(step(engine, problem)["layer"].displacement, step(resumed, problem)["layer"].displacement)
    assert same(state_of(resumed), state_of(engine))


def test_loading_replaces_what_was_learnt(saved):
    engine, _ = saved
    nothing = {}
    fresh(engine).save(nothing)
    assert nothing["local_layers"]["layers"] == {}
    engine.load(through_a_file(nothing))
    assert state_of(engine) == {"solver": {}, "oracle": {}, "counts": {}}


def test_what_another_has_learnt_is_left_behind(saved):
    engine, checkpoint = saved
    own = state_of(engine)
    solver = fresh(engine, solver=Majorization(2, **KEEPS))
    solver.load(through_a_file(checkpoint))
    assert state_of(solver)["solver"] == state_of(solver)["counts"] == {}
    assert same(state_of(solver)["oracle"], own["oracle"])
    oracle = fresh(engine, oracle=WhitenedOracle())
    oracle.load(through_a_file(checkpoint))
    assert state_of(oracle)["oracle"] == {} and same(state_of(oracle)["solver"], own["solver"])


@pytest.mark.parametrize("damping", ["absolute", "relative"])
@pytest.mark.parametrize("make", [GradientOracle, RMSOracle], ids=["gradient", "rms"])
def test_problems_are_those_of_the_pass(damping, make):
    """T = f(A) - lambda_a D at the inputs that the layers saw; with lambda_a and lambda_r of each."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    x, labels, task = torch.randn(8, 4, dtype=torch.float64), torch.arange(8) % 3, Classification(3)
    overrides = {"2": {"lambda_a": 0.2, "lambda_r": 5.0}}
    engine = engine_of(network, Majorization(2), x, make(), objective="matching", damping=damping, overrides=overrides)
    with engine.tape(network, Communicator()) as tape:
        hidden = network[0](x)
        output = network[2](network[1](hidden))
    loss = task.loss(output, labels)
    expected_g = torch.autograd.grad(loss, (hidden, output), retain_graph=True)
    batch = share_batch(Communicator(), x, output, 8, 0)
    assert sampled_gradients(engine, tape, task, output, labels, batch, 0) == []
    loss.backward()
    problems = engine.problems(tape, [], batch)
    assert list(problems) == ["0", "2"]
    for (name, problem), rows, a, g in zip(
        problems.items(), (x, hidden.detach().tanh()), (hidden, output), expected_g, strict=True
    ):
        layer, (lambda_a, lambda_r) = network[int(name)], (0.7, 2.0) if name == "0" else (0.2, 5.0)
        oracle, state = make(), {}
        oracle.observe(g, [], 8, state)
        d, y = oracle.direction(g, 8, state), augmented(problem)
        assert (problem.name, problem.n, problem.lambda_a) == (name, 8, lambda_a)
        assert problem.transfer.name == ("tanh" if name == "0" else "identity")
        close(problem.operator.rows, rows, 1e-12)
        close(problem.pre_activation, a.detach(), 1e-12)
        close(problem.direction, d, 1e-10)
        close(problem.first_gradient(), lambda_a * d.T @ y, 1e-10)
        close(problem.weight, layer.weight.detach(), 0)
        close(problem.bias, layer.bias.detach(), 0)
        mean = (y.T @ y).trace() / y.shape[1] if damping == "relative" else 1.0
        assert float(problem.lambda_r) == pytest.approx(float(lambda_r * mean))
        assert same(engine.local[name].oracle_state, state)
    assert all(solution.status is Status.SOLVED for solution in step(engine, *problems.values()).values())


def test_labels_are_drawn_from_a_seed_of_the_step():
    network = nn.Sequential(nn.Linear(4, 3)).double()
    x, task = torch.randn(8, 4, dtype=torch.float64), Classification(3)
    engine = engine_of(network, ClosedForm(), x, WhitenedOracle(samples=2))
    with engine.tape(network, Communicator()) as tape:
        output = network(x)
    batch = share_batch(Communicator(), x, output, 8, 0)
    state = torch.get_rng_state()
    draws = [sampled_gradients(engine, tape, task, output, x[:, 0].long(), batch, number) for number in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), state)
    first, again, other = ([tape.records["0"].join(one["0"]) for one in draw] for draw in draws)
    assert all(one.shape == (8, 3) for one in [*first, *again, *other]) and len(first) == 2
    for k in range(2):
        assert torch.equal(first[k], again[k]) and not torch.equal(first[k], other[k])
    assert not torch.equal(first[0], first[1])


def test_layers_without_a_problem():
    """One that was not called has none; one that saw no rows has none, and no gradient either."""
    network = Parallel("abc").double()
    x = torch.randn(8, 5, dtype=torch.float64)
    engine = engine_of(network, ClosedForm(), x)
    with engine.tape(network, Communicator()) as tape:
        loss = network.a(x).square().mean() + network.b(x[:0]).sum()
    loss.backward()
    assert network.b.weight.grad is not None
    problems = engine.problems(tape, [], share_batch(Communicator(), x, x, 8, 0))
    assert list(problems) == ["a"]
    assert network.b.weight.grad is None and network.c.weight.grad is None
    assert network.a.weight.grad is not None


def test_a_new_fit_finds_the_layers_anew():
    network = Parallel("ab").double()
    x = torch.randn(2, 5, dtype=torch.float64)
    engine = engine_of(network, ClosedForm(), x)
    kept = dict(engine.layers)
    network.b.requires_grad_(False)
    engine.start()
    assert engine.local == {} and engine.found is None
    assert engine.discover(network, x, Communicator()) and list(engine.local) == ["a"]
    assert engine.local["a"] is kept["a"]  # with what it has learnt


@pytest.mark.parametrize("solver", [ClosedForm(), ClosedForm, None], ids=lambda solver: type(solver).__name__)
def test_solvers_that_cannot_be_used(solver):
    with pytest.raises(UserError, match="solver"):
        parallel(solver, objective="matching")


def test_a_solver_without_its_base_is_named():
    class Forgetful(FixedPointIteration):
        def __init__(self):
            pass

    with pytest.raises(UserError, match=r"solver=Forgetful: its __init__ must call super\(\).__init__\(\)"):
        parallel(Forgetful())


def test_a_solver_needs_no_init():
    class Still(LocalSolver):
        def run(self, problem, state, recording):
            return FixedPointIteration(1).run(problem, state, recording)

    assert isinstance(parallel(Still()).solver, Still)


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer(make_problem, bias):
    module = nn.Conv1d(2, 3, 2, bias=bias).double()
    layer = LocalLayer("layer", module, kind_of(module))
    assert layer.transfer is None and layer.gradients() is None
    weight, b = layer.matrices()
    assert torch.equal(weight, module.weight.flatten(1)) and not weight.requires_grad
    assert (b is None) == (not bias) and (b is None or torch.equal(b, module.bias))
    module(torch.randn(4, 2, 5, dtype=torch.float64)).square().sum().backward()
    found = layer.gradients()
    assert len(found) == 1 + bias and torch.equal(found[0], module.weight.grad.flatten(1))
    if bias:
        assert torch.equal(found[1], module.bias.grad[:, None])
    solution = ClosedForm().solve(make_problem(d_in=4, bias=bias))
    layer.write(solution)
    close(torch.cat(layer.gradients(), 1), -solution.displacement, 0)
    layer.clear_gradients()
    assert layer.gradients() is None and all(p.grad is None for p in module.parameters())


def test_counts_of_a_layer(caplog):
    module = nn.Linear(2, 2)
    layer = LocalLayer("deep.layer", module, kind_of(module))
    for status in (Status.RETRIED, Status.DIVERGED, Status.NONFINITE, Status.DIVERGED, Status.RETRIED):
        layer.count(status)
    assert layer.counts == {"retried": 2, "diverged": 2, "nonfinite": 1}
    (record,) = caplog.records
    assert record.levelname == "WARNING" and record.getMessage().startswith("Layer 'deep.layer': its local solution di")
    other = LocalLayer("other", module, kind_of(module))
    other.load_state_dict(through_a_file(layer.state_dict()))
    assert other.state_dict() == layer.state_dict()
    other.count(Status.DIVERGED)
    assert len(caplog.records) == 1  # said before the run was interrupted


class Scrambled(nn.Linear):
    """A layer for kinds that are wrong."""


def test_a_layer_that_acts_otherwise_than_its_kind_says_is_named(monkeypatch):
    monkeypatch.setattr(kind, "_KINDS", list(kind._KINDS))

    def refused(message, **methods):
        kind.register(type("Wrong", (LinearKind,), {"modules": (Scrambled,), "__module__": __name__, **methods}))
        network, x = Scrambled(4, 4).double(), torch.randn(6, 4, dtype=torch.float64)
        engine = engine_of(network, ClosedForm(), x)
        with engine.tape(network, Communicator()) as tape:
            output = network(x)
        output.square().sum().backward()
        batch = share_batch(Communicator(), x, output, 6, 0)
        if message is None:
            outer = torch.optim.SGD(network.parameters())
            assert engine.trained_by(engine.problems(tape, [], batch), outer, outer) == {"": "ClosedForm"}
            return
        with pytest.raises(UserError, match=f"Wrong: layer '' ?.*{message}"):
            engine.problems(tape, [], batch)

    refused(None)
    turned = {"matrix": lambda self, m, x: x.t(), "from_matrix": lambda self, m, x: x.t()}
    refused("another output than its operator times its matrix", **turned)
    refused("from_matrix does not undo matrix", **(turned | {"from_matrix": lambda self, m, x: x}))
    operator = lambda self, m, inputs: MatrixOperator(inputs[0][:, :3], True)  # noqa: E731
    refused("has 4 inputs, bias True, but its operator 3 inputs, bias True; make them agree", operator=operator)


@pytest.mark.parametrize(
    ("method", "told"),
    [("direction", "[2, 4], and must be [2, 3]."), ("weight_direction", "[6, 3], and must be [3, 6].")],
)
def test_an_oracle_that_gives_another_shape_is_named(method, told):
    class Turned(GradientOracle):
        def direction(self, gradient, terms, state):
            return torch.zeros(2, 4).double() if method == "direction" else gradient

        def weight_direction(self, weight_gradient, terms, state):
            return weight_gradient.t() if method == "weight_direction" else None

    network, x = Parallel(["layer"]).double(), torch.randn(2, 5, dtype=torch.float64)
    solver = ClosedForm() if method == "direction" else FixedPointIteration(1)  # fewer rows than inputs
    engine = engine_of(network, solver, x, Turned())
    with engine.tape(network, Communicator()) as tape:
        output = network(x)
    output.square().sum().backward()
    batch = share_batch(Communicator(), x, output, 2, 0)
    with pytest.raises(UserError) as error:
        engine.solve(engine.problems(tape, [], batch), batch)
    assert str(error.value) == f"layer 'layer': the oracle's {method} is {told}"


def test_solver_and_oracle_can_be_replaced(make_problem):
    engine = parallel(FixedPointIteration(1), lambda_r=40.0)
    other = AndersonAcceleration(3)
    engine.replace(other, RMSOracle())
    solution = step(engine, make_problem(lambda_r=40.0))["layer"]
    assert torch.equal(solution.weight, other.solve(make_problem(lambda_r=40.0)).weight)
    with pytest.raises(UserError, match="oracle='rms'"):
        engine.replace(other, "rms")
    assert engine.solver is other


@pytest.mark.parametrize("part", ["solver", "oracle", "none"])
def test_what_the_one_before_has_kept_is_forgotten(saved, part):
    engine, _ = saved
    solver, oracle = engine.solver, engine.oracle
    engine.replace(ClosedForm(**KEEPS) if part == "solver" else solver, RMSOracle() if part == "oracle" else oracle)
    assert bool(state_of(engine)["solver"]) == (part != "solver")
    assert bool(state_of(engine)["oracle"]) == (part != "oracle")


def test_states_of_classes_of_the_same_name_are_apart(saved):
    Same = type("RMSOracle", (GradientOracle,), {})  # noqa: N806
    other = fresh(parallel(ClosedForm()), oracle=Same())
    other.load(saved[1])
    assert state_of(other)["solver"] and not state_of(other)["oracle"]
