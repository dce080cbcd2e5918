import numpy as np
import pytest
import torch

from locoprop_lightning.errors import UserError
from locoprop_lightning.oracles import RMSOracle
from tests.oracles.support import batch, close

both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


@pytest.mark.parametrize("beta", [0.0, 0.6, 0.99])
@pytest.mark.parametrize("per", ["unit", "layer"])
def test_rms_formula(beta, per):
    oracle, state, eps = RMSOracle(beta, 0.01, per), {}, 0.01
    total = np.zeros(4)
    for k, n in enumerate((12, 12, 7, 12, 12), start=1):
        g = batch(n, seed=k)
        oracle.observe(g, [], len(g), state)
        sample = n * g.numpy()
        total = beta * total + (1 - beta) * (sample**2).mean(0)
        mean = total / (1 - beta**k)
        layer = np.sqrt(mean.mean())
        root = np.sqrt(mean) if per == "unit" else layer
        np.testing.assert_allclose(
            oracle.direction(g, len(g), state).numpy(), sample / (root + eps * layer), rtol=1e-12
        )


@both_dtypes
@pytest.mark.parametrize("factor", [1e-6, 1e6])
@pytest.mark.parametrize("per", ["unit", "layer"])
def test_rms_knows_no_scale_of_the_loss(dtype, factor, per):
    oracle, plain, scaled = RMSOracle(per=per), {}, {}
    for seed in range(4):
        g = batch(seed=seed, dtype=dtype)
        oracle.observe(g, [], len(g), plain)
        oracle.observe(factor * g, [], len(g), scaled)
        tolerance = 1e-11 if dtype == torch.float64 else 1e-5
        close(oracle.direction(factor * g, len(g), scaled), oracle.direction(g, len(g), plain), tolerance)


def test_rms_of_the_first_batch_is_one():
    oracle, state = RMSOracle(eps=1e-12), {}
    oracle.observe(batch(), [], 12, state)
    close(oracle.direction(batch(), 12, state).square().mean(0), torch.ones(4, dtype=torch.float64), 1e-9)


def test_rms_of_a_dead_unit():
    oracle, state, g = RMSOracle(), {}, batch()
    g[:, 2] = 0
    oracle.observe(g, [], len(g), state)
    d = oracle.direction(g, len(g), state)
    assert d.isfinite().all() and (d[:, 2] == 0).all()


def test_rms_per_layer_keeps_the_proportions():
    oracle, state = RMSOracle(per="layer"), {}
    oracle.observe(batch(), [], 12, state)
    ratio = oracle.direction(batch(), 12, state) / batch()
    close(ratio, ratio[0, 0].expand_as(ratio))


def test_arguments():
    for make, message in [
        (lambda: RMSOracle(beta=1.0), r"RMSOracle\(beta=1.0\): must be in \[0, 1\)"),
        (lambda: RMSOracle(eps=0.0), r"RMSOracle\(eps=0.0\): must be above 0"),
        (lambda: RMSOracle(per="row"), r"RMSOracle\(per='row'\): take one of unit, layer"),
    ]:
        with pytest.raises(UserError, match=message):
            make()
