"""What networks of images cannot take."""

from typing import Any

from torch import Tensor

from locoprop_lightning.errors import BATCHES, UserError, check_object, shown


def check_images(owner: str, inputs: Any) -> None:
    """Refuses what is no tensor, and whole numbers, as a file of an image has them.

    Args:
        owner: Name of the network's class.
        inputs: What it is called with.

    Raises:
        UserError: Names the network and the inputs.
    """
    check_object(owner, Tensor, "a tensor, whose first dimension is the samples", inputs=inputs)
    if inputs.dim() < 2:
        raise UserError(f"{owner}(inputs={shown(inputs)}): has no first dimension of samples; {BATCHES}.")
    if not inputs.is_floating_point() and not inputs.is_complex():
        raise UserError(
            f"{owner}(inputs={shown(inputs)}): must be floating-point numbers, scaled as those that it is trained on."
        )
