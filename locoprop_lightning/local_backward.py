"""Local training as a backward pass, for a loop or a LightningModule of one's own."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from locoprop_lightning.batches import check_gradient, explained
from locoprop_lightning.distributed import connect, share_batch
from locoprop_lightning.engine import LocalEngine
from locoprop_lightning.errors import UserError, check_counts, check_object, listed
from locoprop_lightning.joined_batches import JoinedBatches
from locoprop_lightning.layer_table import LayerTable
from locoprop_lightning.layers.compiled import uncompiled
from locoprop_lightning.layers.discovery import check_network, check_shapes
from locoprop_lightning.layers.probe import call
from locoprop_lightning.local_view import shown
from locoprop_lightning.oracles import GradientOracle, Oracle
from locoprop_lightning.settings import LocalSettings, Scheduled
from locoprop_lightning.solvers import LocalSolver, Recording, Solution

_UNITS = "units"  # in a state, those of each layer


class Solutions(dict[str, Solution]):
    """Solutions by name of the layer, with a sentence for one that is not there."""

    def __missing__(self, name: object) -> NoReturn:
        there = f"is no layer that was solved; there are {[*self]}"
        none = "the last step recorded none; call it with recording=Recording.CURVE"
        raise UserError(f"LocalBackward.solutions[{name!r}]: {there if self else none}.")


class LocalBackward:
    """Does what ``loss.backward()`` does, and leaves W0 - W+ where the gradients of local layers are.

    An optimizer such as ``SGD(backward.local_parameters(), lr=1.0)`` then sets them to their solutions; all other
    parameters have their true gradients, and an optimizer of their own. A layer whose solution failed has no gradient.
    Layers are found when it is made, and held against what they compute in its first pass. It works in one process, and
    draws no labels.

    Args:
        network: The network.
        example: Inputs that it can be called with; a tuple or list becomes its arguments, a mapping its keyword
            arguments. What follows a layer is found with these.
        solver: Solves the local problems.
        lambda_a: Length of the oracle's step, above 0; its scale is the oracle's.
        lambda_r: Strength of the proximal term, above 0.
        oracle: Direction of the target; ``GradientOracle`` if not given.
        settings: Further ones, as ``LocoPropModule`` has them: objective, transfers, skip, include, damping, overrides,
            step_length, shared_rows, max_displacement and guard; output_transfer is a transfer's name.

    Attributes:
        network: As given.
        solutions: Those of the last step whose losses were recorded, by name of the layer.

    Example:
        >>> import torch
        >>> from locoprop_lightning.solvers import ClosedForm
        >>> x, network = torch.eye(4), nn.Linear(4, 2)
        >>> backward = LocalBackward(network, x, ClosedForm(), lambda_a=1.0, lambda_r=1.0, objective="squared")
        >>> optimizer = torch.optim.SGD(backward.local_parameters(), lr=1.0)
        >>> losses = []
        >>> for _ in range(20):
        ...     losses.append(backward(x, lambda output: output.square().mean()))
        ...     optimizer.step()
        >>> losses[-1] < losses[0]
        tensor(True)
    """

    def __init__(
        self,
        network: nn.Module,
        example: Any,
        solver: LocalSolver,
        lambda_a: float,
        lambda_r: float,
        oracle: Oracle | None = None,
        **settings: Any,
    ) -> None:
        check_network("LocalBackward", network)
        check_shapes(network)
        if connect().size > 1:
            raise UserError("LocalBackward: works in one process, and this is one of several; take LocoPropModule.")
        known = [name for name in LocalSettings.__dataclass_fields__ if name not in ("scheduled", "accumulate")]
        for name in settings:
            if name not in known:
                raise UserError(f"LocalBackward: there is no setting {name!r}; take one of {', '.join(known)}.")
        oracle = GradientOracle() if oracle is None else oracle
        self.engine = LocalEngine(network, solver, oracle, LocalSettings(lambda_a, lambda_r, **settings))
        if oracle.draws({name: {} for name in self.engine.layers}):
            raise UserError(
                f"LocalBackward: oracle={oracle!r}: draws labels, which only a task can; set its samples=0."
            )
        self.network = network
        self.solutions = Solutions()
        self.engine.discover(network, example, connect())
        self._local = list(self.engine.local)
        self._reached = False  # whether a loss has had a gradient at the network

    def __call__(
        self,
        inputs: Any,
        loss_of: Callable[[Any], Tensor],
        terms: int | None = None,
        recording: Recording = Recording.NOTHING,
    ) -> Tensor:
        """One forward and one backward pass, and all local solves; clears the network's gradients first.

        Args:
            inputs: What the network is called with.
            loss_of: The loss of its output, a mean over terms; a sum of several losses, or what another network makes
                of the output, does too.
            terms: How many terms the mean is over; the number of samples in the inputs if not given.
            recording: Which local losses to compute, for ``solutions``.

        Returns:
            The loss, scalar, without its graph.

        Raises:
            UserError: Where a layer turns out not to be its matrix times its input, where one was replaced, for a loss
                that is not one number with a gradient at the network or calls its layers again, and where gradients are
                switched off.
        """
        engine, processes = self.engine, connect()
        if not callable(loss_of):
            kind = type(loss_of).__name__
            raise UserError(
                f"LocalBackward: loss_of is a {kind}: give a function of the network's output that makes the loss, "
                "such as lambda output: cross_entropy(output, labels)."
            )
        check_object("LocalBackward", Recording, "a Recording, such as Recording.CURVE", recording=recording)
        if terms is not None:
            check_counts("LocalBackward", 1, terms=terms)
        self._check_modules()
        if not torch.is_grad_enabled() or torch.is_inference_mode_enabled():
            raise UserError(
                "LocalBackward: gradients are switched off by torch.no_grad or torch.inference_mode; call it outside."
            )
        self.network.zero_grad(set_to_none=True)
        joined = JoinedBatches(engine.tape(self.network, processes), False, False)
        with uncompiled(), joined.tape.of(True), explained(self.network, inputs):
            output = call(self.network, inputs)
        with self._called_once():
            loss = loss_of(output)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            found = f"a tensor {list(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
            raise UserError(f"LocalBackward: loss_of returned {found}; return a tensor of one number, such as a mean.")
        check_gradient(self.network, output, loss)
        if not loss.requires_grad:
            raise UserError("LocalBackward: loss_of returned a tensor without a gradient; make it of the output.")
        batch = share_batch(processes, inputs, output, 1 if terms is None else terms, recording)
        if terms is None:
            batch = batch._replace(terms=batch.samples[0])
        check_counts("LocalBackward", 1, terms=batch.terms)
        joined.take(batch, [], loss).backward()
        self._check_reached(loss)
        problems = engine.problems(joined.tape, [], batch)
        for name in self._local:
            if name not in engine.local:
                reason = next((layer.reason for layer in engine.found or [] if layer.name == name), "")
                raise UserError(f"LocalBackward: layer {name!r} cannot be local: {reason}; name it in skip.")
        for problem in problems.values():
            engine.solver.check(problem)
        solutions = engine.solve(problems, batch)
        engine.write(solutions)
        self.solutions = Solutions(solutions if recording > Recording.NOTHING else {})
        return loss.detach()

    @contextmanager
    def _called_once(self) -> Iterator[None]:
        """Refuses gradients at another call of the local layers, whose rows would be in no local problem."""

        def refuse(gradient: Tensor) -> NoReturn:
            raise UserError(
                "LocalBackward: loss_of has called the network again; make the loss of the output that it is given, "
                "and call it under torch.no_grad() for a target."
            )

        def watch(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.requires_grad:
                output.register_hook(refuse)

        hooks = [self.engine.layers[name].module.register_forward_hook(watch) for name in self._local]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _check_reached(self, loss: Tensor) -> None:
        """Refuses a loss that is made of something else, as long as none has reached the network.

        One that is nothing but a number stands for a batch without terms.
        """
        trained = [p for p in self.network.parameters() if p.requires_grad] if not self._reached else []
        self._reached = self._reached or any(p.grad is not None for p in trained)
        if not self._reached and trained and loss.grad_fn is not None:
            raise UserError(
                "LocalBackward: the loss does not depend on the network's output, and no layer has a gradient; make it "
                "of the argument of loss_of, undetached."
            )

    def _check_modules(self) -> None:
        """Refuses a network in which a local layer is another module by now."""
        modules = dict(self.network.named_modules())
        for name in self._local:
            if modules.get(name) is not self.engine.layers[name].module:
                raise UserError(
                    f"LocalBackward: layer {name!r} was replaced; make LocalBackward and its optimizers after all "
                    "changes of the network."
                )

    def local_parameters(self) -> list[nn.Parameter]:
        """The parameters of local layers, for the optimizer of the displacements.

        Raises:
            UserError: Where one of them was replaced.
        """
        self._check_modules()
        return [p for name in self._local for p in self.engine.layers[name].module.parameters()]

    def other_parameters(self) -> list[nn.Parameter]:
        """All others that are trained, which have their true gradients."""
        local = set(self.local_parameters())
        return [p for p in self.network.parameters() if p not in local and p.requires_grad]

    def schedule(self, lambda_a: float = 1.0, lambda_r: float = 1.0, iterations: int | None = None) -> None:
        """Says what holds from the next step on.

        Args:
            lambda_a: What multiplies lambda_a of every layer.
            lambda_r: What multiplies lambda_r.
            iterations: Those of the solver; its own if not given.
        """
        self.engine.schedule(Scheduled(lambda_a, lambda_r, iterations))

    @property
    def layers(self) -> LayerTable:
        """The table of layers, of who trains each."""
        solver = repr(self.engine.solver)
        found = self.engine.found or []
        trained = {layer.name: solver if layer.local else "its gradient" for layer in found if layer.reason != "frozen"}
        return LayerTable(found, trained)

    def state_dict(self) -> dict[str, Any]:
        """What solver and oracle have learnt, to be saved with one's checkpoint."""
        state: dict[str, Any] = {}
        self.engine.save(state)
        return state | {_UNITS: self._units}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Goes on from what they had learnt.

        Raises:
            UserError: For what is none of ``state_dict()``, and for that of layers of other units.
        """
        check_object("LocalBackward", Mapping, "what state_dict() has returned", state_dict=state_dict)
        if not {*state_dict} & {*self.state_dict()}:
            raise UserError(
                f"LocalBackward(state_dict of {listed(state_dict)}): must be what state_dict() has returned."
            )
        before, there, here = self.state_dict(), state_dict.get(_UNITS, {}), self._units
        self.engine.load(dict(state_dict))
        for name, units in here.items():
            if there.get(name, units) != units and self.engine.layers[name].oracle_state:  # a solver begins anew
                self.engine.load(before)
                raise UserError(
                    f"LocalBackward(state_dict): layer {name!r} is of {there[name]} units there and of {units} here; "
                    "load it into the network that it was saved from."
                )

    @property
    def _units(self) -> dict[str, int]:
        """Units of the layers by name."""
        return {name: len(layer.matrices()[0]) for name, layer in self.engine.layers.items()}

    def __repr__(self) -> str:
        return shown(self, self.network, self.engine)
