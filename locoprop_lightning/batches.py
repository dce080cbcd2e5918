"""What is told of a batch that a network or a task cannot take."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from locoprop_lightning.errors import UserError

# What torch, and Python's calls, say of inputs of another shape or type than a layer takes.
_SHAPE = re.compile(
    r"shapes? |[Ss]izes? of|size mismatch|input\[|channels|[Dd]imension|dtype|scalar type|index out of range|"
    r"must be Tensor"
)
_CALL = re.compile(r"forward\(\) (missing|got an unexpected|got multiple|takes) ")


@contextmanager
def explained(network: nn.Module, inputs: Any) -> Iterator[None]:
    """Names the network and the batch where the network refuses the shape, the type or the number of its inputs.

    Args:
        network: The network.
        inputs: What it is called with.

    Raises:
        UserError: With what torch says.
    """
    try:
        yield
    except UserError:
        raise
    except (RuntimeError, TypeError, IndexError) as error:
        text = " ".join(str(error).split())
        if "does not require grad" in text and not (torch.is_grad_enabled() and not torch.is_inference_mode_enabled()):
            raise UserError(
                f"network={type(network).__name__}: takes gradients in its forward pass, which are switched off in a "
                "validation; put torch.enable_grad() around it, and set trainer.inference_mode to False."
            ) from error
        if type(error) is NotImplementedError and 'required "forward"' in text:
            raise UserError(f"network={type(network).__name__}: has no forward; give it a forward(x).") from error
        if isinstance(error, TypeError) and _CALL.search(text):
            way = "a mapping becomes keyword arguments, a tuple or list arguments; give pairs of inputs and target, or "
            way += "a task whose inputs(batch) says what the network takes"
        elif _SHAPE.search(text):
            way = "give the network the sizes and types of its data"
        else:
            raise
        raise UserError(f"network={type(network).__name__}: cannot take {_shown(inputs)} ({text}); {way}.") from error


def _shown(inputs: Any) -> str:
    """Inputs by their shapes and types."""
    if isinstance(inputs, Tensor):
        return f"inputs {list(inputs.shape)} of {str(inputs.dtype).removeprefix('torch.')}"
    if isinstance(inputs, Mapping):
        return f"a mapping of {', '.join(map(str, inputs))}"
    if isinstance(inputs, tuple | list):
        return f"a {type(inputs).__name__} of {len(inputs)} inputs"
    return f"a {type(inputs).__name__}"
