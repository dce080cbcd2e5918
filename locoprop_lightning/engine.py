"""The engine of local training: from what a pass recorded to problems, and from solutions to displacements."""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple
from zlib import crc32

import torch
from torch import Tensor, nn

from locoprop_lightning.checkpoints import LOCAL_LAYERS, local_layers
from locoprop_lightning.distributed import Communicator, SharedBatch
from locoprop_lightning.errors import UserError, check_object
from locoprop_lightning.layers import LayerInfo, Record, Tape, discover
from locoprop_lightning.layers.discovery import candidates
from locoprop_lightning.layers.tape import Content
from locoprop_lightning.local import LocalProblem, Rows, State
from locoprop_lightning.local_layer import LocalLayer
from locoprop_lightning.oracles import Oracle
from locoprop_lightning.seed import run_seed
from locoprop_lightning.settings import LocalSettings
from locoprop_lightning.solvers import IterativeSolver, LocalSolver, Recording, Solution, Status
from locoprop_lightning.tasks import Task, detached


class Report(NamedTuple):
    """What is logged of one layer's solve, on the device.

    Attributes:
        losses: Local loss a sample before the first and after each iteration [T + 1], or the first and last alone [2].
        displacement: Norm of the applied displacement relative to the weights', scalar; 0 for a refused solution.
        out_of_range: Fraction of the targets outside the range of f, scalar.
    """

    losses: Tensor
    displacement: Tensor
    out_of_range: Tensor


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
        communicator: What the processes of the fit do together.
    """

    def __init__(self, network: nn.Module, solver: LocalSolver, oracle: Oracle, settings: LocalSettings) -> None:
        check_object(Oracle, oracle=oracle)
        _check_solver(solver, settings.objective)
        self.network = network
        self.solver = solver
        self.oracle = oracle
        self.settings = settings
        self.layers: dict[str, LocalLayer] = {}
        self.local: dict[str, LocalLayer] = {}
        self.found: list[LayerInfo] | None = None
        self.communicator = Communicator()
        settings.check(layer.name for layer in self.candidates())

    def candidates(self) -> list[LocalLayer]:
        """The layers that may be local as the network is now: some may have been frozen since."""
        now = candidates(self.network, self.settings.skip)
        for name, (module, kind) in now.items():
            if name not in self.layers or self.layers[name].module is not module:
                self.layers[name] = LocalLayer(name, module, kind, **self.settings.lambdas(name))
        self._now = [self.layers[name] for name in now]
        return self._now

    def start(self, communicator: Communicator) -> None:
        """Begins a fit: the layers are found anew with its first batch.

        Args:
            communicator: What the processes of the fit do together.
        """
        self.communicator, self.found, self.local = communicator, None, {}

    def discover(self, x: Any) -> bool:
        """Finds the local layers and their transfers with the first batch of a fit; says whether this is it.

        Args:
            x: Inputs of the network.

        Raises:
            UserError: Where the link has no single output layer, and where processes do not agree.
        """
        if self.found is not None:
            return False
        chosen = self.settings
        self.found = discover(self.network, x, chosen.skip, chosen.transfers, chosen.objective, chosen.output_transfer)
        outputs = sum(info.output for info in self.found)
        if chosen.output_transfer != "identity" and outputs != 1:
            raise UserError(
                f"output_transfer='link' needs one layer whose pre-activation is the network's output, but there are "
                f"{outputs}: set transfers={{name: {chosen.output_transfer!r}}} instead."
            )
        for info in self.found:
            if info.local and self.layers.get(info.name) not in self._now:
                info.transfer, info.reason = None, "unfrozen after the optimizers were made"
            if info.transfer is not None:
                self.local[info.name] = layer = self.layers[info.name]
                layer.transfer = info.transfer
        transfers = str([(info.name, info.transfer and info.transfer.name) for info in self.found])
        if not self.communicator.agree(transfers, self._device):
            raise UserError(
                "trainer.devices: the processes' first batches take different ways through the network, so that they "
                "do not agree on its local layers; name those that are not always called in skip."
            )
        return True

    def tape(self) -> Tape:
        """Records the local layers of a forward and backward pass."""
        layers = {name: (layer.module, layer.kind) for name, layer in self.local.items()}
        moving = [*self.network.parameters(), *self.network.buffers()]
        return Tape(layers, moving, 1 / self.communicator.size)  # undoes SharedBatch.weigh

    def sampled(self, tape: Tape, task: Task, output: Any, batch: SharedBatch, step: int) -> list[dict[str, Tensor]]:
        """Gradients of labels drawn from the model's prediction, as often as the oracle asks, from a seed of their own.

        Args:
            tape: The tape, before the backward pass.
            task: Draws the labels.
            output: Output of the network.
            batch: The batch.
            step: The step, which the draws depend on.

        Returns:
            For each draw the gradients by layer, as rows [n, d_out].
        """
        known = {name: layer.oracle_state for name, layer in self.local.items() if layer.oracle_state}
        draws = self.oracle.draws(known or {name: {} for name in tape.records})
        if draws == 0:
            return []
        seed, prediction = [run_seed(), step], detached(output)
        if batch.alike:  # the labels are those that one process would draw
            prediction = self.communicator.interleave(prediction, batch.outputs)
        else:
            seed.append(self.communicator.rank)
        generator = torch.Generator(self._device).manual_seed(crc32(" ".join(map(str, seed)).encode()))
        labels = [task.sample_labels(prediction, generator) for _ in range(draws)]
        if batch.alike:
            labels = [self.communicator.own_part(label, batch.outputs) for label in labels]
        return [tape.gradients(batch.weigh(task.loss(output, label))) for label in labels]

    @property
    def _device(self) -> torch.device:
        return next(self.network.parameters()).device

    @torch.no_grad()
    def problems(self, tape: Tape, sampled: list[dict[str, Tensor]], batch: SharedBatch) -> dict[str, LocalProblem]:
        """The local problems of a step: targets T = f(A) - lambda_a D.

        Args:
            tape: The tape, after the backward pass.
            sampled: What ``sampled`` returned.
            batch: The batch.
        """
        tasks = {}
        with torch.autocast(self._device.type, enabled=False):
            for name, (rows, rounded) in self._with_rows(tape, batch).items():
                draws = [draw.get(name) for draw in sampled]
                layer, record = self.local[name], tape.records[name]
                tasks[name] = partial(self._problem, layer, record, draws, batch.terms, rows, rounded)
            return self.communicator.run(tasks)

    def _with_rows(self, tape: Tape, batch: SharedBatch) -> dict[str, tuple[Rows, bool]]:
        """The layers that have a problem in this step, on any process.

        Returns:
            The rows of each, and whether autocast has rounded its weight gradient.
        """
        numbers = []
        for record in tape.records.values():
            content = record.content
            numbers += [content, record.n if content == Content.SOLVABLE else 0, record.autocast, record.calls]
        table = self.communicator.gather([int(number) for number in numbers], self._device)
        found = {}
        for index, name in enumerate(tape.records):
            contents, counts, rounded, calls = zip(*(row[4 * index : 4 * index + 4] for row in table), strict=True)
            if max(contents) == Content.SOLVABLE:
                found[name] = self.communicator.rows(counts, batch.samples, calls), any(rounded)
            elif max(contents) == Content.EMPTY:  # zeros would be a reason to decay to the rest optimizer
                self.local[name].clear_gradients()
        return found

    def _problem(
        self, layer: LocalLayer, record: Record, draws: list[Tensor | None], terms: int, rows: Rows, rounded: bool
    ) -> LocalProblem:
        """The problem of one layer, after the oracle has seen its gradients."""
        if record.content != Content.SOLVABLE:  # other processes alone have rows
            record = record.without_rows()
        g, oracle, state = record.gradient(), self.oracle, layer.oracle_state
        shard = {"rows": rows} if self.communicator.size > 1 else {}  # an oracle may do without in one process
        oracle.observe(g, [g if draw is None else draw for draw in draws], terms, state, **shard)
        operator = self.communicator.operator(record.operator(), rows)
        gradients, weight_direction = layer.gradients(), None
        if gradients is not None and gradients[0].dtype == g.dtype and not rounded:
            weight_direction = partial(_weight_direction, oracle, gradients, terms, state)
        lambda_r: float | Tensor = layer.lambda_r
        if self.settings.damping == "relative":
            mean = operator.trace() / operator.width
            lambda_r = layer.lambda_r * mean.clamp_min(torch.finfo(mean.dtype).tiny)  # inputs of zeros
        assert layer.transfer is not None
        weight, bias = layer.matrices()
        return LocalProblem(
            operator,
            pre_activation=partial(record.pre_activation, operator),
            direction=partial(oracle.direction, g, terms, state),
            weight=weight.to(g.dtype),
            bias=None if bias is None else bias.to(g.dtype),
            transfer=layer.transfer,
            lambda_a=layer.lambda_a,
            lambda_r=lambda_r,
            weight_direction=weight_direction,
            name=layer.name,
        )

    def check(self, problems: Mapping[str, LocalProblem], rest: str) -> dict[str, str]:
        """Refuses problems that the solver cannot solve, and says who trains each layer, by name.

        Args:
            problems: The problems of the first step.
            rest: Name of the optimizer of all that is not local.
        """
        trained = {}
        for info in self.found or []:
            if info.name in problems:
                self.solver.check(problems[info.name])
                trained[info.name] = self.solver.describe(problems[info.name])
            elif info.local and self.local[info.name].gradients() is None:
                trained[info.name], info.reason = type(self.solver).__name__, "no gradient in the first batch"
            elif info.local:
                trained[info.name], info.reason = rest, "called where its rows cannot be recorded"
            elif info.reason != "frozen":
                trained[info.name] = rest
        return trained

    def solve(self, problems: Mapping[str, LocalProblem], record: Recording) -> dict[str, Solution]:
        """Solves all problems of a step."""
        states = {name: self.local[name].solver_state for name in problems}
        with torch.autocast(self._device.type, enabled=False):
            solutions = self.solver.solve_all(problems, states, record, self.communicator.run, self.communicator.sum)
        for name, solution in solutions.items():
            if solution.status is not Status.SOLVED:
                self.local[name].count(solution.status)
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
    def reports(self, solutions: Mapping[str, Solution]) -> dict[str, Report]:
        """What is logged of the solutions whose losses were recorded."""
        recorded = {name: s for name, s in solutions.items() if s.losses is not None}
        with torch.autocast(self._device.type, enabled=False):
            return self.communicator.run({name: partial(self._report, s) for name, s in recorded.items()})

    def _report(self, solution: Solution) -> Report:
        problem = solution.problem
        size = problem.relative(solution.displacement if self.applies(solution.status) else problem.zeros())
        assert solution.losses is not None
        return Report(solution.losses, size, problem.out_of_range())

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Solves that failed at first, by layer and status."""
        return {name: layer.counts for name, layer in self.layers.items() if layer.counts}

    def save(self, checkpoint: dict[str, Any]) -> None:
        """Adds what evolves of each layer."""
        states = {name: layer.state_dict() for name, layer in self.layers.items()}
        kept = {name: state for name, state in states.items() if any(state.values())}
        solver, oracle = type(self.solver).__qualname__, type(self.oracle).__qualname__
        checkpoint[LOCAL_LAYERS] = {"solver": solver, "oracle": oracle, "layers": kept}

    def load(self, checkpoint: dict[str, Any]) -> None:
        """Goes on from what evolved; what another solver or oracle has kept is left behind."""
        saved = local_layers(checkpoint, type(self.solver).__qualname__)
        for name, layer in self.layers.items():
            state = {"solver": {}, "oracle": {}, "counts": {}} | saved["layers"].get(name, {})
            if saved["solver"] != type(self.solver).__qualname__:
                state |= {"solver": {}, "counts": {}}
            if saved["oracle"] not in (None, type(self.oracle).__qualname__):
                state |= {"oracle": {}}
            layer.load_state_dict(state)


def _weight_direction(oracle: Oracle, gradients: list[Tensor], terms: int, state: State) -> Tensor | None:
    """D^T Y from the back-propagated G^T Y, where the oracle can."""
    return oracle.weight_direction(torch.cat(gradients, 1), terms, state)  # cat makes a copy, to be written over


def _check_solver(solver: LocalSolver, objective: str) -> None:
    check_object(LocalSolver, solver=solver)
    name = type(solver).__name__
    if isinstance(solver, IterativeSolver) and not hasattr(solver, "iterations"):
        raise UserError(f"solver={name}: its __init__ must call super().__init__().")
    if solver.squared_only and objective == "matching":
        raise UserError(
            f"solver={name} solves the squared loss only: set objective to 'squared', or take another solver, such as "
            "Majorization."
        )
