"""States that hold objects are saved without them, and go on as they were."""

import copy
import io
from functools import partial

import pytest
import pytorch_optimizer
import torch
from torch import nn
from torch.optim import SGD

from locoprop_lightning.errors import UserError
from locoprop_lightning.optimizers import SplitOptimizer, owned_parameters
from locoprop_lightning.optimizers.factory import optimizer_from

# Preconditions from the third step on, with a preconditioner that is made anew every other step.
shampoo = partial(
    pytorch_optimizer.ScalableShampoo,
    lr=0.01,
    start_preconditioning_step=3,
    preconditioning_compute_steps=2,
    graft_type=3,
)
OPTIMIZERS = {"shampoo": shampoo, "split": lambda p: SplitOptimizer(p, shampoo, partial(SGD, lr=0.1))}
every_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)


def made(make):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))
    return network, optimizer_from("optimizer", make, owned_parameters(network))


def train(network, optimizer, steps):
    for step in steps:
        x = torch.randn(20, 6, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        network(x).square().mean().backward()
        optimizer.step()


@every_optimizer
def test_a_state_without_objects_goes_on_as_it_was(make):
    whole, optimizer = made(make)
    train(whole, optimizer, range(6))
    file = io.BytesIO()
    torch.save([whole.state_dict(), optimizer.state_dict()], file)
    train(whole, optimizer, range(6, 12))
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)  # which reads no objects
    resumed, again = made(make)
    resumed.load_state_dict(weights)
    again.load_state_dict(state)
    train(resumed, again, range(6, 12))
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "path",
    [
        "subprocess:Popen",
        "torch.nn.modules.linear:Linear",
        "pytorch_optimizer.optimizer.utils.graft:torch",
        "pytorch_optimizer.optimizer.utils.graft:Lost",
        "pytorch_optimizer.lost:Graft",
    ],
)
def test_no_object_is_made_but_the_optimizers_own(path):
    network, optimizer = made(shampoo)
    train(network, optimizer, range(2))
    state = copy.deepcopy(optimizer.state_dict())
    state["state"][0]["graft"]["object of class"] = path
    with pytest.raises(UserError, match=f"holds an object of {path}, which is no class of pytorch_optimizer here"):
        optimizer.load_state_dict(state)
