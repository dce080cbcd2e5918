"""The driver loop: what a step gives, what it is given, and what becomes of it."""

import pytest
import torch

from locoprop_lightning.errors import UserError
from locoprop_lightning.solvers import FixedPointIteration, IterativeSolver, LocalSolver, Recording, Status, Step
from tests.support import close

both_transfers = pytest.mark.parametrize("transfer", ["identity", "tanh"])
RATE = 0.01


class Plain(IterativeSolver):
    """Gradient steps that say nothing of themselves."""

    def step(self, problem, v, gradient, k, carry):
        return Step(v - RATE * gradient)


class Said(Plain):
    """The same, which says what is the case if not said."""

    def step(self, problem, v, gradient, k, carry):
        point = v - RATE * gradient
        return Step(point, None, torch.linalg.vector_norm(gradient), point.clone())


def test_defaults_of_a_step():
    step = Step(torch.zeros(2))
    assert step.carry is None and step.residual is None and step.solution is None


@both_transfers
@pytest.mark.parametrize("iterations", [1, 2, 6])
def test_defaults_are_the_norm_of_the_gradient_and_the_point(make_problem, transfer, iterations):
    problem = make_problem(transfer)
    plain, said = (make(iterations).run(problem, {}, Recording.CURVE) for make in (Plain, Said))
    assert torch.equal(plain.displacement, said.displacement) and torch.equal(plain.losses, said.losses)
    assert torch.equal(plain.growth, said.growth)
    v = gradient = problem.zeros()
    norms = []
    for _ in range(iterations):
        gradient = problem.gradient(v)
        norms.append(gradient.norm())
        v = v - RATE * gradient
    close(plain.displacement, v, 1e-12)
    close(plain.growth, norms[-1] - norms[0], 1e-11)


@pytest.mark.parametrize(
    ("residuals", "status"),
    [
        ([1, 5, 2], Status.DIVERGED),
        ([2, 5, 1], Status.SOLVED),
        ([1, torch.nan, 1], Status.SOLVED),  # those of the first and the last step count
        ([1, 0, torch.nan], Status.NONFINITE),
        ([3], Status.SOLVED),
    ],
)
def test_residuals_of_the_first_and_last_step_count(make_problem, residuals, status):
    class Residuals(Plain):
        def step(self, problem, v, gradient, k, carry):
            return Step(v, residual=v.new_tensor(residuals[k]))

    assert Residuals(len(residuals)).solve(make_problem()).status is status


def test_the_solution_of_the_last_step_is_the_solution(make_problem):
    """The next gradient is taken at the point, the curve at the solutions."""

    class Apart(IterativeSolver):
        def step(self, problem, v, gradient, k, carry):
            points.append(v)
            assert torch.equal(gradient, problem.gradient(v) if k else problem.first_gradient())
            return Step(v + 0.1, solution=problem.zeros() + k)

    points, problem = [], make_problem("tanh")
    solution = Apart(3).solve(problem, recording=Recording.CURVE)
    assert torch.equal(solution.displacement, problem.zeros() + 2)
    close(torch.stack(points)[:, 0, 0], torch.tensor([0.0, 0.1, 0.2], dtype=torch.float64), 1e-15)
    losses = [problem.first_loss(), *(problem.loss(problem.zeros() + k) for k in range(3))]
    assert torch.equal(solution.losses, torch.stack(losses))
    ends = Apart(3).solve(problem, recording=Recording.ENDS).losses
    assert torch.equal(ends, solution.losses[[0, -1]])
    assert Apart(3).solve(problem).losses is None


def test_what_a_step_carries_is_given_to_the_next(make_problem):
    class Carrying(IterativeSolver):
        def init(self, problem, state):
            state["begun"] = True
            return ["init"]

        def step(self, problem, v, gradient, k, carry):
            return Step(v - RATE * gradient, [*carry, k])

        def growth(self, problem, v, first, last, carry):
            assert carry == ["init", 0, 1, 2] and torch.equal(v, found[0])
            return last.new_zeros(())

        def learnt(self, carry):
            return carry

        def keep(self, state, outcome):
            state["learnt"] = outcome.learnt

    problem, state = make_problem(), {}
    found = [Plain(3).solve(problem).displacement]
    Carrying(3).solve(problem, state)
    assert state == {"begun": True, "learnt": ["init", 0, 1, 2]}


def test_nothing_is_learnt_unless_said(make_problem):
    assert Plain(3).run(make_problem(), {}, Recording.NOTHING).learnt is None
    assert FixedPointIteration(3).run(make_problem(), {}, Recording.NOTHING).learnt is None


@pytest.mark.parametrize("iterations", [1, 2, 7])
def test_iterations_cost_one_gradient_less(make_problem, monkeypatch, iterations):
    problem, planned, gradients = make_problem("tanh"), [], []
    gradient = type(problem).gradient
    monkeypatch.setattr(type(problem), "gradient", lambda *a: gradients.append(1) or gradient(*a))
    monkeypatch.setattr(type(problem), "plan", lambda self, count: planned.append(count) or 0.0)
    for recording in Recording:
        planned.clear()
        gradients.clear()
        Plain(iterations).solve(problem, recording=recording)
        assert planned == [iterations - 1] and len(gradients) == iterations - 1


@both_transfers
@pytest.mark.parametrize("proximal", [True, False])
def test_proximal_term(make_problem, transfer, proximal):
    class Choosing(Plain):
        pass

    Choosing.proximal = proximal
    problem = make_problem(transfer)
    v = problem.zeros()
    for _ in range(4):
        v = v - RATE * problem.gradient(v, proximal)
    close(Choosing(4).solve(problem).displacement, v, 1e-12)


def test_arguments():
    with pytest.raises(UserError, match=r"Plain\(iterations=0\): must be at least 1"):
        Plain(0)
    with pytest.raises(UserError, match=r"FixedPointIteration\(iterations=0\): must be at least 1"):
        FixedPointIteration(0)
    with pytest.raises(UserError, match=r"Plain\(iterations=2.5\): must be a whole number"):
        Plain(2.5)


def test_what_a_step_must_return_is_said(make_problem):
    class Wrong(FixedPointIteration):
        def __init__(self, result):
            super().__init__(2)
            self.result = result

        def step(self, problem, v, gradient, k, carry):
            return self.result

    problem = make_problem(d_in=5, d_out=4)
    for result, message in [
        (problem.zeros(), r"Wrong.step: must return a Step, not Tensor"),
        (None, r"Wrong.step: must return a Step, not NoneType"),
        (Step(problem.zeros().t()), r"Wrong.step: its point is \[6, 4\] of torch.float64, and must be \[4, 6\] of"),
    ]:
        with pytest.raises(UserError, match=message):
            Wrong(result).solve(problem)


def test_what_solve_takes_is_said(make_problem):
    class Wrong(LocalSolver):
        def run(self, problem, state, recording):
            return problem.zeros()

    for call, message in [
        (
            lambda: FixedPointIteration(2).solve(make_problem(), recording=True),
            r"solve\(recording=True\): must be Recording.NOTHING",
        ),
        (lambda: FixedPointIteration(2).solve(make_problem(), True), r"solve\(state=True\): must be a dictionary"),
        (lambda: Wrong().solve(make_problem()), "Wrong.run: must return an Outcome, not Tensor"),
    ]:
        with pytest.raises(UserError, match=message):
            call()


def test_a_solution_has_no_graph(make_problem):
    problem = make_problem()
    problem.weight.requires_grad_()
    solution = FixedPointIteration(2).solve(problem)
    assert not solution.weight.requires_grad and not solution.bias.requires_grad
