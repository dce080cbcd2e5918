import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from locoprop_lightning.local import MatrixOperator
from locoprop_lightning.local.reduction import reduced
from locoprop_lightning.local.transfer import LeakyReLU, Softplus
from locoprop_lightning.local.variants import whole
from tests import catalogue, support
from tests.support import replaced, with_rows

TRANSFERS = ["identity", "relu", LeakyReLU(0.1), "tanh", "sigmoid", "softplus", Softplus(2.0), "softmax"]
every_transfer = pytest.mark.parametrize("transfer", TRANSFERS, ids=str)
both_biases = pytest.mark.parametrize("bias", [True, False])


def augmented(problem):
    """[Y | 1] and [W0 | b0]."""
    y, w = support.augmented(problem), problem.weight
    return y, w if problem.bias is None else torch.cat([w, problem.bias[:, None]], 1)


def close(a, b, tolerance=1e-10):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def displacement(problem, scale=0.3):
    return scale * torch.randn_like(problem.zeros())


@every_transfer
@both_biases
@pytest.mark.parametrize("proximal", [True, False])
def test_gradient_is_autograd_of_value(make_problem, transfer, bias, proximal):
    problem = make_problem(transfer, bias=bias)
    v = displacement(problem).requires_grad_()
    (expected,) = torch.autograd.grad(problem.value(v, proximal), v)
    close(problem.gradient(v.detach(), proximal), expected)


@every_transfer
@both_biases
def test_gradient_formula(make_problem, transfer, bias):
    problem = make_problem(transfer, bias=bias)
    y, w0 = augmented(problem)
    f, v = problem.transfer.f, displacement(problem)
    a, w = y @ w0.T, w0 + v
    target = f(a) - problem.lambda_a * problem.direction
    close(problem.target, target)
    close(problem.gradient(v), (f(y @ w.T) - target).T @ y + problem.lambda_r * v)


@every_transfer
@both_biases
def test_first_gradient(make_problem, transfer, bias):
    problem = make_problem(transfer, bias=bias)
    y, _ = augmented(problem)
    close(problem.first_gradient(), problem.lambda_a * problem.direction.T @ y)
    close(problem.first_gradient(), problem.gradient(problem.zeros()))


def test_a_shorter_way_to_the_first_gradient_is_taken(make_problem):
    """And not the direction, which may be dear to make; once."""
    made, product = [], torch.randn(3, 6, dtype=torch.float64)

    def weight_direction():
        made.append(1)
        return product.clone()

    def direction():
        raise AssertionError("the direction is not needed")

    problem = replaced(make_problem(), direction=direction, weight_direction=weight_direction)
    assert not made
    assert torch.equal(problem.first_gradient(), problem.lambda_a * product)
    assert problem.first_gradient() is problem.first_gradient() and made == [1]


def test_where_there_is_no_shorter_way_the_rows_give_the_first_gradient(make_problem):
    problem = make_problem()
    without = replaced(problem, weight_direction=lambda: None)
    assert torch.equal(without.first_gradient(), problem.first_gradient())


def test_gram_is_made_once(make_problem):
    problem = make_problem()
    y, _ = augmented(problem)
    close(problem.gram(), y.T @ y)
    assert problem.gram() is problem.gram()


def test_pre_activation_is_made_once_and_when_needed(make_problem):
    made, known = make_problem("tanh"), []
    lazy = replaced(made, pre_activation=lambda: known.append(1) or made.pre_activation)
    close(lazy.first_gradient(), made.first_gradient())
    close(lazy.first_loss(), made.first_loss())
    assert not known
    v = displacement(made)
    for _ in range(2):
        close(lazy.gradient(v), made.gradient(v))
        close(lazy.value(v), made.value(v))
    assert known == [1]
    squared = replaced(make_problem(), pre_activation=lambda: known.append(2) or made.pre_activation)
    squared.gradient(v)
    squared.loss(v)
    assert known == [1]  # the squared loss does without


@both_biases
def test_gram_kernel_and_trace(make_problem, bias):
    problem = make_problem(bias=bias)
    y, w = augmented(problem)
    close(problem.operator.gram(), y.T @ y)
    close(problem.operator.kernel(), y @ y.T)
    close(problem.operator.trace(), torch.trace(y.T @ y))
    assert problem.zeros().shape == w.shape
    v = displacement(problem)
    close(problem.operator.apply(v), y @ v.T)
    close(problem.operator.adjoint(problem.direction), problem.direction.T @ y)


@every_transfer
def test_value_is_the_change_of_the_matching_loss(make_problem, transfer):
    """Against sum D_F(W y, f^-1(T)), up to a constant: F(a) - T a."""
    problem = make_problem(transfer)
    y, w0 = augmented(problem)
    v = displacement(problem)

    def matching(w):
        a = y @ w.T
        return problem.transfer.F(a).sum() - (problem.target * a).sum() + problem.lambda_r / 2 * (w - w0).square().sum()

    close(problem.value(v), matching(w0 + v) - matching(w0))


def test_loss_is_the_local_loss_of_s(make_problem):
    problem = make_problem()
    y, w0 = augmented(problem)
    v = displacement(problem)
    expected = (y @ (w0 + v).T - problem.target).square().sum() / 2 + problem.lambda_r / 2 * v.square().sum()
    close(problem.loss(v), expected / problem.n)
    close(problem.first_loss(), problem.loss(problem.zeros()))


def test_target_out_of_range_has_a_value(make_problem):
    problem = make_problem("tanh", lambda_a=100.0)
    assert (problem.target.abs() > 1).any()
    assert problem.value(displacement(problem)).isfinite()


@every_transfer
@pytest.mark.parametrize("proximal", [True, False])
def test_value_on_a_sample_of_rows(make_problem, transfer, proximal):
    problem = make_problem(transfer, n=11)
    v = displacement(problem)
    for rows in (11, 100):
        close(problem.value(v, proximal, at_most=rows), problem.value(v, proximal))
    y, _ = augmented(problem)
    part = [0, 2, 6, 9]  # 11 times the fractions of 0, 1, 2 and 3 golden ratios
    divergence = problem.transfer.divergence(y[part] @ v.T, problem.pre_activation[part]).sum() * 11 / 4
    expected = divergence + problem.lambda_a * (problem.direction * (y @ v.T)).sum()
    if proximal:
        expected = expected + problem.lambda_r / 2 * v.square().sum()
    close(problem.value(v, proximal, at_most=4), expected)


def test_value_on_a_sample_of_repeated_rows_is_exact(make_problem):
    problem = with_rows(make_problem("tanh", n=12), [0] * 12)
    v = displacement(problem)
    close(problem.value(v, at_most=4), problem.value(v))


def test_direction_is_made_once_and_when_needed(make_problem):
    made, known = make_problem(), []

    def direction():
        known.append(1)
        return made.direction

    weight_direction = lambda: made.first_gradient() / made.lambda_a  # noqa: E731
    lazy = replaced(made, direction=direction, weight_direction=weight_direction)
    v = displacement(made)
    close(lazy.gradient(v), made.gradient(v))
    close(lazy.value(v), made.value(v))
    assert not known
    close(lazy.target, made.target)
    close(lazy.first_loss(), made.first_loss())
    assert known == [1]


@both_biases
@pytest.mark.parametrize("proximal", [True, False])
def test_gram_form_of_the_gradient(make_problem, bias, proximal):
    problem = make_problem(bias=bias)
    y, _ = augmented(problem)
    v = displacement(problem)
    by_rows = problem.gradient(v, proximal)
    close(problem.curvature(v), v @ (y.T @ y))
    problem.uses_gram = True
    close(problem.gradient(v, proximal), by_rows)
    close(problem.curvature(v), v @ (y.T @ y))


@pytest.mark.parametrize("known", [False, True], ids=["gram_to_make", "gram_known"])
def test_plan_counts_operations(make_problem, known):
    """Against torch's own count of what the gradients take; without a bias, whose sums are not counted."""
    forms = set()
    for n in (3, 6, 12, 24):
        for d_in in (4, 7, 13):
            for gradients in (0, 1, 2, 9):
                costs = {}
                for uses_gram in (True, False):
                    problem = make_problem(n=n, d_in=d_in, bias=False)
                    v, _ = displacement(problem), problem.first_gradient()
                    if known:
                        problem.gram()
                    problem.uses_gram = uses_gram
                    with FlopCounterMode(display=False) as counter:
                        for _ in range(gradients):
                            problem.gradient(v)
                    costs[uses_gram] = counter.get_total_flops()
                problem = make_problem(n=n, d_in=d_in, bias=False)
                if known:
                    problem.gram()
                cost = problem.plan(gradients)
                assert problem.uses_gram == (costs[True] < costs[False])
                assert cost == costs[problem.uses_gram]
                if known and gradients:
                    assert problem.uses_gram == (d_in < 2 * n)
                forms.add(problem.uses_gram)
    assert forms == {True, False}


def test_plan_of_a_matching_loss_is_by_rows(make_problem):
    problem = make_problem("tanh", n=100, d_in=2)
    problem.plan(50)
    assert not problem.uses_gram
    problem = make_problem(n=100, d_in=2)
    problem.plan(50)
    assert problem.uses_gram


@every_transfer
def test_zero_direction_gives_exactly_zero(make_problem, transfer):
    problem = make_problem(transfer)
    problem = replaced(problem, direction=torch.zeros_like(problem.direction))
    assert (problem.first_gradient() == 0).all()
    assert (problem.value(problem.zeros()) == 0).all()
    assert problem.loss(problem.zeros()) == 0


@both_biases
def test_split(make_problem, bias):
    problem = make_problem(bias=bias)
    v = displacement(problem)
    weight, b = problem.split(v)
    assert weight.shape == problem.weight.shape
    assert (b is None) == (not bias)
    if b is not None:
        assert b.shape == problem.bias.shape


@every_transfer
@both_biases
def test_reduced_problem_is_the_same(make_problem, transfer, bias):
    problem = make_problem(transfer, n=4, d_in=9, bias=bias)
    small, lift = reduced(problem)
    assert small.shape == (3, 4)
    x = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    v = lift(x)
    close(problem.value(v), small.value(x))
    close(problem.gradient(v), lift(small.gradient(x)))
    close(v @ v.T, x @ x.T)


def test_reduced_problem_of_dependent_rows(make_problem):
    problem = make_problem("tanh", n=4, d_in=9)
    problem = replaced(problem, operator=problem.operator.select(torch.tensor([0, 0, 1, 1])))
    small, lift = reduced(problem)
    gradient = lift(small.first_gradient())
    close(gradient, problem.operator.adjoint(problem.direction) * problem.lambda_a)
    close(problem.value(gradient), small.value(small.first_gradient()))


def test_reduced_problem_of_zeros_and_of_nan(make_problem):
    problem = make_problem(n=4, d_in=9, bias=False)
    problem = replaced(problem, operator=torch.zeros_like(problem.operator.rows))
    small, lift = reduced(problem)
    assert (lift(torch.ones(3, 4, dtype=torch.float64)) == 0).all()
    problem = replaced(problem, operator=problem.operator.rows * torch.nan)
    assert reduced(problem)[0].operator.rows.isnan().all()


def test_what_is_logged_of_a_problem(make_problem):
    problem = make_problem("tanh", lambda_a=3.0, scale=2.0)
    outside = (problem.target.abs() > 1).double().mean().item()
    assert 0 < outside < 1 and problem.out_of_range().item() == pytest.approx(outside)
    assert make_problem("identity", lambda_a=3.0, scale=2.0).out_of_range() == 0
    relu = make_problem("relu", lambda_a=1e-9)
    assert 0 <= relu.out_of_range() < 1  # a target of exactly zero is in range
    v = torch.randn_like(problem.zeros())
    start = torch.cat([problem.weight.flatten(), problem.bias])
    assert problem.relative(v).item() == pytest.approx((v.norm() / start.norm()).item())
    assert problem.relative(problem.zeros()) == 0


@both_biases
def test_inputs_of_a_linear_layer_are_its_operator(make_problem, bias):
    problem = make_problem(bias=bias)
    assert type(problem.operator) is MatrixOperator and problem.operator.bias == bias
    operator = problem.operator
    assert replaced(problem, operator=operator).operator is operator
    assert problem.shape == (3, 5 + bias) and problem.n == 12 and repr(problem).startswith("LocalProblem('layer', n=12")


def test_a_problem_with_all_rows_at_hand_is_whole(make_problem):
    problem = make_problem()
    assert whole(problem) is problem


def test_groups_do_without_gram(make_problem):
    """Where there is one C for each group, counting operations never chooses it."""
    problem = make_problem(n=100, d_in=2)
    assert problem.gram_cost() < math.inf
    problem.gram()
    assert problem.gram_cost() == 0
    grouped = catalogue.problem("groups", n=10)
    for _ in range(2):
        assert grouped.gram_cost() == math.inf
        grouped.plan(50)
        assert not grouped.uses_gram
        grouped.gram()  # even where it is known
