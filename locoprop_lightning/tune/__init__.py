"""Sweeps and studies with Ray Tune and Optuna, the command `locoprop-tune`; only here is Ray imported."""

import os


def stay_on_loopback(address: str | None) -> None:
    """Has Ray, which reads this when it is imported, listen on the loopback address alone.

    Args:
        address: Address of the cluster that was asked for; then nothing is changed.
    """
    if not address:
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
