"""(L C + lambda_r I)^-1, alone and in training: where it is kept, the protection is needed, and it holds."""

from itertools import pairwise

import pytest
import torch
from lightning.pytorch import seed_everything
from torch import nn

from locoprop_lightning import LocoPropModule
from locoprop_lightning.data import Digits
from locoprop_lightning.networks import MLP
from locoprop_lightning.oracles import RMSOracle
from locoprop_lightning.solvers import ClosedForm, Majorization, RightPreconditioner, Status
from locoprop_lightning.tasks import Classification, Reconstruction
from tests.support import Stateful, augmented, close, joined, replaced, script

stale_factors = script("stale_factors")


def autoencoder():
    widths = (64, 100, 50, 10, 50, 100, 64)
    layers = [nn.Linear(a, b) for a, b in pairwise(widths)]
    return nn.Sequential(nn.Flatten(), *[m for layer in layers for m in (layer, nn.Tanh())][:-1])


def residual():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 64), *[stale_factors.Block(64) for _ in range(3)], nn.Linear(64, 10)
    )


NETWORKS = {  # with their tasks, and what the loss falls below in 24 steps
    "mlp": (lambda: MLP(in_features=64, hidden_features=64, hidden_layers=4), Classification, 0.3),
    "autoencoder": (autoencoder, Reconstruction, 30.0),
    "residual": (residual, Classification, 1.0),
}


def train(solver, seed, network="mlp"):
    """Losses of the 24 batches of two epochs, and how the layers' solves ended that failed at first."""
    seed_everything(seed)
    make, task, _ = NETWORKS[network]
    module = LocoPropModule(make(), task(), solver, lambda_a=0.1, lambda_r=10, objective="squared", oracle=RMSOracle())
    return stale_factors.fit(module, Digits(batch_size=128), steps=24), list(module.engine.counts.values())


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("network", NETWORKS)
def test_stale_factors_do_not_diverge(network, seed):
    """Refreshed every 10 steps from the first step on, where every layer's inputs change fast."""
    losses, counts = train(ClosedForm(refresh_every=10, warmup=0), seed, network)
    assert max(losses) == losses[0] and losses[-1] < NETWORKS[network][2]
    assert sum(of_layer["retried"] for of_layer in counts) > 5
    assert all(set(of_layer) == {"retried"} for of_layer in counts)


@pytest.mark.parametrize("network", NETWORKS)
def test_without_protection_they_do(network):
    losses, _ = train(stale_factors.Unprotected(refresh_every=10, warmup=0), 0, network)
    assert not max(losses) < 4 * losses[0]


def test_an_edited_lambda_r_holds_on_resume(make_problem):
    before, after = make_problem(lambda_r=1.0), make_problem(lambda_r=1000.0)
    solver = Stateful(ClosedForm(refresh_every=100, warmup=0))
    solver.solve(before)
    resumed = solver.resumed(ClosedForm(refresh_every=100, warmup=0))
    expected = ClosedForm().solve(after).weight
    assert (resumed.solve(after).weight - expected).abs().max() < 1e-12


def test_another_width_under_the_same_name_starts_anew(make_problem):
    solver = Stateful(ClosedForm(refresh_every=100, warmup=0))
    solver.solve(make_problem(d_in=5))
    wider = make_problem(d_in=7, n=20)
    assert (solver.solve(wider).weight - ClosedForm().solve(wider).weight).abs().max() < 1e-12


def test_another_bound_makes_the_factor_anew(make_problem):
    solver = Stateful(Majorization(2, refresh_every=100, warmup=0))
    solver.solve(make_problem("tanh"))
    other = make_problem("sigmoid")
    assert (solver.solve(other).weight - Majorization(2).solve(other).weight).abs().max() < 1e-12


def test_the_first_average_of_a_wide_layer_is_exact(make_problem):
    """So nothing is estimated, and a dominant row cannot have the step refused."""
    problem = make_problem(n=128, d_in=400, lambda_r=0.01)
    rows = problem.operator.rows.clone()
    rows[7] *= 100
    problem = replaced(problem, operator=rows)
    solution = Majorization(3, refresh_every=10, average=0.9, warmup=0).solve(problem)
    assert solution.status is Status.SOLVED and problem.value(joined(solution, problem)) < 0


EXACT = dict(average=0.0, refresh_every=1, warmup=40)
KEEPING = dict(average=0.9, refresh_every=3, warmup=0)


def right(settings):
    return RightPreconditioner(**settings, owner="Owner")


def damped_inverse(problem, bound):
    c = augmented(problem).T @ augmented(problem)
    return torch.linalg.inv(bound * c + problem.lambda_r * torch.eye(len(c), dtype=c.dtype))


@pytest.mark.parametrize("bound", [1.0, 0.25])
@pytest.mark.parametrize("settings", [EXACT, KEEPING], ids=["exact", "kept"])
def test_inverse(make_problem, settings, bound):
    problem, state = make_problem(), {}
    x = torch.randn_like(problem.zeros())
    inverse = right(settings).inverse(problem, state, bound)
    close(inverse.apply(x), x @ damped_inverse(problem, bound), 1e-10)
    assert inverse.judged == 0
    assert bool(state["preconditioner"].keys() & {"inverse", "average"}) == (settings is KEEPING)


def test_an_inverse_of_earlier_batches_is_not_exact(make_problem):
    preconditioner, state, judged = right(KEEPING), {}, []
    for seed in range(5):
        judged.append(preconditioner.inverse(make_problem(seed=seed), state).judged)
        assert state["preconditioner"]["steps"] == seed + 1
    assert judged == [0, 1, 1, 1, 1]
    state, judged, anew = {}, [], right(KEEPING | {"average": 0.0})
    for seed in range(5):
        judged.append(anew.inverse(make_problem(seed=seed), state).judged)
    assert judged == [0, 1, 1, 0, 1]


@pytest.mark.parametrize(
    ("n", "d_in", "exact", "kept"),
    [(12, 5, False, False), (4, 5, True, False), (4, 7, True, False), (4, 8, True, True)],
)
def test_wide_layers_go_through_the_kernel(make_problem, n, d_in, exact, kept):
    """Where nothing is kept with more inputs than rows, else with more than twice as many; the bias is an input."""
    problem = make_problem(n=n, d_in=d_in)
    for settings, expected in ((EXACT, exact), (KEEPING, kept)):
        assert right(settings).uses_kernel(problem) == expected
        assert right(settings).describe(problem) == (f"Owner ({n} x {n} kernel)" if expected else "Owner")


def test_a_step_through_the_kernel_is_counted(make_problem):
    """So that the warmup ends after as many steps of training, whichever way the layer went."""
    preconditioner, state = right(KEEPING), {}
    preconditioner.through_kernel(make_problem(n=4, d_in=9), state)
    assert state["preconditioner"]["steps"] == 1
    preconditioner.inverse(make_problem(), state)
    assert state["preconditioner"]["steps"] == 2


def test_rise_is_the_change_of_j(make_problem):
    problem = make_problem("tanh")
    v = torch.randn_like(problem.zeros())
    assert right(KEEPING).rise(problem, v, 0.0) == 0
    for part in (1.0, 0.25):
        close(right(KEEPING).rise(problem, v, part), problem.value(part * v), 1e-12)
    many = make_problem("tanh", n=100)
    close(right(KEEPING).rise(many, v, 1.0), many.value(v, at_most=32), 1e-12)


def test_a_step_whose_length_is_measured_is_judged_at_a_part_of_it(make_problem):
    """From the eleventh step on, and no other one."""
    for length in (None, 0.1):
        preconditioner, state = right(KEEPING), {}
        judged = [preconditioner.inverse(make_problem(seed=s, length=length), state).judged for s in range(13)]
        problem = make_problem()
        part = 1.0 if length is None else problem.n / (problem.n + problem.shape[1])
        assert judged == [0] + 9 * [1.0] + 3 * [part]


def test_a_batch_has_more_curvature_along_steps_from_its_own_gradient():
    """By 1 + (d + 1)/n over that of the mean C, where rows and gradients are independent: a stale C says no more."""
    generator, (draws, n, d) = torch.Generator().manual_seed(0), (400, 48, 24)
    y, g = (torch.randn(draws, n, k, generator=generator, dtype=torch.float64) for k in (d, 3))
    v = g.mT @ y / n  # C is n times the identity
    seen = (y @ v.mT).square().sum() / (n * v.square().sum())
    assert abs(seen / (1 + (d + 1) / n) - 1) < 0.02


@pytest.mark.parametrize("status", [Status.DIVERGED, Status.NONFINITE])
def test_renew(make_problem, status):
    """A diverged solve is tried again, one that is not finite where the inverse is not, or the batch's gradient is."""
    preconditioner, state, bad = right(KEEPING), {}, make_problem(seed=1)
    bad = replaced(bad, direction=bad.direction * torch.nan)
    assert preconditioner.renew(bad, state, status) is None  # nothing is kept
    preconditioner.inverse(make_problem(), state)
    preconditioner.inverse(make_problem(seed=1), state)
    kept = state["preconditioner"]
    assert preconditioner.renew(bad, state, status) is (state if status is Status.DIVERGED else None)
    if status is Status.NONFINITE:
        assert "inverse" in kept and kept["steps"] == 2
        kept["inverse"] = kept["inverse"] * torch.nan
        assert preconditioner.renew(bad, state, status) is state
    assert "inverse" not in kept and "average" not in kept and kept["steps"] == 1
    problem = make_problem(seed=1)
    x = torch.randn_like(problem.zeros())
    again = preconditioner.inverse(problem, state)
    close(again.apply(x), x @ damped_inverse(problem, 1.0), 1e-10)
    assert again.judged == 0 and kept["steps"] == 2


def test_a_stale_inverse_that_overflows_is_made_anew(make_problem):
    """Of rows that were nearly zero; the batch itself is finite, and so is what it is solved with then."""
    settings = dict(refresh_every=10, warmup=0)
    solver, problem = Stateful(ClosedForm(**settings)), make_problem(dtype=torch.float32, bias=False, lambda_r=1e-30)
    tiny = replaced(problem, operator=problem.operator.rows * 1e-18)
    assert solver.solve(tiny).status is Status.SOLVED
    solution = solver.solve(replaced(problem, direction=problem.direction * 1e10))
    assert solution.status is Status.RETRIED and solution.weight.isfinite().all()


def test_exact_inverses_are_not_renewed(make_problem):
    preconditioner, state, problem = right(EXACT), {}, make_problem()
    preconditioner.inverse(problem, state)
    assert all(preconditioner.renew(problem, state, s) is None for s in (Status.DIVERGED, Status.NONFINITE))


def test_what_is_kept_outlives_one_batch_that_stands_out(make_problem):
    preconditioner, state, spike = right(KEEPING | {"refresh_every": 100}), {}, make_problem(scale=1e3)

    def fails(problem):
        preconditioner.inverse(problem, state)
        return preconditioner.renew(problem, state, Status.DIVERGED)

    preconditioner.inverse(make_problem(), state)
    inverse = state["preconditioner"]["inverse"]
    for _ in range(2):
        assert fails(spike) == {} and state["preconditioner"]["inverse"] is inverse
        preconditioner.inverse(make_problem(seed=4), state)
    assert fails(spike) == {}
    assert fails(spike) is state and "average" not in state["preconditioner"]  # two in a row
