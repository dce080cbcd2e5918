"""What the processes of a data-parallel run do together: sums, those of many layers in one buffer."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from greenlet import getcurrent, greenlet
from torch import Tensor
from torch import distributed as dist

from locoprop_lightning.local.share import ALONE, Share

T = TypeVar("T")


def count() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Index of this process."""
    return dist.get_rank() if count() > 1 else 0


def gather(numbers: Sequence[int], device: torch.device) -> list[list[int]]:
    """The numbers of every process, in the order of their ranks; waits for the device.

    Args:
        numbers: Equally many on all processes.
        device: A device that the processes' backend sends from.
    """
    if count() == 1:
        return [list(numbers)]
    own = torch.tensor(numbers, dtype=torch.int64, device=device)
    table = own.new_empty(count(), len(own))
    dist.all_gather(list(table.unbind()), own)
    return table.tolist()


def interleave(x: Tensor) -> Tensor:
    """Rows of all processes, of which one with every ``count``-th sample has equally many, in the samples' order.

    Args:
        x: Rows of this process [n, ...].
    """
    if count() == 1:
        return x
    parts = [torch.empty_like(x) for _ in range(count())]
    dist.all_gather(parts, x.contiguous())
    return torch.stack(parts, 1).flatten(0, 1)


def own_part(x: Tensor) -> Tensor:
    """What ``interleave`` took from this process."""
    return x[rank() :: count()]


def total(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Sums over processes, in one buffer for all tensors of a dtype; tensors may be written over."""
    sums = list(tensors)
    kinds: dict[torch.dtype, list[int]] = {}
    for index, x in enumerate(tensors):
        kinds.setdefault(x.dtype, []).append(index)
    for indices in kinds.values():
        parts = [tensors[index].reshape(-1) for index in indices]
        flat = parts[0].contiguous() if len(parts) == 1 else torch.cat(parts)
        dist.all_reduce(flat)
        for index, part in zip(indices, flat.split([len(part) for part in parts]), strict=True):
            sums[index] = part.view(tensors[index].shape)
    return sums


def mean(x: Tensor) -> Tensor:
    """The mean over processes; Lightning's own makes all of them wait for each other."""
    return x if count() == 1 else total([x / count()])[0]


class _Task(greenlet):
    """Work on one layer, which stops wherever it needs a sum over processes."""


def total_of(x: Tensor) -> Tensor:
    """The sum of one tensor over processes; within ``lockstep`` it is made together with those of the other layers."""
    task = getcurrent()
    return task.parent.switch(x) if isinstance(task, _Task) else total([x])[0]


def share(counts: Sequence[int], samples: Sequence[int]) -> Share:
    """Where the rows of this process stand: among equally many samples, dealt out in turns, or else after each other.

    Args:
        counts: Rows of each process.
        samples: Samples of each process.
    """
    if len(counts) == 1:
        return ALONE
    even = len(set(counts)) == len(set(samples)) == 1 and samples[0] > 0 and counts[0] % samples[0] == 0
    return Share(counts, rank(), counts[0] // samples[0] if even else 0, total_of)


def lockstep(tasks: Mapping[str, Callable[[], T]]) -> dict[str, T]:
    """Runs a task a layer, and gives their results; all that stand at a sum over processes get it from one buffer.

    A task is written as if it ran alone. It is left where it calls ``total_of`` and taken up again with the sum, in the
    same thread, so that nothing but the order of the work changes. Without other processes, tasks run one by one.
    """
    if count() == 1:
        return {name: task() for name, task in tasks.items()}
    running = {name: _Task(task) for name, task in tasks.items()}
    answers: dict[str, Any] = {name: () for name in tasks}
    results: dict[str, T] = {}
    while running:
        waiting = {}
        for name, task in list(running.items()):
            said = task.switch(*answers[name])
            if task.dead:
                results[name] = said
                del running[name]
            else:
                waiting[name] = said
        answers = {name: (x,) for name, x in zip(waiting, total(list(waiting.values())), strict=True)}
    return {name: results[name] for name in tasks}
