import pytest
import torch
from torch import nn

from locoprop_lightning.errors import UserError
from locoprop_lightning.optimizers import FullPrecisionMuon, SplitOptimizer
from locoprop_lightning.optimizers.muon import orthogonalize


def by_singular_values(x, steps):
    """The quintic iteration on singular values alone."""
    u, s, vh = torch.linalg.svd(x / x.norm(), full_matrices=False)
    for _ in range(steps):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return u @ torch.diag(s) @ vh


@pytest.mark.parametrize("shape", [(5, 5), (3, 7), (8, 2), (1, 4)])
@pytest.mark.parametrize("steps", [1, 5])
def test_orthogonalize(shape, steps):
    x = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(orthogonalize(x, steps), by_singular_values(x, steps), rtol=1e-9, atol=1e-9)
    assert (orthogonalize(torch.zeros_like(x), steps) == 0).all()


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_steps_like_torch(nesterov, weight_decay):
    """Torch's own iterates in bfloat16, so the two agree to a few of its digits only."""
    start = torch.randn(6, 10)
    moved = []
    for make in (FullPrecisionMuon, torch.optim.Muon):
        p = nn.Parameter(start.clone())
        options = {} if make is FullPrecisionMuon else {"adjust_lr_fn": "match_rms_adamw"}
        optimizer = make([p], lr=0.1, momentum=0.9, nesterov=nesterov, weight_decay=weight_decay, **options)
        generator = torch.Generator().manual_seed(3)
        for _ in range(4):
            p.grad = torch.randn(6, 10, generator=generator)
            optimizer.step()
        moved.append(p.detach() - start)
    assert (moved[0] - moved[1]).norm() < 0.03 * moved[1].norm()


def test_a_convolution_is_a_matrix():
    start, gradient = torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2)
    moved = []
    for shape in ((4, 3, 2, 2), (4, 12)):
        p = nn.Parameter(start.reshape(shape).clone())
        p.grad = gradient.reshape(shape)
        FullPrecisionMuon([p], lr=0.1).step()
        moved.append(p.detach().reshape(4, 12))
    assert torch.equal(*moved)


def test_split_gives_convolutions_to_the_matrices_if_asked():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Linear(3, 3), nn.BatchNorm1d(3))
    split = SplitOptimizer(
        net.parameters(), lambda p: FullPrecisionMuon(p), lambda p: torch.optim.AdamW(p), convolutions=True
    )
    matrix, other = split.param_groups
    assert [p.ndim for p in matrix["params"]] == [4, 2]
    assert [p.ndim for p in other["params"]] == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr=-1.0"),
        ({"momentum": 1.0}, "momentum=1.0"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1"),
        ({"ns_steps": 0}, "ns_steps=0"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(UserError, match=message):
        FullPrecisionMuon([nn.Parameter(torch.zeros(2, 2))], **options)


def test_vectors_are_refused():
    with pytest.raises(UserError, match=r"not a parameter of shape \(3,\)"):
        FullPrecisionMuon([nn.Parameter(torch.zeros(3))])
