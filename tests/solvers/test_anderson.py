import weakref

import pytest
import torch

from locoprop_lightning.errors import UserError
from locoprop_lightning.solvers import AndersonAcceleration, ClosedForm, FixedPointIteration, Recording, Status
from tests.support import close, joined, replaced, with_units


def test_converges_where_the_fixed_point_does_not(make_problem):
    problem = make_problem(n=20, d_in=4)
    problem = replaced(problem, lambda_r=torch.linalg.eigvalsh(problem.operator.gram()).max().item() / 4)
    exact = joined(ClosedForm().solve(problem), problem)
    for safeguard in (True, False):
        solution = AndersonAcceleration(60, memory=8, ridge=1e-14, safeguard=safeguard).solve(problem)
        assert solution.status is Status.SOLVED
        close(joined(solution, problem), exact, 1e-7)
    assert FixedPointIteration(60).solve(problem).status is Status.DIVERGED


def test_units_are_independent(make_problem):
    problem = make_problem("tanh", lambda_r=30.0)
    whole = AndersonAcceleration(6).solve(problem)
    one = with_units(problem, slice(0, 1))
    close(AndersonAcceleration(6).solve(one).weight, whole.weight[:1], 1e-12)


def by_the_reviews_code(problem, evaluations, memory=5, ridge=1e-4):
    """Its iteration: each unit has a bordered system, the ridge is absolute, and the last evaluation goes unused."""
    v = torch.zeros(problem.shape, dtype=torch.float64)

    def plain(v):
        return v - problem.gradient(v) / problem.lambda_r

    points, images = [v], [plain(v)]
    points.append(images[0])
    images.append(plain(points[1]))
    for _ in range(2, evaluations):
        x, f = torch.stack(points[-memory:], 1), torch.stack(images[-memory:], 1)  # [units, kept, width]
        r = f - x
        kept = r.shape[1]
        bordered = torch.zeros(len(v), kept + 1, kept + 1, dtype=torch.float64)
        bordered[:, 0, 1:] = bordered[:, 1:, 0] = 1.0
        bordered[:, 1:, 1:] = r @ r.mT + ridge * torch.eye(kept, dtype=torch.float64)
        ones = torch.zeros(len(v), kept + 1, 1, dtype=torch.float64)
        ones[:, 0] = 1.0
        alpha = torch.linalg.solve(bordered, ones)[:, 1:]
        points.append((alpha.mT @ f)[:, 0])
        images.append(plain(points[-1]))
    return points[-1]


@pytest.mark.parametrize("transfer", ["identity", "tanh"])
def test_the_iteration_of_the_reviews_code(make_problem, transfer):
    problem = make_problem(transfer, lambda_r=30.0, lambda_a=3.0)
    solver = AndersonAcceleration(9, 5, ridge=1e-4, safeguard=False, relative_ridge=False)
    expected = by_the_reviews_code(problem, 10)
    close(joined(solver.solve(problem), problem), expected, 1e-12)
    ours = joined(AndersonAcceleration(9, 5, ridge=1e-4, safeguard=False).solve(problem), problem)
    assert (ours - expected).abs().max() > 1e-6 * expected.abs().max()


@pytest.mark.parametrize("safeguard", [True, False])
def test_the_history_is_freed(make_problem, safeguard):
    """It is as large as ``memory`` solutions; neither the outcome nor the state holds it."""

    class Watched(AndersonAcceleration):
        def init(self, problem, state):
            history = super().init(problem, state)
            histories.append(weakref.ref(history))
            return history

    histories, state = [], {}
    solver = Watched(5, safeguard=safeguard)
    outcome = solver.run(make_problem(), state, Recording.NOTHING)
    assert outcome.learnt is None and not state
    solution = solver.solve(make_problem(), state, Recording.CURVE)
    assert solution.status is Status.SOLVED and not state
    assert len(histories) == 2 and all(history() is None for history in histories)


def test_arguments():
    for make, message in [
        (lambda: AndersonAcceleration(iterations=-2), r"AndersonAcceleration\(iterations=-2\)"),
        (lambda: AndersonAcceleration(memory=0), r"memory=0\): must be at least 1"),
        (lambda: AndersonAcceleration(ridge=0.0), r"ridge=0.0\): must be above 0"),
        (lambda: AndersonAcceleration(beta=-1.0), r"beta=-1.0\): must be above 0"),
    ]:
        with pytest.raises(UserError, match=message):
            make()
