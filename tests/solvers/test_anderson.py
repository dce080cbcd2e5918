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
