import copy

import numpy as np
import pytest
import torch

from locoprop_lightning.errors import UserError
from locoprop_lightning.optimizers import TensorFlowRMSprop

SETTINGS = [
    {"lr": 0.1},
    {"lr": 0.03, "decay": 0.7, "momentum": 0.9, "eps": 1e-3},
    {"lr": 0.03, "decay": 0.0, "momentum": 0.5, "eps": 1e-10},
]


def parameters():
    generator = torch.Generator().manual_seed(1)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator).double()) for shape in ((3, 2), (4,), ())]


def run(optimizer, params, rates):
    """Steps on 0.5 sum p^4, whose gradient is 2 p^3."""
    for rate in rates:
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        sum(0.5 * (p**4).sum() for p in params).backward()
        optimizer.step()


@pytest.mark.parametrize("settings", SETTINGS)
def test_numpy_loop(settings):
    params = parameters()
    rates = [settings["lr"] * factor for factor in (1.0, 0.5, 0.25, 0.1)]
    expected = []
    decay, momentum, eps = settings.get("decay", 0.9), settings.get("momentum", 0.0), settings.get("eps", 1e-10)
    for p in params:
        w = p.detach().numpy().copy()
        square, step = np.ones_like(w), np.zeros_like(w)
        for rate in rates:
            g = 2 * w**3
            square = decay * square + (1 - decay) * g * g
            step = momentum * step + rate * g / np.sqrt(square + eps)
            w = w - step
        expected.append(w)
    run(TensorFlowRMSprop(params, **settings), params, rates)
    for p, w in zip(params, expected, strict=True):
        np.testing.assert_allclose(p.detach().numpy(), w, rtol=1e-13, atol=1e-15)


def test_first_step_divides_by_the_root_of_a_mean_square_that_starts_at_one():
    p = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    p.grad = torch.full_like(p, 3.0)
    TensorFlowRMSprop([p], lr=0.1).step()
    assert p.item() == pytest.approx(-0.1 * 3 / (0.9 + 0.1 * 9) ** 0.5, rel=1e-9)


def test_state_dict_goes_on_bit_for_bit():
    params = parameters()
    optimizer = TensorFlowRMSprop(params, lr=0.05, momentum=0.9)
    run(optimizer, params, [0.05] * 3)
    others = copy.deepcopy(params)
    resumed = TensorFlowRMSprop(others, lr=1.0)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for own, optim in ((params, optimizer), (others, resumed)):
        run(optim, own, [0.05] * 3)
    assert all(torch.equal(a, b) for a, b in zip(params, others, strict=True))


def test_parameters_without_gradient_stay():
    moved, still = parameters()[:2]
    before = still.detach().clone()
    moved.grad = torch.ones_like(moved)
    optimizer = TensorFlowRMSprop(
        [{"params": [still]}, {"params": [moved, still.detach().clone().requires_grad_()]}], 0.1
    )
    optimizer.step()
    assert torch.equal(still, before)
    assert list(optimizer.state) == [moved]


def test_groups_have_their_own_options_and_the_closure_is_called_once():
    a, b = (torch.nn.Parameter(torch.ones(2, dtype=torch.float64)) for _ in range(2))
    optimizer = TensorFlowRMSprop([{"params": [a]}, {"params": [b], "lr": 0.0}], lr=0.1)
    calls = []

    def closure():
        calls.append(torch.is_grad_enabled())
        loss = (a + b).sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 4.0
    assert calls == [True]
    assert torch.allclose(a, torch.full_like(a, 0.9)) and torch.equal(b, torch.ones_like(b))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr": -1.0}, r"TensorFlowRMSprop\(lr=-1.0\): must be at least 0."),
        ({"lr": float("nan")}, r"TensorFlowRMSprop\(lr=nan\): must be a finite number."),
        ({"decay": 1.0}, r"TensorFlowRMSprop\(decay=1.0\): must be in \[0, 1\)"),
        ({"momentum": -0.1}, r"TensorFlowRMSprop\(momentum=-0.1\): must be in \[0, 1\)"),
        ({"eps": 0.0}, r"TensorFlowRMSprop\(eps=0.0\): must be above 0."),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(UserError, match=message):
        TensorFlowRMSprop(parameters(), **({"lr": 0.1} | arguments))
