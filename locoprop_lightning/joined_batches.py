"""The batches of the data that make one step, as one batch: their rows are joined, their gradients added up."""

import torch
from torch import Tensor, nn

from locoprop_lightning.distributed import SharedBatch, join_batches
from locoprop_lightning.engine import Draw
from locoprop_lightning.layers import Tape


class JoinedBatches:
    """What a step has of its batches so far.

    Args:
        tape: Records the passes of all of them.
        several: Whether there may be more than one.
        starting: Whether the first one is the first of a fit.

    Attributes:
        tape: As given.
        starting: As given.
    """

    def __init__(self, tape: Tape, several: bool, starting: bool) -> None:
        self.tape = tape
        self.starting = starting
        self._several = several
        self._batches: list[SharedBatch] = []
        self._draws: list[list[Draw]] = []
        self._losses: list[Tensor] = []

    def __len__(self) -> int:
        return len(self._batches)

    def take(self, batch: SharedBatch, draws: list[Draw], loss: Tensor) -> Tensor:
        """Takes in a batch, and gives what the backward pass shall begin with.

        Args:
            batch: What the processes know of it.
            draws: Gradients of its drawn labels.
            loss: Its loss, a mean.
        """
        self._batches.append(batch)
        self._draws.append(draws)
        self._losses.append(loss.detach())
        self.tape.look()
        return loss * batch.weight if self._several else loss

    @torch.no_grad()
    def finish(self, network: nn.Module) -> tuple[SharedBatch, list[Draw], Tensor]:
        """The batches as one, the draws of all of them, and the mean loss; gradients are then those of the mean."""
        if not self._several:
            return self._batches[0], self._draws[0], self._losses[0]
        batch = join_batches(self._batches)
        part = 1 / batch.weight if batch.weight else 0.0
        for parameter in network.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(part)
        self.tape.rescale(part)
        parts = zip(self._losses, self._batches, strict=True)
        loss = torch.stack([one * own.weight for one, own in parts]).sum() * part
        return batch, self._joined_draws(), loss

    def _joined_draws(self) -> list[Draw]:
        """For each draw and layer, the gradient of each call, of the batch that the call was made for."""
        count = min(len(draws) for draws in self._draws)
        made: list[Draw] = []
        for i in range(count):
            calls: dict[str, list[Tensor | None]] = {}
            for batch, draws in zip(self._batches, self._draws, strict=True):
                for name, gradients in draws[i].items():
                    known = calls.setdefault(name, [])
                    known += [None if g is None else g * batch.weight for g in gradients[len(known) :]]
            made.append(calls)
        return made
