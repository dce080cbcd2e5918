"""Local losses kept in memory, for a notebook."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from locoprop_lightning.errors import UserError, check_counts, check_flags
from locoprop_lightning.local import LocalProblem
from locoprop_lightning.local_layer import Report, ends
from locoprop_lightning.module import LocoPropModule
from locoprop_lightning.observer import SolveObserver
from locoprop_lightning.solvers import Recording


class LocalLossHistory(SolveObserver):
    """Keeps what the solver did to each layer in the last fit: as tensors, and as a frame of pandas.

    ``history["1"]`` are the local losses a sample of layer 1, a row a recorded step and a column an inner iteration,
    the first before any [steps, T + 1]; NaN where a layer was not solved, and after its last iteration. No logger is
    needed. A checkpoint holds the history, so that a fit that is resumed goes on with it.

    Args:
        every_n_steps: Steps between two recorded ones.
        curves: Whether to record every inner iteration, which costs about as much as the solve; else the first and the
            last value alone.

    Attributes:
        steps: The recorded steps.

    Example:
        >>> LocalLossHistory(every_n_steps=10).steps
        []
    """

    def __init__(self, every_n_steps: int = 1, curves: bool = True) -> None:
        check_counts("LocalLossHistory", 1, every_n_steps=every_n_steps)
        check_flags("LocalLossHistory", curves=curves)
        self.every_n_steps = every_n_steps
        self.curves = curves
        self.steps: list[int] = []
        self._kept: list[dict[str, Report]] = []  # of each step, by layer

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begins anew with a fit; what a checkpoint holds is loaded after this.

        Raises:
            UserError: For a module without local layers.
        """
        if not isinstance(pl_module, LocoPropModule):
            raise UserError(
                f"LocalLossHistory: {type(pl_module).__name__} has no local layers; take it with LocoPropModule and a "
                "Trainer of lightning.pytorch."
            )
        if stage == "fit":
            self.steps, self._kept = [], []

    def recording(self, trainer: Trainer) -> Recording:
        """The curve, or its ends, where a step is due."""
        if trainer.global_step % self.every_n_steps:
            return Recording.NOTHING
        return Recording.CURVE if self.curves else Recording.ENDS

    def on_solved(
        self,
        trainer: Trainer,
        problems: Mapping[str, LocalProblem],
        reports: Mapping[str, Report],
        counts: Mapping[str, Mapping[str, int]],
    ) -> None:
        """Keeps what was recorded, without waiting for the device."""
        if trainer.global_step % self.every_n_steps == 0:
            self.steps.append(trainer.global_step)
            self._kept.append(dict(reports))

    @property
    def layers(self) -> list[str]:
        """Names of the layers that were solved."""
        return list(dict.fromkeys(name for kept in self._kept for name in kept))

    def __getitem__(self, layer: str) -> Tensor:
        if not isinstance(layer, str):
            raise UserError(f"LocalLossHistory[{layer!r}]: names of layers are texts; write {str(layer)!r}.")
        if layer not in self.layers:
            raise UserError(f"LocalLossHistory[{layer!r}]: is no layer that was solved; there are {self.layers}.")
        rows = [kept[layer].losses.cpu() if layer in kept else torch.empty(0) for kept in self._kept]
        table = torch.full((len(rows), max(map(len, rows))), torch.nan, dtype=max(rows, key=len).dtype)
        for row, losses in zip(table, rows, strict=True):
            row[: len(losses)] = losses
        return table

    def frame(self, inner: bool = False) -> Any:
        """The history as a frame of pandas.

        Args:
            inner: Whether a row is an inner iteration, with its loss; else it is a layer's solve, with the first and
                last loss, the reduction 1 - last/first, the displacement relative to the weights, and the part of the
                targets that is out of the range of f.

        Raises:
            UserError: Where pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise UserError(
                "LocalLossHistory.frame: pandas is not installed; `pip install pandas`, or take the tensors, "
                "history[LAYER]."
            ) from error
        rows: list[dict[str, Any]] = []
        for step, kept in zip(self.steps, self._kept, strict=True):
            for layer, (losses, displacement, out_of_range) in kept.items():
                own: dict[str, Any] = {"step": step, "layer": layer}
                values = losses.tolist()
                if inner:
                    rows += [own | {"iteration": i, "loss": value} for i, value in enumerate(values)]
                    continue
                rows.append(
                    own | ends(values) | {"displacement": displacement.item(), "out_of_range": out_of_range.item()}
                )
        return pandas.DataFrame(rows)

    def state_dict(self) -> dict[str, Any]:
        """The history."""
        return {
            "steps": list(self.steps),
            "kept": [{k: [x.cpu() for x in v] for k, v in o.items()} for o in self._kept],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on with a history."""
        self.steps = list(state_dict["steps"])
        self._kept = [{name: Report(*parts) for name, parts in kept.items()} for kept in state_dict["kept"]]
