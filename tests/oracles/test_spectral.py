"""The spectral oracle against singular value decompositions, and steps of a given length in activations."""

from functools import partial

import pytest
import torch

from locoprop_lightning import LocoPropModule
from locoprop_lightning.errors import UserError
from locoprop_lightning.local import LocalProblem, resolve_transfer
from locoprop_lightning.networks import MLP
from locoprop_lightning.oracles import SpectralOracle
from locoprop_lightning.solvers import ClosedForm, FixedPointIteration, Majorization, Recording, Status
from locoprop_lightning.tasks import Classification
from tests.catalogue import KINDS, draw, problem, solver
from tests.support import augmented, close, joined, operator_of, replaced, rows_of

LAMBDA_A, LAMBDA_R = 0.3, 0.5
BATCH = dict(beta=0.0, damping=1e-15, refresh_every=1, warmup=0)  # S of the batch, inverted exactly
KEPT = dict(beta=0.8, refresh_every=2, warmup=1)
LINEAR = ["tall", "wide", "no_bias"]


def problem_of(kind, oracle, state, reuse=True, length=None, scale=1.0, transfer=None, repeat=1, **arguments):
    """The local problem of a kind of layer as the engine makes it, with the oracle's state."""
    layer, inputs, g = draw(kind, **arguments)
    inputs, g = (torch.cat([x] * repeat) for x in (inputs, g))
    operator, g = operator_of(layer, [inputs]), scale * rows_of(layer, g)
    return LocalProblem(
        operator,
        rows_of(layer, layer(inputs)),
        partial(oracle.direction, g, len(inputs), state),
        layer.weight.flatten(1),
        layer.bias,
        resolve_transfer(transfer or KINDS[kind].transfer),
        LAMBDA_A,
        LAMBDA_R,
        weight_direction=(lambda: oracle.weight_direction(operator.adjoint(g), len(inputs), state)) if reuse else None,
        prepare=lambda inverse: oracle.prepare(operator.adjoint(g), inverse, operator.groups, state),
        length=length,
        name="layer",
    ), g


def root(c, power):
    values, vectors = torch.linalg.eigh(c)
    return (vectors * values.clamp_min(0).add(LAMBDA_R).pow(power)) @ vectors.T


def polar(x):
    u, s, v = torch.linalg.svd(x, full_matrices=False)
    kept = s > s[0] * 1e-9
    return u[:, kept] @ v[kept]


@pytest.mark.parametrize("reuse", [True, False])
@pytest.mark.parametrize("kind", [*LINEAR, "convolution"])
def test_the_solution_is_steepest_descent_under_a_bound_on_outputs(kind, reuse):
    """V = -lambda_a sqrt(N) polar(B R) R: its outputs' singular values are at the bound, and <B, V> is the least."""
    made, g = problem_of(kind, SpectralOracle(**BATCH), {}, reuse)
    terms = KINDS[kind].inputs[0]
    b, c = made.operator.adjoint(g), made.operator.gram()
    v = ClosedForm().solve(made).displacement
    close(v, -LAMBDA_A * terms**0.5 * polar(b @ root(c, -0.5)) @ root(c, -0.5), 1e-8)
    close(made.first_gradient(), LAMBDA_A * made.operator.adjoint(made.direction), 1e-8)
    bound = LAMBDA_A * terms**0.5
    values = torch.linalg.svdvals(v @ root(c, 0.5))
    close(values, torch.full_like(values, bound), 1e-8)
    for seed in range(20):
        other = polar(torch.randn(v.shape, generator=torch.Generator().manual_seed(seed), dtype=v.dtype))
        assert (b * v).sum() < (b * (bound * other @ root(c, -0.5))).sum()


def test_groups_are_problems_of_their_own():
    made, g = problem_of("groups", SpectralOracle(**BATCH), {})
    v, c = ClosedForm().solve(made).displacement, made.operator.gram()
    b, groups = made.operator.adjoint(g), made.operator.groups
    for index, (part, gradient) in enumerate(zip(v.chunk(groups), b.chunk(groups), strict=True)):
        r = root(c[index], -0.5)
        x = gradient @ r
        expected = polar(x) @ r  # whatever its length, which the trace of all groups gives
        close(part / part.norm(), -expected / expected.norm(), 1e-8)
    close(made.first_gradient(), LAMBDA_A * made.operator.adjoint(made.direction), 1e-8)


def test_a_kept_s_counts_every_batch_the_same():
    """Its shape is an average of shapes, made at refreshes, so that a batch of large gradients weighs no more."""
    oracle, state = SpectralOracle(beta=0.8, damping=0.1, refresh_every=3, warmup=0), {}
    shape = trace = None
    weight = 0.0
    for batch in range(8):
        made, g = problem_of("tall", oracle, state, seed=batch, scale=1000.0 if batch == 3 else 1.0)
        b, m = made.operator.adjoint(g), torch.linalg.inv(made.operator.gram() + LAMBDA_R * torch.eye(6).double())
        s = b @ m @ b.T
        if batch % 3 == 0:
            shape = 0.2 * s / s.trace() + (0 if shape is None else 0.8 * shape)
            trace = 0.2 * s.trace() + (0 if trace is None else 0.8 * trace)
            weight = 0.2 + 0.8 * weight
            mean = shape / weight
            values, vectors = torch.linalg.eigh(mean + 0.1 * mean.trace() / 3 * torch.eye(3).double())
            left = (vectors * values.rsqrt()) @ vectors.T * (12 / (trace / weight)) ** 0.5
        close(made.operator.adjoint(g), b, 1e-12)
        close(ClosedForm().solve(made).displacement, -LAMBDA_A * left @ b @ m, 1e-9)
    assert state["preconditioner"]["steps"] == 8


def test_momentum_is_of_the_weight_gradient():
    """In the first gradient alone; S is of each batch's own, and what is not finite is left out."""
    oracle, plain, state, twin = SpectralOracle(0.6, **KEPT), SpectralOracle(**KEPT), {}, {}
    mean, weight = 0.0, 0.0
    for batch in range(6):
        scale = torch.nan if batch == 2 else 1.0
        made, g = problem_of("tall", oracle, state, seed=batch, scale=scale)
        other, _ = problem_of("tall", plain, twin, seed=batch, scale=scale)
        solution, reference = ClosedForm().solve(made), ClosedForm().solve(other)
        if batch == 2:
            assert solution.status is reference.status is Status.NONFINITE
            continue
        mean, weight = 0.6 * mean + 0.4 * made.operator.adjoint(g), 0.6 * weight + 0.4
        left = state["preconditioner"]["inverse"] * (12 * state["trace"]["weight"] / state["trace"]["value"]) ** 0.5
        inverse = torch.linalg.inv(made.operator.gram() + LAMBDA_R * torch.eye(6).double())
        close(solution.displacement, -LAMBDA_A * left @ (mean / weight) @ inverse, 1e-9)
        close(state["preconditioner"]["inverse"], twin["preconditioner"]["inverse"], 1e-12)
        close(made.direction, other.direction, 1e-12)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_scale_of_the_loss_changes_nothing(scale, dtype):
    expected, got = [], []
    for factor, found in ((1.0, expected), (scale, got)):
        oracle, state = SpectralOracle(refresh_every=2, warmup=0), {}
        for seed in range(4):
            made, _ = problem_of("tall", oracle, state, scale=factor, seed=seed, dtype=dtype, length=LAMBDA_A)
            found.append(ClosedForm().solve(made).displacement)
    for one, other in zip(got, expected, strict=True):
        close(one, other, 1e-4 if dtype == torch.float32 else 1e-9)


@pytest.mark.parametrize("length", [None, LAMBDA_A])
@pytest.mark.parametrize("kind", [*LINEAR, "groups"])
def test_a_zero_gradient_gives_zero(kind, length):
    """Also at first: nothing of it is kept."""
    oracle, state = SpectralOracle(refresh_every=3, warmup=2), {}
    for scale in (0.0, 1.0, 1.0, 0.0, 0.0):
        made, _ = problem_of(kind, oracle, state, scale=scale, length=length)
        solution = ClosedForm().solve(made)
        assert solution.status is Status.SOLVED and (solution.displacement == 0).all() == (scale == 0)


def moved(made, solution):
    """Root mean square of the change of all outputs."""
    return made.operator.apply(solution.displacement).square().mean().sqrt().item()


@pytest.mark.parametrize("seed", range(3))
def test_outputs_move_by_the_length(seed):
    made, _ = problem_of("tall", SpectralOracle(), {}, length=LAMBDA_A, n=1024, seed=seed)
    assert moved(made, ClosedForm().solve(made)) == pytest.approx(LAMBDA_A, rel=0.02)
    few, _ = problem_of("tall", SpectralOracle(), {}, length=LAMBDA_A, n=200)  # all of them are measured
    assert moved(few, ClosedForm().solve(few)) == pytest.approx(LAMBDA_A, rel=1e-9)


def test_nothing_stale_makes_a_step_longer():
    """A kept C and S of small inputs, then a batch scaled by 1,000, and one of duplicates."""
    oracle, stale, states = SpectralOracle(refresh_every=100, warmup=0), ClosedForm(0.9, 100, 0), ({}, {})

    def solve(**arguments):
        made, _ = problem_of("tall", oracle, states[0], length=LAMBDA_A, **{"n": 200} | arguments)
        solution = stale.solve_all({"layer": made}, {"layer": states[1]}, retries=False)["layer"]
        return moved(made, solution)

    assert solve() == pytest.approx(LAMBDA_A, rel=1e-9)
    for arguments in (dict(scale=1000.0), dict(seed=1)):
        assert solve(**arguments) == pytest.approx(LAMBDA_A, rel=1e-9)
    assert solve(n=1, repeat=200) == pytest.approx(LAMBDA_A, rel=1e-9)


@pytest.mark.parametrize("transfer", ["identity", "tanh"])
@pytest.mark.parametrize("name", ["fpi", "majorization"])
def test_the_length_is_for_every_solver_and_objective(transfer, name):
    """For M the targets are as far away as the outputs shall move; the last loss is that of what is applied."""
    plain = problem("tanh" if transfer == "tanh" else "tall", n=100, lambda_r=1000.0)
    made = replaced(plain, length=LAMBDA_A, direction=plain.direction * 1e-7)
    solution = solver(name).solve(made, recording=Recording.CURVE)
    assert solution.status is Status.SOLVED
    assert moved(made, solution) == pytest.approx(LAMBDA_A, rel=1e-6)
    close(solution.losses[-1], made.loss(solution.displacement), 1e-12)
    if transfer == "tanh":
        assert (made.lambda_a * made.direction).square().mean().sqrt().item() == pytest.approx(LAMBDA_A)
    assert replaced(made, length=None, lambda_a=2.0).lambda_a == 2.0


def test_majorisation_takes_the_oracle_too():
    made, _ = problem_of("tall", SpectralOracle(), {}, length=LAMBDA_A, transfer="tanh")
    assert Majorization(3).solve(made).status is Status.SOLVED
    wide, _ = problem_of("wide", SpectralOracle(), {}, transfer="tanh")
    assert joined(Majorization(3).solve(wide), wide).norm() > 0


def test_solvers_without_an_inverse_are_refused():
    arguments = dict(lambda_a=1.0, lambda_r=1.0, objective="squared", oracle=SpectralOracle())
    with pytest.raises(UserError, match="oracle=SpectralOracle asks the solver for .* FixedPointIteration does not"):
        LocoPropModule(MLP(4, 4, 1), Classification(), FixedPointIteration(), **arguments)
    made, _ = problem_of("tall", SpectralOracle(), {})
    for ask in (lambda: made.direction, made.first_gradient):
        with pytest.raises(UserError, match="'layer': the oracle asks for .* which the solver does not offer"):
            ask()
    with pytest.raises(UserError, match=r"SpectralOracle\(damping=0\)"):
        SpectralOracle(damping=0)
    with pytest.raises(UserError, match="step_length='far': take one of targets, activations"):
        LocoPropModule(MLP(4, 4, 1), Classification(), ClosedForm(), **arguments | {"step_length": "far"})


def test_the_offer_of_a_wide_layer_is_the_inverse():
    """By Woodbury's identity, on matrices that lie in no span of the rows."""

    class Watched(SpectralOracle):
        def prepare(self, weight_gradient, inverse, groups, state):
            super().prepare(weight_gradient, inverse, groups, state)
            offers.append(inverse)

    offers = []
    made, _ = problem_of("wide", Watched(), {})
    ClosedForm().solve(made)
    y = augmented(made)
    x = torch.randn(5, y.shape[1], dtype=torch.float64)
    close(offers[0](x), x @ torch.linalg.inv(y.T @ y + LAMBDA_R * torch.eye(y.shape[1]).double()), 1e-9)
