"""Recurrent layers of torch as a loop over linear layers, each of which a local solver may train."""

from typing import Any

import torch
from torch import Tensor, nn

from locoprop_lightning.errors import UserError, shown
from locoprop_lightning.reprs import Told

_NAMES = ("weight", "bias")


class Unrolled(Told, nn.Module):
    """What ``nn.LSTM``, ``nn.GRU`` or ``nn.RNN`` computes, with its weights in layers ``nn.Linear``.

    torch reads the weights of its own layers in a kernel, where no input or output of a matrix can be seen. Here the
    inputs of all steps go through one call of a layer, and the states through one a step, whose rows a local problem
    joins. The loop over steps is in Python.

    Args:
        layer: The layer, of any depth and direction; its weights are copied.

    Example:
        >>> out, (h, c) = Unrolled(nn.LSTM(3, 4, batch_first=True))(torch.zeros(2, 5, 3))
        >>> out.shape, h.shape
        (torch.Size([2, 5, 4]), torch.Size([1, 2, 4]))

    Raises:
        UserError: For another layer, and for one with projections (``proj_size``).
    """

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        if not isinstance(layer, nn.RNNBase):
            raise UserError(f"Unrolled: takes an nn.LSTM, nn.GRU or nn.RNN, not {shown(layer)}.")
        if layer.proj_size:
            raise UserError(f"Unrolled: proj_size={layer.proj_size} is not supported; take a layer without it.")
        self.mode, self.depth, self.directions = layer.mode, layer.num_layers, 1 + layer.bidirectional
        self.width, self.batch_first, self.dropout = layer.hidden_size, layer.batch_first, layer.dropout
        self.inputs, self.states = nn.ModuleList(), nn.ModuleList()  # a cell of each layer and direction
        for one in range(self.depth):
            for way in ("", "_reverse")[: self.directions]:
                for part, side in ((self.inputs, "ih"), (self.states, "hh")):
                    own = {name: getattr(layer, f"{name}_{side}_l{one}{way}") for name in _NAMES[: 1 + layer.bias]}
                    units, inputs = own["weight"].shape
                    made = nn.Linear(inputs, units, layer.bias, own["weight"].device, own["weight"].dtype)
                    made.load_state_dict(own)
                    part.append(made)

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Outputs of all steps, and the last states, as the layer gives them.

        Args:
            x: Inputs [length, n, d_in], or [n, length, d_in] with ``batch_first``.
            state: The first states [depth x directions, n, width], of an LSTM a pair of them; zeros if not given.

        Raises:
            UserError: For inputs of another rank, such as packed sequences.
        """
        if not isinstance(x, Tensor) or x.dim() != 3 or 0 in x.shape[:2]:
            got = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise UserError(f"Unrolled: takes inputs of three dimensions (sequences of one length above 0), not {got}.")
        steps = x.transpose(0, 1) if self.batch_first else x
        zeros = x.new_zeros(len(self.states), steps.shape[1], self.width)
        given = (zeros, zeros) if state is None else state if self.mode == "LSTM" else (state,)
        parts = tuple(given)[: 1 + (self.mode == "LSTM")]
        shapes = [list(part.shape) for part in parts]
        if shapes != [list(zeros.shape)] * (1 + (self.mode == "LSTM")):
            raise UserError(f"Unrolled: the first states are {shapes}, and must each be {list(zeros.shape)}.")
        starts = list(zip(*parts, strict=True))
        ends = []
        for one in range(self.depth):
            found = []
            for way in range(self.directions):
                cell = one * self.directions + way
                out, end = self._run(cell, steps.flip(0) if way else steps, starts[cell])
                found.append(out.flip(0) if way else out)
                ends.append(end)
            steps = torch.cat(found, -1)
            if one + 1 < self.depth:
                steps = nn.functional.dropout(steps, self.dropout, self.training)
        last = tuple(torch.stack(part) for part in zip(*ends, strict=True))
        return steps.transpose(0, 1) if self.batch_first else steps, last if self.mode == "LSTM" else last[0]

    def _run(self, cell: int, steps: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Outputs [length, n, width] of one cell, and what it carries at the end."""
        found = []
        for inputs in self.inputs[cell](steps):
            state = self._step(inputs, self.states[cell](state[0]), state)
            found.append(state[0])
        return torch.stack(found), state

    def _step(self, inputs: Tensor, states: Tensor, carried: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """What is carried to the next step: the output first."""
        if self.mode == "LSTM":
            enter, forget, new, leave = (inputs + states).chunk(4, -1)
            c = forget.sigmoid() * carried[1] + enter.sigmoid() * new.tanh()
            return leave.sigmoid() * c.tanh(), c
        if self.mode == "GRU":
            (reset_x, keep_x, new_x), (reset_h, keep_h, new_h) = inputs.chunk(3, -1), states.chunk(3, -1)
            new = (new_x + (reset_x + reset_h).sigmoid() * new_h).tanh()
            keep = (keep_x + keep_h).sigmoid()
            return ((1 - keep) * new + keep * carried[0],)
        a = inputs + states
        return (a.tanh() if self.mode == "RNN_TANH" else a.relu(),)
