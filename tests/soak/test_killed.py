"""Every configuration of the digits, and one of each other network: killed three times, it ends bit for bit."""

import pytest

from tests.resuming import KILLS, differences
from tests.support import ROOT

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]

DIGITS = [f"digits/{path.stem}" for path in sorted((ROOT / "configs" / "digits").glob("*.yaml"))]
# Each with another method, and the steps of its two epochs.
OTHERS = {
    "fashion_mnist/locoprop_m_whitened": 40,
    "autoencoder/locoprop_s": 24,
    "convnet/locoprop_spectral": 24,
    "resnet/foof_rms": 16,
    "transformer/locoprop_muon": 24,
    "decoder/muon": 24,
    "review_code/foof": 40,
}


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("name", [*DIGITS, *OTHERS])
def test_killed_three_times_it_ends_as_if_nothing_had_been(name, devices, tmp_path):
    if name in OTHERS:
        limits = ["--trainer.max_epochs=2", f"--trainer.limit_train_batches={OTHERS[name] // 2}"]
    else:
        limits = ["--trainer.max_epochs=30"]
    more = [*limits, f"--checkpoints.every_n_steps={3 if name in DIGITS else 2}"]
    other, went_on = differences(f"configs/{name}.yaml", tmp_path, more, devices)
    print(f"{name} on {devices}: went on from {went_on}, differs in {other}")
    assert other == [] and len(went_on) == KILLS
