"""Rows of layers that act at several positions of a sample: K-FAC's "reduce" (Eschenhagen et al., 2023)."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev

from locoprop_lightning import LocoPropModule, UserError
from locoprop_lightning.data import Digits
from locoprop_lightning.distributed import Communicator, share_batch
from locoprop_lightning.local.blocks import Blocks
from locoprop_lightning.local.preconditioner import average_of
from locoprop_lightning.oracles import GradientOracle, Oracle, RMSOracle, SpectralOracle, WhitenedOracle
from locoprop_lightning.solvers import ClosedForm, FixedPointIteration, Recording
from locoprop_lightning.tasks import Classification
from tests.support import quiet_trainer
from tests.test_engine import engine_of


class Pooled(nn.Sequential):
    """Layers, and the mean over the positions of what they give."""

    def __init__(self, *layers, positions):
        super().__init__(*layers)
        self.positions = positions

    def forward(self, x):
        return super().forward(x).mean(self.positions)


def tokens(bias=False):
    """A deep linear network on sequences [N, 5, 3], fewer inputs than samples and at most as many units as outputs."""
    layers = nn.Linear(3, 4, bias=bias), nn.Linear(4, 3, bias=bias), nn.Linear(3, 4, bias=bias)
    return Pooled(*layers, positions=1).double(), torch.randn(7, 5, 3, dtype=torch.float64)


def images(bias=False):
    """The same of convolutions, the first of which pads, on images [N, 2, 4, 5]."""
    layers = nn.Conv2d(2, 4, 2, stride=2, padding=1, bias=bias), nn.Conv2d(4, 4, 1, bias=bias)
    return Pooled(*layers, positions=(2, 3)).double(), torch.randn(9, 2, 4, 5, dtype=torch.float64)


def grouped():
    layers = nn.Conv2d(4, 4, 2, groups=2, bias=False), nn.Conv2d(4, 4, 1, bias=False)
    return Pooled(*layers, positions=(2, 3)).double(), torch.randn(9, 4, 3, 3, dtype=torch.float64)


def problems_of(network, x, oracle, shared_rows, draws=(), target=None, rounded=False):
    """Engine and problems of one step on half the squared distance to a target, and of draws from it."""
    engine = engine_of(network, ClosedForm(), x, oracle, shared_rows=shared_rows, lambda_r=1e-3)
    network.zero_grad()
    with engine.tape(network, Communicator()) as tape:
        output = network(x)
    target = torch.randn_like(output) if target is None else target
    sampled = [tape.gradients((output * draw).sum() / len(x)) for draw in draws]
    ((output - target).square().sum() / 2 / len(x)).backward()
    for record in tape.records.values():
        record.autocast = rounded
    batch = share_batch(Communicator(), x, output, len(x), Recording.NOTHING)
    return engine, engine.problems(tape, sampled, batch)


def fisher(network, name, x):
    """The block of a weight [d_out d_in, d_out d_in] of the Gauss-Newton matrix, of half the squared error's mean."""
    parameters = dict(network.named_parameters())

    def output(weight):
        return functional_call(network, {**parameters, name: weight}, (x,))

    jacobian = jacrev(output)(parameters[name].detach())  # [N, c, *weight]
    flat = jacobian.reshape(-1, parameters[name].numel())
    return flat.T @ flat / len(x)


@pytest.mark.parametrize("make", [tokens, images])
def test_exact_on_deep_linear_networks(make):
    """C/N x S is the Gauss-Newton matrix where the loss is of the mean over positions; expanded rows give another."""
    network, x = make()
    c = network(x).shape[1]
    draws = [c**0.5 * torch.eye(c, dtype=x.dtype)[i] for i in range(c)]  # whose mean second moment is the identity
    for shared_rows, exact in (("reduce", True), ("expand", False)):
        engine, problems = problems_of(network, x, WhitenedOracle(beta=0.0, damping=1e-9), shared_rows, draws)
        for name, problem in problems.items():
            second = average_of(engine.layers[name].oracle_state["preconditioner"]["average"])
            product = torch.kron(second, problem.gram() / problem.n)
            dense = fisher(network, f"{name}.weight", x)
            assert bool((product - dense).norm() < 1e-10 * dense.norm()) is exact, name


@pytest.mark.parametrize("make", [tokens, images, lambda: tokens(bias=True), lambda: images(bias=True)])
@pytest.mark.parametrize(
    "oracle",
    [GradientOracle(), RMSOracle(), WhitenedOracle(samples=0, damping=0.1), SpectralOracle(damping=0.1)],
    ids=repr,
)
def test_solutions_have_the_true_weight_gradient(make, oracle):
    """V = -lambda_a R (G^T Y) (C + lambda_r)^-1 with C of mean inputs and R of summed gradients."""
    network, x = make()
    engine, problems = problems_of(network, x, oracle, "reduce")
    solutions = ClosedForm().solve_all(problems, {name: {} for name in problems})
    for name, layer in engine.layers.items():
        problem = problems[name]
        assert problem.n == len(x)
        c = problem.gram()
        inverse = torch.linalg.inv(c + problem.lambda_r * torch.eye(len(c), dtype=c.dtype))
        b = oracle.weight_direction(torch.cat(layer.gradients(), 1).clone(), len(x), layer.oracle_state)
        torch.testing.assert_close(solutions[name].displacement, -0.7 * b @ inverse, rtol=1e-7, atol=1e-9)


def test_the_weight_gradient_where_none_can_be_reused():
    """As under autocast, whose rounding a product over the rows does without."""
    network, x = tokens(bias=True)
    found = {}
    for rounded in (False, True):
        target = torch.ones(len(x), 4, dtype=x.dtype)
        _, problems = problems_of(network, x, RMSOracle(), "reduce", target=target, rounded=rounded)
        found[rounded] = {name: problem.first_gradient() for name, problem in problems.items()}
    for name, gradient in found[True].items():
        torch.testing.assert_close(gradient, found[False][name])


@pytest.mark.parametrize("bias", [False, True])
def test_padding_counts_neither_in_means_nor_as_rows(bias):
    """A batch with padded positions, and samples of nothing else, has the problems of its samples without padding."""

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 4, bias=bias), nn.Linear(4, 3, bias=bias)

        def forward(self, x):
            return self.b(self.a(x))

    network = Masked().double()
    x, lengths = torch.randn(4, 5, 3, dtype=torch.float64), [5, 2, 0, 3]
    engine = engine_of(network, ClosedForm(), x, shared_rows="reduce")
    with engine.tape(network, Communicator()).of(complete=False) as tape:
        output = network(x)
    sum(output[i, :n].square().sum() for i, n in enumerate(lengths)).backward()
    batch = share_batch(Communicator(), x, output, 10, Recording.NOTHING)
    problem = engine.problems(tape, [], batch)["a"]
    means = torch.stack([x[i, :n].mean(0) for i, n in enumerate(lengths) if n])
    assert problem.n == 3
    torch.testing.assert_close(problem.operator.rows, means)
    assert problem.direction.shape == (3, 4)


def fit(tmp_path, network, **settings):
    torch.manual_seed(0)
    module = LocoPropModule(
        network, Classification(), ClosedForm(), 0.1, 1.0, "squared", shared_rows="reduce", **settings
    )
    trainer = quiet_trainer(
        max_steps=6,
        default_root_dir=tmp_path,
        limit_val_batches=0,
    )
    trainer.fit(module, Digits(batch_size=200, seed=0))
    return module


class Rows(nn.Sequential):
    """Digits as sequences of eight rows; ``turned`` has the rows first."""

    def __init__(self, turned=False):
        super().__init__(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 10))
        self.turned = turned

    def forward(self, x):
        x = x[:, 0]
        return super().forward(x.transpose(0, 1)).mean(0) if self.turned else super().forward(x).mean(1)


def test_fits(tmp_path):
    module = fit(tmp_path, Rows(), oracle=WhitenedOracle(damping=0.1))
    assert module.trainer.callback_metrics["train/loss"] < 2.2
    assert not module.engine.counts
    convolutions = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
    assert fit(tmp_path, convolutions, oracle=RMSOracle()).trainer.callback_metrics["train/loss"] < 2.0


def test_what_is_refused(tmp_path):
    class Sign(Oracle):
        def direction(self, gradient, terms, state):
            return gradient.sign()

    with pytest.raises(UserError, match=r"'0' has outputs \[8, 200, 16\], whose first dimension"):
        fit(tmp_path, Rows(turned=True))
    with pytest.raises(UserError, match="oracle=Sign makes no direction of the weight gradient; give it a weight_d"):
        fit(tmp_path, Rows(), oracle=Sign())
    with pytest.raises(UserError, match="shared_rows='reduce': solver=FixedPointIteration goes over the rows"):
        LocoPropModule(Rows(), Classification(), FixedPointIteration(), 1.0, 1.0, "squared", shared_rows="reduce")
    with pytest.raises(UserError, match="shared_rows='sum': take one of expand, reduce"):
        LocoPropModule(Rows(), Classification(), ClosedForm(), 1.0, 1.0, "squared", shared_rows="sum")


def test_layers_without_positions_are_as_expanded(tmp_path):
    """A matrix of inputs has a row a sample in both; several calls have a row each."""
    network, x = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).double(), torch.randn(6, 3, dtype=torch.float64)
    target = torch.zeros(6, 2, dtype=torch.float64)
    found = [problems_of(network, x, RMSOracle(), rows, target=target)[1] for rows in ("expand", "reduce")]
    for name, problem in found[0].items():
        other = found[1][name]
        torch.testing.assert_close(other.gram(), problem.gram())
        torch.testing.assert_close(other.first_gradient(), problem.first_gradient())
        torch.testing.assert_close(other.direction, problem.direction)


def rows_of_inputs(layer, x):
    """Mean inputs [N, d_in] by unfolding them."""
    if isinstance(layer, nn.Linear):
        return x.mean(1)
    patches = nn.functional.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    return patches.mean(2)


@pytest.mark.parametrize("make", [tokens, images])
def test_rows_are_means_and_sums(make):
    network, x = make(bias=True)
    target = torch.zeros(network(x).shape, dtype=x.dtype)
    _, problems = problems_of(network, x, GradientOracle(), "reduce", target=target)
    problem, layer = problems["0"], network[0]
    means = rows_of_inputs(layer, x)
    ones = torch.ones(len(x), 1, dtype=x.dtype)
    full = torch.cat([means, ones], 1)
    torch.testing.assert_close(problem.gram(), full.T @ full)
    torch.testing.assert_close(problem.operator.trace(), (full.T @ full).trace())
    torch.testing.assert_close(problem.pre_activation, full @ problem.start_matrix().T)
    a = layer(x)
    loss = nn.Sequential(*list(network)[1:])(a).mean(network.positions).square().sum() / 2 / len(x)
    (gradient,) = torch.autograd.grad(loss, a)
    torch.testing.assert_close(problem.direction, gradient.sum(network.positions))


def test_groups_of_a_convolution():
    network, x = grouped()
    _, problems = problems_of(network, x, GradientOracle(), "reduce")
    patches = nn.functional.unfold(x, 2).mean(2).reshape(len(x), 2, -1)  # by group
    torch.testing.assert_close(problems["0"].gram(), torch.einsum("ngi,ngj->gij", patches, patches))


def test_blocks():
    x = torch.randn(7, 3, dtype=torch.float64)
    blocks = Blocks(3, lengths=torch.tensor([2, 1, 4]))
    parts = x[:2], x[2:3], x[3:]
    torch.testing.assert_close(blocks.sums(x), torch.stack([p.sum(0) for p in parts]))
    torch.testing.assert_close(blocks.means(x), torch.stack([p.mean(0) for p in parts]))
    assert Blocks(0, 1).means(x[:0]).shape == (0, 3)
    torch.testing.assert_close(Blocks(2, 3).means(x[:6]), torch.stack([x[:3].mean(0), x[3:6].mean(0)]))
