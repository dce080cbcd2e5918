"""Embeddings: one-hot rows, of which no matrix of all tokens by all tokens is made."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from locoprop_lightning.errors import UserError
from locoprop_lightning.layers import discover
from locoprop_lightning.local import LocalProblem, resolve_transfer
from locoprop_lightning.local.preconditioner import invert
from locoprop_lightning.oracles import GradientOracle, RMSOracle, SpectralOracle, WhitenedOracle
from locoprop_lightning.solvers import ClosedForm, Majorization, Recording, Status
from tests import catalogue
from tests.catalogue import DIRECT, EVERY, SQUARED_ONLY
from tests.layers.test_every_kind import fit
from tests.support import Stateful, close, operator_of, replaced, taped

VOCABULARY = 9
pytestmark = [
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
]


def problem(transfer="identity", seed=0, lambda_r=40.0):
    """Of tokens of which some never come."""
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Embedding(VOCABULARY, 3).double().requires_grad_(False)
    layer.weight.copy_(torch.randn(VOCABULARY, 3, generator=generator, dtype=torch.float64))
    x = torch.randint(0, VOCABULARY - 2, (4, 5), generator=generator)
    d = torch.randn(20, 3, generator=generator, dtype=torch.float64) / 4
    a, w = layer(x).flatten(0, 1), layer.weight.t()
    return LocalProblem(operator_of(layer, [x]), a, d, w, None, resolve_transfer(transfer), 2.0, lambda_r, name="0")


@pytest.mark.parametrize(
    ("name", "transfer"),
    [(n, t) for n in EVERY for t in ("identity", "tanh", "softmax") if t == "identity" or n not in SQUARED_ONLY],
)
def test_every_solver_equals_itself_on_the_one_hot_rows(name, transfer):
    one = problem(transfer)
    dense = replaced(one, operator=one.operator.dense())
    got, expected = (catalogue.solver(name, 4).solve(p, recording=Recording.CURVE) for p in (one, dense))
    assert got.status is expected.status is Status.SOLVED
    close(got.displacement, expected.displacement, 1e-10)
    close(got.losses, expected.losses, 1e-10)
    assert (got.displacement[:, -2:] == 0).all() and (got.displacement[:, :4] != 0).any()


def test_a_token_moves_by_the_mean_of_its_rows():
    one = problem(lambda_r=1e-9)
    v, tokens = ClosedForm().solve(one).displacement, one.operator.tokens
    for token in tokens.unique():
        close(v[:, token], -2.0 * one.direction[tokens == token].mean(0), 1e-8)


@pytest.mark.parametrize("solver", [*DIRECT, "majorization_kept"])
def test_what_is_kept_for_others_is_the_batchs_own_here(solver):
    kept, plain = Stateful(catalogue.solver(solver)), Majorization(10) if "major" in solver else ClosedForm()
    for seed in range(5):
        one = problem(seed=seed, lambda_r=0.5)
        got, expected = kept.solve(one), plain.solve(problem(seed=seed, lambda_r=0.5))
        assert got.status is Status.SOLVED
        close(got.displacement, expected.displacement, 1e-12)
    assert "inverse" not in kept.states["0"]["preconditioner"]


def test_the_inverse_of_a_diagonal():
    c = torch.rand(4, dtype=torch.float64)
    close(torch.diag(invert(c, 0.3)), invert(torch.diag(c), 0.3), 1e-12)


class Largest(TorchDispatchMode):
    """The most elements that a tensor has which an operation makes."""

    found = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.found = max(self.found, out.numel())
        return out


@pytest.mark.parametrize("name", EVERY)
def test_no_matrix_of_all_tokens_by_all_tokens_is_made(name):
    layer = nn.Embedding(20_000, 2)
    x, d = torch.arange(0, 20_000, 400), torch.ones(50, 2)
    identity = resolve_transfer("identity")
    weight = layer.weight.detach().t()
    one = LocalProblem(operator_of(layer, [x]), layer(x).detach(), d, weight, None, identity, 1.0, 10.0, name="0")
    with Largest() as largest:
        solution = catalogue.solver(name, 3).solve(one, recording=Recording.CURVE)
    assert solution.status is Status.SOLVED
    assert largest.found <= 10 * 40_000  # a solver may hold some displacements


def reasons(network, x, **arguments):
    return {layer.name: layer.reason if not layer.local else None for layer in discover(network, x, **arguments)}


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({}, None),
        ({"padding_idx": 0}, None),
        ({"max_norm": 1.0}, "max_norm changes the weight in the forward pass"),
        ({"scale_grad_by_freq": True}, "scale_grad_by_freq changes the weight gradient"),
        ({"sparse": True}, "sparse gradients"),
    ],
)
def test_settings_that_are_not_local_say_why(settings, reason):
    network = nn.Sequential(nn.Embedding(5, 3, **settings), nn.Linear(3, 2))
    x = torch.arange(5)
    assert reasons(network, x, include=["0"]) == {"0": reason, "1": None}
    assert reasons(network, x) == {"0": reason or "local on request (include)", "1": None}
    assert reasons(network, x, include=["*"], skip=["0"]) == {"0": "skipped", "1": None}


def test_embeddings_whose_output_or_weight_is_not_their_own_say_why():
    class Scaled(nn.Embedding):
        def forward(self, x):
            return 8 * super().forward(x)

    tied = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 3), nn.Linear(3, 5))
    tied[2].weight = tied[0].weight
    shared = "weights are shared with another layer"
    for include in ([], ["0"]):
        assert reasons(tied, torch.arange(5), include=include) == {"0": shared, "1": None, "2": shared}
    own = "an embedding with a forward or a hook of its own"
    assert reasons(nn.Sequential(Scaled(5, 3)), torch.arange(5), include=["0"]) == {"0": own}


def test_a_pattern_that_matches_nothing_is_refused():
    network = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 2))
    with pytest.raises(UserError, match="include: 'tokens' matches no layer; the layers are 0, 1"):
        fit(network, [], include=["tokens"])


class Padded(nn.Module):
    """A padding token, an embedding that does not count it, and what else is not to move with it."""

    def __init__(self, padding_idx=0):
        super().__init__()
        self.tokens, self.head = nn.Embedding(7, 4, padding_idx=padding_idx), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.tokens(x).tanh().sum(1))


def test_rows_of_padding_count_for_nothing():
    """As though the sequences had none, though their output is no zero."""
    layer = nn.Embedding(7, 4, padding_idx=0).double()
    layer.weight.data[0] = 3.0
    x = torch.tensor([[1, 2, 0], [2, 0, 0]])
    with taped({"0": layer}) as tape:
        layer(x).square().sum().backward()
    record, rest = tape.records["0"], torch.tensor([1, 2, 2])
    operator = record.operator()
    assert record.n == operator.n == 3 and torch.equal(operator.tokens, rest)
    assert torch.equal(record.pre_activation(operator), layer.weight[rest])
    assert torch.equal(record.gradient(), 2 * layer.weight[rest])
    assert torch.equal(operator.gram(), torch.tensor([0.0, 1, 2, 0, 0, 0, 0], dtype=torch.float64))
    close(operator.adjoint(record.gradient()).t(), layer.weight.grad, 1e-12)


@pytest.mark.parametrize(
    "oracle", [GradientOracle(), RMSOracle(), WhitenedOracle(samples=0), SpectralOracle()], ids=repr
)
def test_padding_does_not_change_a_fit(oracle):
    found = []
    for padded in (False, True):
        torch.manual_seed(0)
        network = Padded().double()
        with torch.no_grad():
            network.tokens.weight[0] = 0
        x = torch.tensor([[1, 2, 3], [4, 1, 1], [2, 2, 6], [3, 3, 5]])
        x = torch.cat([x, torch.zeros(4, 5 * padded, dtype=torch.int64)], 1)
        batches = [(x, torch.zeros(4))] * 3
        module = fit(network, batches, include=["tokens"], damping="relative", oracle=oracle, lambda_a=0.1)
        assert list(module.engine.local) == ["tokens", "head"]
        found.append([p.detach() for p in network.parameters()])
        assert (network.tokens.weight[0] == 0).all()
    for a, b in zip(*found, strict=True):
        close(a, b, 1e-10)


def test_tokens_keep_their_number_in_low_precision():
    layer = nn.Embedding(1000, 2).bfloat16()
    x = torch.tensor([257, 999, 257])
    with taped({"0": layer}) as tape:
        layer(x).sum().backward()
    operator = tape.records["0"].operator()
    assert torch.equal(operator.tokens, x) and operator.gram().dtype == torch.float32


def test_a_spectral_step_is_as_long_as_it_is_told():
    network = nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(12, 2)).double()
    x = torch.tensor([[1, 2, 3], [4, 1, 1], [2, 2, 6], [3, 3, 5]])
    before = network[0](x).detach()
    fit(
        network, [(x, torch.zeros(4))], include=["0"], oracle=SpectralOracle(), lambda_a=0.03, step_length="activations"
    )
    close((network[0](x) - before).square().mean().sqrt(), torch.tensor(0.03, dtype=torch.float64), 1e-6)
