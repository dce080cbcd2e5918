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


def interleave(x: Tensor, counts: Sequence[int]) -> Tensor:
    """Rows of all processes, those that stand first with each, then the second ones: the order they were dealt in.

    Args:
        x: Rows of this process [n, ...], like the others' but for their number.
        counts: Number of rows of each process.
    """
    if len(counts) == 1:
        return x
    padded = x.new_zeros(max(counts), *x.shape[1:])
    padded[: len(x)] = x
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.stack(parts, 1).flatten(0, 1)[torch.tensor(_dealt(counts), device=x.device)]


def own_part(x: Tensor, counts: Sequence[int]) -> Tensor:
    """What ``interleave`` took from this process."""
    if len(counts) == 1:
        return x
    return x[torch.tensor([place % len(counts) == rank() for place in _dealt(counts)], device=x.device)]


def _dealt(counts: Sequence[int]) -> list[int]:
    """Places row x process, row by row, at which there is a row."""
    return [row * len(counts) + one for row in range(max(counts)) for one in range(len(counts)) if row < counts[one]]


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
    if not isinstance(task, _Task):
        return total([x])[0]
    grad = torch.is_grad_enabled()
    out: Tensor = task.parent.switch(x)
    torch.set_grad_enabled(grad)
    return out


def share(counts: Sequence[int], samples: Sequence[int], calls: Sequence[int] = (1,)) -> Share:
    """Where the rows of this process stand: by samples that were dealt out in turns, or else after each other.

    Args:
        counts: Rows of each process.
        samples: Samples of each process.
        calls: Calls of the layer on each process.
    """
    if len(counts) == 1:
        return ALONE
    block = counts[0] // (samples[0] * calls[0]) if samples[0] and calls[0] else 0
    dealt = list(samples) == sorted(samples, reverse=True) and samples[0] - samples[-1] <= 1
    alike = all(n == block * k * calls[0] for n, k in zip(counts, samples, strict=True)) and len(set(calls)) == 1
    return Share(counts, rank(), block if dealt and alike else 0, calls[0], total_of)


def lockstep(tasks: Mapping[str, Callable[[], T]]) -> dict[str, T]:
    """Runs a task a layer, and gives their results; all that stand at a sum over processes get it from one buffer.

    A task is written as if it ran alone. It is left where it calls ``total_of`` and taken up again with the sum, in the
    same thread and grad mode, so that nothing but the order of the work changes. Without other processes, tasks run one
    by one.
    """
    if count() == 1:
        return {name: task() for name, task in tasks.items()}
    grad = torch.is_grad_enabled()
    running = {name: _Task(task) for name, task in tasks.items()}
    answers: dict[str, Any] = {name: () for name in tasks}
    results: dict[str, T] = {}
    while running:
        waiting = {}
        for name, task in list(running.items()):
            said = task.switch(*answers[name])
            torch.set_grad_enabled(grad)
            if task.dead:
                results[name] = said
                del running[name]
            else:
                waiting[name] = said
        answers = {name: (x,) for name, x in zip(waiting, total(list(waiting.values())), strict=True)}
    return {name: results[name] for name in tasks}
