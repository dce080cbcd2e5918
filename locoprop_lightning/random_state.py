"""The state of all generators of random numbers that a training step may draw from."""

import random

import numpy as np
import torch
from torch import Tensor


def capture(device: torch.device) -> dict[str, Tensor]:
    """The states of torch's, NumPy's and Python's generators, as tensors that do not change their shapes.

    Args:
        device: The device of the process; that of a GPU has a generator of its own.
    """
    _, words, position, has_gauss, gauss = np.random.get_state(legacy=True)
    _, own, next_gauss = random.getstate()
    states = {
        "torch": torch.get_rng_state(),
        "numpy": torch.tensor([*map(int, words), position, has_gauss]),
        "python": torch.tensor([*own, next_gauss is not None]),
        "gauss": torch.tensor([gauss, next_gauss or 0.0], dtype=torch.float64),
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore(states: dict[str, Tensor], device: torch.device) -> None:
    """Sets all generators to what ``capture`` gave.

    Args:
        states: The states.
        device: The device of the process.
    """
    torch.set_rng_state(states["torch"].cpu().clone())  # a part of a larger tensor ends the process
    *words, position, has_gauss = states["numpy"].tolist()
    *own, has_next = states["python"].tolist()
    gauss, next_gauss = states["gauss"].tolist()
    np.random.set_state(("MT19937", np.array(words, dtype=np.uint32), position, has_gauss, gauss))
    random.setstate((3, tuple(own), next_gauss if has_next else None))
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"].cpu().clone(), device)
