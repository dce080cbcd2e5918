"""Work on many layers in lockstep: what all of them wait for is summed over processes in one buffer."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar
from zlib import crc32

import torch
from greenlet import getcurrent, greenlet
from torch import Tensor
from torch import distributed as dist

from locoprop_lightning.errors import UserError

T = TypeVar("T")


class _Task(greenlet):
    """Work on one layer, which stops wherever it needs a sum over processes."""


def total(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Sums over processes, in one buffer for all tensors of a dtype; tensors may be written over."""
    sums = list(tensors)
    dtypes: dict[torch.dtype, list[int]] = {}
    for index, x in enumerate(tensors):
        dtypes.setdefault(x.dtype, []).append(index)
    for indices in dtypes.values():
        parts = [tensors[index].reshape(-1) for index in indices]
        flat = parts[0].contiguous() if len(parts) == 1 else torch.cat(parts)
        dist.all_reduce(flat)
        for index, part in zip(indices, flat.split([len(part) for part in parts]), strict=True):
            sums[index] = part.view(tensors[index].shape)
    return sums


def total_of(x: Tensor) -> Tensor:
    """The sum of one tensor over processes; within ``lockstep`` it is made together with those of the other layers."""
    task = getcurrent()
    if not isinstance(task, _Task):
        return total([x])[0]
    grad = torch.is_grad_enabled()
    out: Tensor = task.parent.switch(x)
    torch.set_grad_enabled(grad)
    return out


def lockstep(tasks: Mapping[str, Callable[[], T]], host: dist.ProcessGroup | None = None) -> dict[str, T]:
    """Runs a task a layer, and gives their results; all that stand at a sum over processes get it from one buffer.

    A task is written as if it ran alone. It is left where it calls ``total_of`` and taken up again with the sum, in the
    same thread and grad mode, so that nothing but the order of the work changes. Before each sum the processes compare
    where they stand, by two numbers on the host that wait for no device.

    Args:
        tasks: Work by name of the layer, of the same layers on all processes.
        host: A group of all processes that sends from the host; the default one if it does.

    Raises:
        UserError: On every process, where they stand at sums of different layers.
    """
    if not tasks:  # the layers are agreed upon, so that no other process has any
        return {}
    grad = torch.is_grad_enabled()
    running = {name: _Task(task) for name, task in tasks.items()}
    answers: dict[str, tuple[Tensor, ...]] = {name: () for name in tasks}
    results: dict[str, T] = {}
    while True:
        waiting: dict[str, Tensor] = {}
        for name, task in list(running.items()):
            out: Any = task.switch(*answers[name])
            torch.set_grad_enabled(grad)
            if task.dead:
                results[name] = out
                del running[name]
            else:
                waiting[name] = out
        _compare(waiting, host)
        if not waiting:
            return {name: results[name] for name in tasks}
        answers = {name: (x,) for name, x in zip(waiting, total(list(waiting.values())), strict=True)}


def _compare(waiting: Mapping[str, Tensor], host: dist.ProcessGroup | None) -> None:
    """Refuses sums that are not of the same layers and shapes on all processes."""
    places = {name: f"{tuple(x.shape)} {x.dtype}" for name, x in waiting.items()}
    fingerprint = crc32(str(places).encode())
    extremes = torch.tensor([fingerprint, -fingerprint])
    dist.all_reduce(extremes, dist.ReduceOp.MAX, group=host)
    if extremes[0] == -extremes[1]:
        return
    everyone: list[dict[str, str]] = [{}] * dist.get_world_size()
    dist.all_gather_object(everyone, places, group=host)
    described = "; ".join(
        f"process {rank} at {', '.join(f'{name} {shape}' for name, shape in one.items()) or 'none'}"
        for rank, one in enumerate(everyone)
    )
    raise UserError(
        f"trainer.devices: the processes stand at sums of different layers ({described}); a solver or an oracle must "
        "take the same way on every process: decide by what is summed over all rows, never by those at hand."
    )
