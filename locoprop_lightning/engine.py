"""The engine of local training: from what a pass recorded to problems, and from solutions to displacements."""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from locoprop_lightning.batches import explained
from locoprop_lightning.checkpoints import LOCAL_LAYERS, local_layers
from locoprop_lightning.distributed import Communicator, SharedBatch
from locoprop_lightning.errors import UserError
from locoprop_lightning.layers import LayerInfo, Record, Tape, discover
from locoprop_lightning.layers.discovery import candidates, reasons
from locoprop_lightning.layers.record import Content
from locoprop_lightning.local import LocalProblem, Rows
from locoprop_lightning.local_layer import UNRECORDED, LocalLayer, Report
from locoprop_lightning.local_problems import make_problem
from locoprop_lightning.optimizers.joined import JoinedOptimizer, describe
from locoprop_lightning.oracles import Oracle
from locoprop_lightning.settings import LocalSettings, Scheduled, check_takes_rows
from locoprop_lightning.solvers import (
    ClosedForm,
    LocalSolver,
    Majorization,
    Recording,
    Solution,
    Status,
    within_displacement,
)

_log = logging.getLogger(__name__)

Draw = Mapping[str, Sequence[Tensor | None]]  # gradients of drawn labels by layer, of each of its calls


class LocalEngine:
    """Owns the local layers of a network, and takes a batch through oracle and solver.

    Args:
        network: The network.
        solver: Solves the local problems.
        oracle: Direction of the targets.
        settings: What holds for the layers.

    Attributes:
        layers: All layers that may be local, now or at another time.
        local: Those that are, once the first batch of a fit has told.
        found: All layers of the network, from then on.
        trained: Who trains each of them, by name.
    """

    def __init__(self, network: nn.Module, solver: LocalSolver, oracle: Oracle, settings: LocalSettings) -> None:
        settings.check_parts(solver, oracle)
        self.solver = solver
        self.oracle = oracle
        self.settings = settings
        self.layers: dict[str, LocalLayer] = {}
        self.local: dict[str, LocalLayer] = {}
        self.found: list[LayerInfo] | None = None
        self.trained: dict[str, str] = {}
        self._verified: set[str] = set()  # names of layers
        self._steps = 0  # of this fit
        self._known: list[LocalLayer] = []  # to the optimizers
        self._scheduled = Scheduled()
        self.refresh(network)
        settings.check((layer.name for layer in self._known), reasons(network, settings.skip, settings.include))

    def replace(self, solver: LocalSolver, oracle: Oracle) -> None:
        """Takes another solver or oracle from the next step on; what the one before has kept is forgotten.

        Raises:
            UserError: For what is none, or does not fit the objective.
        """
        self.settings.check_parts(solver, oracle)
        for layer in self.layers.values():
            if solver is not self.solver:
                layer.solver_state, layer.counts = {}, {}
            if oracle is not self.oracle:
                layer.oracle_state = {}
        self.solver = solver
        self.oracle = oracle

    def schedule(self, scheduled: Scheduled) -> None:
        """Says what holds in place of the settings from the next step on."""
        self.solver.taking(scheduled.iterations)  # which refuses what it has not
        self._scheduled = scheduled

    def refresh(self, network: nn.Module) -> dict[str, nn.Parameter]:
        """Looks which layers may be local as the network is now, and gives their parameters by name.

        Args:
            network: The network; some of its layers may have been frozen or replaced since.
        """
        now = candidates(network, self.settings.skip, self.settings.include)
        for name, (module, kind) in now.items():
            if name not in self.layers or self.layers[name].module is not module:
                self.layers[name] = LocalLayer(name, module, kind)
        self._known = [self.layers[name] for name in now]
        return {f"{x.name}.{name}": p for x in self._known for name, p in x.module.named_parameters()}

    def start(self) -> None:
        """Begins a fit: its layers are found anew with its first batch."""
        self.found, self.local, self._verified, self._steps = None, {}, set(), 0

    def discover(self, network: nn.Module, x: Any, processes: Communicator) -> bool:
        """Finds the local layers and their transfers with the first batch of a fit; says whether this is it.

        Args:
            network: The network.
            x: Its inputs.
            processes: What the processes do together.

        Raises:
            UserError: Where the link has no single output layer, and where processes do not agree.
        """
        if self.found is not None:
            return False
        own = self.settings
        with explained(network, x):
            found = discover(network, x, own.skip, own.transfers, own.objective, own.output_transfer, own.include)
        outputs = sum(info.output for info in found)
        if own.output_transfer != "identity" and outputs != 1:
            raise UserError(
                f"output_transfer='link' needs one layer whose pre-activation is the network's output, but there are "
                f"{outputs}: set transfers={{name: {own.output_transfer!r}}} instead."
            )
        for info in found:
            if info.local and self.layers.get(info.name) not in self._known:
                info.transfer, info.reason = None, "unfrozen after the optimizers were made"
            if info.transfer is not None:
                self.local[info.name] = layer = self.layers[info.name]
                layer.take(info.transfer, **own.of_layer(info.name))
        transfers = str([(info.name, info.transfer and info.transfer.name) for info in found])
        if not processes.agree(transfers, next(network.parameters()).device):
            raise UserError(
                "trainer.devices: the processes' first batches take different ways through the network, so that they "
                "do not agree on its local layers; name those that are not always called in skip."
            )
        if processes.size > 1:
            check_takes_rows(self.oracle)
        self.found = found
        return True

    def tape(self, network: nn.Module, processes: Communicator) -> Tape:
        """Records the local layers of forward and backward passes."""
        layers = {name: (layer.module, layer.kind) for name, layer in self.local.items()}
        moving = [*network.parameters(), *network.buffers()]
        return Tape(layers, moving, 1 / processes.size)  # undoes SharedBatch.weigh

    @torch.no_grad()
    def problems(
        self, tape: Tape, sampled: list[Draw], batch: SharedBatch, rate: float = 1.0
    ) -> dict[str, LocalProblem]:
        """The local problems of a step: targets T = f(A) - lambda_a D.

        Args:
            tape: The tape, after the backward pass.
            sampled: What ``sampled_gradients`` returned.
            batch: The batch.
            rate: What multiplies the rates of inner steps.
        """
        tasks = {}
        with torch.autocast(batch.device.type, enabled=False):
            found, doubtful = self._with_rows(tape, batch)
            for name, (rows, rounded) in found.items():
                layer, record, draws = self.local[name], tape.records[name], [draw.get(name) for draw in sampled]
                parts = layer, record, draws, self.oracle, self.settings, self._scheduled
                tasks[name] = partial(make_problem, *parts, batch, rows, rounded, rate)
            problems = batch.processes.run(tasks)
            self._steps += 1
            again = self._steps & (self._steps - 1) == 0  # at each power of two, for what begins later
            new = [name for name in problems if again or name not in self._verified or name in doubtful]
            return self._verify(problems, new, tape, batch) if new else problems

    def _verify(
        self, problems: dict[str, LocalProblem], new: Sequence[str], tape: Tape, batch: SharedBatch
    ) -> dict[str, LocalProblem]:
        """Leaves to the rest optimizer what is no matrix times its input, by its first problem; gives the others."""
        tasks = {n: partial(self.local[n].verify, problems[n], tape.records[n], batch.processes.sum) for n in new}
        found = batch.processes.run(tasks)
        for info in self.found or []:
            if reason := found.get(info.name):
                info.transfer, info.reason = None, reason
                self.local.pop(info.name).oracle_state.clear()
                if self._verified:  # the table of layers is printed
                    _log.warning("Layer %r is left to the rest optimizer: %s.", info.name, reason)
        self._verified.update(new)
        return {name: problem for name, problem in problems.items() if name in self.local}

    def _with_rows(self, tape: Tape, batch: SharedBatch) -> tuple[dict[str, tuple[Rows, bool]], set[str]]:
        """The layers that have a problem in this step, on any process.

        Returns:
            The rows of each, and whether autocast has rounded its weight gradient; and those whose weight gradient may
            be none of their calls'.
        """
        numbers = []
        for name, record in tape.records.items():
            content = record.content
            n = self._number(name, record, batch) if content == Content.SOLVABLE else 0
            numbers += [content, n, record.autocast, record.calls, content == Content.SOLVABLE and record.inner]
        table = batch.processes.gather([int(number) for number in numbers], batch.device)
        found, doubtful = {}, set()
        for index, name in enumerate(tape.records):
            contents, counts, rounded, calls, inner = zip(
                *(row[5 * index : 5 * index + 5] for row in table), strict=True
            )
            if max(contents) == Content.SOLVABLE:
                found[name] = batch.processes.rows(counts, batch.samples, calls), any(rounded)
                doubtful |= {name} if any(inner) else set()
            elif max(contents) == Content.EMPTY:  # zeros would be a reason to decay to the rest optimizer
                self.local[name].clear_gradients()
        return found, doubtful

    def _number(self, name: str, record: Record, batch: SharedBatch) -> int:
        """How many rows the problem of a layer has in this process."""
        reduces = self.settings.shared_rows == "reduce"
        return record.blocks(name, batch.samples[batch.processes.rank]).count if reduces else record.n

    def trained_by(self, problems: Mapping[str, LocalProblem], outer: Optimizer, rest: Optimizer) -> dict[str, str]:
        """Who trains each layer, by name, with the reasons of those that turn out not to be local.

        Args:
            problems: The problems of the first step.
            outer: The optimizer of the displacements, which is named where it goes by parameter.
            rest: That of all that is not local.

        Raises:
            UserError: For a layer that does not act as its kind says, and for a problem that the solver cannot solve.
        """
        self.trained = trained = {}
        for info in self.found or []:
            if info.name in problems:
                self.solver.check(problems[info.name])
                trained[info.name] = self.solver.describe(problems[info.name])
                if isinstance(outer, JoinedOptimizer):
                    trained[info.name] += f", {describe(outer, info.module)}"
            elif info.local and self.local[info.name].gradients() is None:
                trained[info.name], info.reason = type(self.solver).__name__, "no gradient in the first batch"
            elif info.local:
                trained[info.name], info.reason = describe(rest, info.module), UNRECORDED
            elif info.reason != "frozen":
                trained[info.name] = describe(rest, info.module)
        return trained

    @torch.no_grad()
    def solve(self, problems: Mapping[str, LocalProblem], batch: SharedBatch) -> dict[str, Solution]:
        """Solves all problems of a step, and records what was wished for."""
        states = {name: self.local[name].solver_state for name in problems}
        run_all, agree = batch.processes.run, batch.processes.sum
        with torch.autocast(batch.device.type, enabled=False):
            recording, guard = Recording(batch.wish), self.settings.guard
            solver = self.solver.taking(self._scheduled.iterations)
            solutions = solver.solve_all(problems, states, recording, run_all, agree, retries=guard)
            for name, solution in solutions.items():
                if solution.status is not Status.SOLVED:
                    self.local[name].count(solution.status)
            if (bound := self.settings.max_displacement) is not None:
                solutions = {name: within_displacement(one, bound) for name, one in solutions.items()}
        return solutions

    def write(self, solutions: Mapping[str, Solution]) -> None:
        """Puts W0 - W+ where the gradients are; a refused solution leaves its layer without any."""
        for name, solution in solutions.items():
            if self.applies(solution.status):
                self.local[name].write(solution)
            else:
                self.local[name].clear_gradients()

    def applies(self, status: Status) -> bool:
        """Whether a solution that ended so is applied."""
        return status in (Status.SOLVED, Status.RETRIED) or (status is Status.DIVERGED and not self.settings.guard)

    @torch.no_grad()
    def reports(self, solutions: Mapping[str, Solution], batch: SharedBatch) -> dict[str, Report]:
        """What is logged of the solutions whose losses were recorded."""
        tasks = {
            name: partial(self.local[name].report, solution, self.applies(solution.status))
            for name, solution in solutions.items()
            if solution.losses is not None
        }
        with torch.autocast(batch.device.type, enabled=False):
            return batch.processes.run(tasks)

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Solves that failed at first, by layer and status."""
        return {name: layer.counts for name, layer in self.layers.items() if layer.counts}

    def save(self, checkpoint: dict[str, Any]) -> None:
        """Adds what evolves of each layer."""
        states = {name: layer.state_dict() for name, layer in self.layers.items()}
        kept = {name: state for name, state in states.items() if any(state.values())}
        checkpoint[LOCAL_LAYERS] = {"solver": _path(self.solver), "oracle": _path(self.oracle), "layers": kept}

    def load(self, checkpoint: dict[str, Any]) -> None:
        """Goes on from what evolved; what another solver or oracle has kept is left behind."""
        solver, oracle = _path(self.solver), _path(self.oracle)
        preconditions = isinstance(self.solver, ClosedForm | Majorization)
        saved = local_layers(checkpoint, solver, self.solver.state_key, preconditions)
        for name, layer in self.layers.items():
            state = {"solver": {}, "oracle": {}, "counts": {}} | saved["layers"].get(name, {})
            if saved["solver"] != solver:
                state |= {"solver": {}, "counts": {}}
            if saved["oracle"] not in (None, oracle):
                state |= {"oracle": {}}
            layer.load_state_dict(state)


def _path(part: LocalSolver | Oracle) -> str:
    """The class of a solver or an oracle by its path."""
    return f"{type(part).__module__}.{type(part).__qualname__}"
