"""What is told of a batch that a network or a task cannot take."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from locoprop_lightning.errors import UserError

# What torch, and Python's calls, say of inputs of another shape or type than a layer takes.
_SHAPE = re.compile(
    r"shapes? |[Ss]izes? of|size mismatch|input\[|channels|[Dd]imension|dtype|scalar type|index out of range|"
    r"must be Tensor|should be the same"
)
_DEVICE = re.compile("same device|expected device|should be the same")
_CALL = re.compile(r"forward\(\) (missing|got an unexpected|got multiple|takes) ")


@contextmanager
def explained(network: nn.Module, inputs: Any) -> Iterator[None]:
    """Names the network and the batch where it refuses the shape, the type, the number or the device of its inputs.

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
        elif _DEVICE.search(text) and (told := _devices(network, inputs)):
            text, way = "", told
        elif _DEVICE.search(text) and "device" in text:
            way = "have the network make its own tensors on the device of its inputs, or as buffers"
        elif _SHAPE.search(text):
            way = "give the network the sizes and types of its data"
        else:
            raise
        reason = f" ({text}); " if text else " "
        raise UserError(f"network={type(network).__name__}: cannot take {_shown(inputs)}{reason}{way}.") from error


def check_gradient(network: nn.Module, output: Any, loss: Tensor) -> None:
    """Refuses a network that has cut its output off from its weights, as no step could be made of it.

    Args:
        network: The network.
        output: Its output in a training step.
        loss: What is made of that.

    Raises:
        UserError: Names the network.
    """
    if loss.requires_grad or any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in tree_leaves(output)):
        return
    raise UserError(
        f"network={type(network).__name__}: its output has no gradient in training; take torch.no_grad() and detach() "
        "out of its forward."
    )


def _devices(network: nn.Module, inputs: Any) -> str:
    """Where inputs and weights are, and what to do, empty where they are together."""
    own = {str(leaf.device): None for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)}
    weights = {str(tensor.device): None for tensor in (*network.parameters(), *network.buffers())}
    if not own or not weights or own.keys() <= weights.keys():
        return ""
    return f"on {' and '.join(own)}, its weights are on {' and '.join(weights)}; move one of the two by .to(...)"


def _shown(inputs: Any) -> str:
    """Inputs by their shapes and types."""
    if isinstance(inputs, Tensor):
        return f"inputs {list(inputs.shape)} of {str(inputs.dtype).removeprefix('torch.')}"
    if isinstance(inputs, Mapping):
        return f"a mapping of {', '.join(map(str, inputs))}"
    if isinstance(inputs, tuple | list):
        return f"a {type(inputs).__name__} of {len(inputs)} inputs"
    return f"a {type(inputs).__name__}"
