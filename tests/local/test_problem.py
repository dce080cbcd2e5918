import pytest
import torch

from locoprop_lightning.local.transfer import LeakyReLU, Softplus

TRANSFERS = ["identity", "relu", LeakyReLU(0.1), "tanh", "sigmoid", "softplus", Softplus(2.0), "softmax"]
every_transfer = pytest.mark.parametrize("transfer", TRANSFERS, ids=str)
both_biases = pytest.mark.parametrize("bias", [True, False])


def augmented(problem):
    """[Y | 1] and [W0 | b0]."""
    y, w = problem.map.rows, problem.weight
    if problem.bias is None:
        return y, w
    return torch.cat([y, torch.ones_like(y[:, :1])], 1), torch.cat([w, problem.bias[:, None]], 1)


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
    close(problem.first_gradient, problem.lambda_a * problem.direction.T @ y)
    close(problem.first_gradient, problem.gradient(problem.zeros()))


def test_known_first_gradient_is_used(make_problem):
    known = torch.ones(3, 6, dtype=torch.float64)
    assert make_problem(first_gradient=known).first_gradient is known


@both_biases
def test_gram_kernel_and_trace(make_problem, bias):
    problem = make_problem(bias=bias)
    y, w = augmented(problem)
    close(problem.map.gram(), y.T @ y)
    close(problem.map.kernel(), y @ y.T)
    close(problem.map.trace(), torch.trace(y.T @ y))
    assert problem.zeros().shape == w.shape
    v = displacement(problem)
    close(problem.map.apply(v), y @ v.T)
    close(problem.map.adjoint(problem.direction), problem.direction.T @ y)


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


def test_sample(make_problem):
    problem = make_problem("tanh", n=12)
    v = displacement(problem)
    close(problem.sample(12).value(v), problem.value(v))
    close(problem.sample(100).value(v), problem.value(v))
    part = problem.sample(5)
    assert part.n <= 5 and part.row_weight == 12 / part.n
    doubled = make_problem("tanh", n=12)
    doubled.map.rows = doubled.map.rows[:4].repeat_interleave(3, 0)
    doubled.pre_activation = doubled.pre_activation[:4].repeat_interleave(3, 0)
    doubled.direction = doubled.direction[:4].repeat_interleave(3, 0)
    sample = doubled.sample(4)
    close(sample.value(v), doubled.value(v))
    close(sample.gradient(v), doubled.gradient(v))
    close(sample.first_gradient, doubled.first_gradient)


@every_transfer
def test_zero_direction_gives_exactly_zero(make_problem, transfer):
    problem = make_problem(transfer)
    problem.direction = torch.zeros_like(problem.direction)
    assert (problem.first_gradient == 0).all()
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
