import pytest
import torch

from locoprop_lightning.errors import UserError
from locoprop_lightning.solvers import GradientDescent
from tests.support import augmented, close, joined


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_published_steps_are_a_polynomial(make_problem, steps):
    problem = make_problem()
    eta = 0.3 / torch.linalg.eigvalsh(problem.operator.gram()).max().item()
    y = augmented(problem)
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


def test_arguments():
    for make, message in [
        (lambda: GradientDescent(rate=0.0), r"GradientDescent\(rate=0.0\): must be above 0"),
        (lambda: GradientDescent(schedule="linear"), r"GradientDescent\(schedule='linear'\): take one of constant, pu"),
    ]:
        with pytest.raises(UserError, match=message):
            make()
