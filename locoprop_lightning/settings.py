"""The settings of local training, checked against the network's layers, solver, oracle and trainer."""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy

from locoprop_lightning.errors import (
    UserError,
    check_choice,
    check_counts,
    check_flags,
    check_object,
    check_positive,
    check_strength,
)
from locoprop_lightning.layers.discovery import check_names, check_patterns
from locoprop_lightning.local import Transfer, resolve_transfer
from locoprop_lightning.oracles import Oracle
from locoprop_lightning.solvers import ClosedForm, IterativeSolver, LocalSolver


@dataclass
class LocalSettings:
    """What ``LocoPropModule`` is told of its layers; see there.

    Raises:
        UserError: For a value that is not allowed.
    """

    lambda_a: float
    lambda_r: float
    objective: str = "matching"
    output_transfer: str | Transfer = "identity"  # of the output layer: that, or the task's link
    transfers: Mapping[str, str | Transfer] = field(default_factory=dict)
    skip: Sequence[str] = ()
    damping: str = "absolute"
    overrides: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    guard: bool = True
    scheduled: str = "outer"
    step_length: str = "targets"
    include: Sequence[str] = ()
    shared_rows: str = "expand"
    max_displacement: float | None = None
    accumulate: int = 1

    def __post_init__(self) -> None:
        check_strength("", lambda_a=self.lambda_a, lambda_r=self.lambda_r)  # first, as a part may stand in their place
        check_choice("", ("matching", "squared"), objective=self.objective)
        check_choice("", ("absolute", "relative"), damping=self.damping)
        check_choice("", ("outer", "inner"), scheduled=self.scheduled)
        check_choice("", ("targets", "activations"), step_length=self.step_length)
        check_choice("", ("expand", "reduce"), shared_rows=self.shared_rows)
        check_flags("", guard=self.guard)
        check_object("", Mapping, "functions by layer, such as {'1': 'tanh'}", transfers=self.transfers)
        way = "lambdas and unit_groups by pattern of layers, such as {'1': {'lambda_r': 3}}"
        check_object("", Mapping, way, overrides=self.overrides)
        check_lists(skip=self.skip, include=self.include)
        if both := sorted({*self.skip} & {*self.include}):
            raise UserError(f"skip and include both name {both[0]!r}: take it out of one of the two.")
        check_counts("", 1, accumulate=self.accumulate)
        if self.max_displacement is not None:
            check_positive("", max_displacement=self.max_displacement)
        if self.accumulate > 1 and self.shared_rows == "reduce":
            raise UserError(f"accumulate={self.accumulate}: joins rows as they are; take shared_rows='expand'.")
        for setting in ("transfers", "overrides"):
            for key in getattr(self, setting):
                if not isinstance(key, str):
                    raise UserError(f"{setting}={{{key!r}: ...}}: names of layers are texts; write {str(key)!r}.")
        self.transfers = {name: _transfer(name, transfer) for name, transfer in self.transfers.items()}
        for pattern, values in self.overrides.items():
            setting = f"overrides[{pattern!r}]"
            if not isinstance(values, Mapping):
                raise UserError(f"{setting}={values!r}: must be a mapping, such as {{'lambda_r': 3}}.")
            for key, value in values.items():
                if key not in ("lambda_a", "lambda_r", "unit_groups"):
                    raise UserError(f"{setting} has no setting {key!r}: take lambda_a, lambda_r or unit_groups.")
                check_strength("", **{f"{setting}.{key}": value})
                if key == "unit_groups" and value != int(value):
                    raise UserError(f"{setting}.unit_groups={value}: must be a whole number.")

    def check(self, layers: Iterable[str], reasons: Mapping[str, str]) -> None:
        """Refuses names and patterns that match none of the layers that may be local.

        Args:
            layers: Their names.
            reasons: Why others are not, by name.

        Raises:
            UserError: Names the setting and the layers there are, or why there are none.
        """
        names = list(layers)
        if not names:
            told = "; ".join(f"{name or 'the network itself'}: {reason}" for name, reason in reasons.items())
            frozen = reasons and {*reasons.values()} <= {"frozen", "partly frozen"}  # nor would that module train it
            way = "unfreeze one by requires_grad_(True)" if frozen else "use BackpropModule"
            raise UserError(
                f"LocoPropModule: the network has no layer to train locally{f' ({told})' if told else ''}; {way}."
            )
        check_names("transfers", self.transfers, names)
        check_patterns("overrides", self.overrides, names, reasons)

    def check_parts(self, solver: LocalSolver, oracle: Oracle) -> None:
        """Refuses a solver and an oracle that are none, or do not fit these settings.

        Raises:
            UserError: Names the part and what could stand there.
        """
        check_object("", Oracle, "an oracle, such as RMSOracle()", oracle=oracle)
        check_object("", LocalSolver, "a solver, such as ClosedForm()", solver=solver)
        name = type(solver).__name__
        if isinstance(solver, IterativeSolver) and not hasattr(solver, "iterations"):
            raise UserError(f"solver={name}: its __init__ must call super().__init__().")
        if solver.squared_only and self.objective == "matching":
            raise UserError(
                f"solver={name} solves the squared loss only: set objective to 'squared', or take another solver, such "
                "as Majorization."
            )
        given = {layer: resolve_transfer(one).name for layer, one in self.transfers.items()}
        if solver.squared_only and {*given.values()} - {"identity"}:
            raise UserError(
                f"transfers={given}: objective='squared' matches each layer through the identity, and solver={name} "
                "takes no other; leave them out, or take objective='matching' and another solver, such as Majorization."
            )
        if oracle.asks_inverse and not solver.offers_inverse:
            raise UserError(
                f"oracle={type(oracle).__name__} asks the solver for (C + lambda_r I)^-1, which {name} does not have; "
                "take ClosedForm or Majorization."
            )
        if self.shared_rows == "reduce" and not isinstance(solver, ClosedForm):
            raise UserError(
                f"shared_rows='reduce': solver={name} goes over the rows, which then do not make the weight gradient; "
                "take ClosedForm, or 'expand'."
            )
        if self.scheduled == "inner" and not solver.has_rate:
            raise UserError(
                f"scheduled='inner': solver={name} has no rate of inner steps; take 'outer', or InnerOptimizer or "
                "GradientDescent."
            )

    def told(self) -> dict[str, Any]:
        """The lambdas, and what is not the default, by name."""
        default = vars(type(self)(self.lambda_a, self.lambda_r))
        own = vars(self)
        return {
            name: own[name] for name in own if name[:6] == "lambda" or (own[name] or None) != (default[name] or None)
        }

    def of_layer(self, name: str) -> dict[str, float]:
        """The lambdas and the groups of units of a layer; a later pattern wins."""
        found: dict[str, float] = {"lambda_a": self.lambda_a, "lambda_r": self.lambda_r, "unit_groups": 1}
        for pattern, values in self.overrides.items():
            if fnmatchcase(name, pattern):
                found |= values
        return found


class Scheduled(NamedTuple):
    """What holds for a step in place of the settings.

    Attributes:
        lambda_a: What multiplies lambda_a of every layer.
        lambda_r: What multiplies lambda_r.
        iterations: Those of the solver; its own where None.
    """

    lambda_a: float = 1.0
    lambda_r: float = 1.0
    iterations: int | None = None


def check_lists(**patterns: Sequence[str]) -> None:
    """Refuses what is no list of texts, such as one text, whose letters would be taken for patterns.

    Raises:
        UserError: Names the setting.
    """
    for name, given in patterns.items():
        if isinstance(given, str) or not isinstance(given, Sequence) or not all(isinstance(x, str) for x in given):
            raise UserError(f"{name}={given!r}: must be a list of patterns of layers, such as ['1'].")


class Fixed:
    """Refuses to have a setting of ``LocalSettings`` assigned after the fact, which nothing would read."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in LocalSettings.__dataclass_fields__:
            within = f", and engine.local[LAYER].{name} within one" if name in ("lambda_a", "lambda_r") else ""
            raise UserError(
                f"{type(self).__name__}.{name}={value!r}: nothing reads it there; set engine.settings.{name} before a "
                f"fit{within}."
            )
        super().__setattr__(name, value)


def check_takes_rows(oracle: Oracle) -> None:
    """Refuses an oracle that cannot sum over the rows of several processes.

    Raises:
        UserError: Names the oracle.
    """
    if "rows" not in inspect.signature(oracle.observe).parameters:
        raise UserError(
            f"oracle={type(oracle).__name__}: its observe takes no `rows`, with which it must sum over the rows of all "
            "processes; add it, or set trainer.devices to 1."
        )


def check_trainer(trainer: Trainer) -> None:
    """Refuses a trainer with which there are no local solves.

    Raises:
        UserError: For what Lightning does to gradients where there are displacements, for several processes that split
            the weights, a precision that scales the loss, and a module that is compiled as a whole.
    """
    if trainer.lightning_module._compiler_ctx is not None:
        raise UserError(
            "torch.compile(module): its training step records layers, and cannot be compiled; compile the network, as "
            "in LocoPropModule(torch.compile(network), ...)."
        )
    if trainer.world_size > 1 and not isinstance(trainer.strategy, DDPStrategy):
        raise UserError(
            f"trainer.strategy: local problems are summed over the processes of 'ddp' alone, not over those of "
            f"{type(trainer.strategy).__name__}, and there are {trainer.world_size}."
        )
    if trainer.gradient_clip_val:
        raise UserError(
            f"trainer.gradient_clip_val={trainer.gradient_clip_val}: there are displacements in the place of "
            "gradients; set model.max_displacement, relative to the weights, such as 0.1."
        )
    names = {type(callback).__name__ for callback in trainer.callbacks}  # type: ignore[attr-defined]
    if trainer.accumulate_grad_batches > 1 or "GradientAccumulationScheduler" in names:
        number = trainer.accumulate_grad_batches
        given = f"accumulate_grad_batches={number}" if number > 1 else "callbacks=GradientAccumulationScheduler"
        raise UserError(
            f"trainer.{given}: would add up displacements; set model.accumulate, which joins the rows of so many "
            "batches."
        )
    if "StochasticWeightAveraging" in names:
        raise UserError(
            "trainer.callbacks=StochasticWeightAveraging: takes a single optimizer, and local training has two; take "
            "Lightning's WeightAveraging or EMAWeightAveraging."
        )
    if trainer.precision == "16-true":
        raise UserError(
            "trainer.precision='16-true': in float16 the gradients of a mean over a batch are too small to differ from "
            "zero; take 'bf16-true' or 'bf16-mixed'."
        )
    if trainer.precision == "16-mixed":
        raise UserError("trainer.precision='16-mixed' scales the loss and with it every target; take 'bf16-mixed'.")


def check_optimizers(trainer: Trainer) -> None:
    """Refuses other optimizers than the two that local training steps.

    Raises:
        UserError: Names the class that makes them.
    """
    if (count := len(trainer.optimizers)) != 2:
        raise UserError(
            f"{type(trainer.lightning_module).__name__}.configure_optimizers: returns {count or 'no'} optimizer"
            f"{'' if count == 1 else 's'}, and local training steps two that LocoPropModule makes; leave the method "
            "out, and give optimizer= and rest_optimizer=."
        )


def _transfer(name: str, transfer: str | Transfer) -> Transfer:
    try:
        return resolve_transfer(transfer)
    except UserError as error:
        raise UserError(f"transfers[{name!r}]: {error}") from error
