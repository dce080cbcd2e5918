"""The Lightning module that trains every layer by its own local problem."""

from collections.abc import Sequence
from typing import Any, Literal

from lightning.pytorch import Callback
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim import SGD, AdamW

from locoprop_lightning.engine import LocalEngine
from locoprop_lightning.errors import check_choice
from locoprop_lightning.joined_batches import JoinedBatches
from locoprop_lightning.layer_table import print_layers
from locoprop_lightning.layers.compiled import uncompiled
from locoprop_lightning.layers.discovery import check_shapes
from locoprop_lightning.local import Transfer
from locoprop_lightning.local_view import LocalView
from locoprop_lightning.observer import asked, tell
from locoprop_lightning.optimizers import owned_parameters
from locoprop_lightning.optimizers.factory import check_all, optimizer_from, tell_default_rate
from locoprop_lightning.optimizers.remainders import keep_remainders
from locoprop_lightning.optimizers.schedule import follow, rates
from locoprop_lightning.oracles import GradientOracle, Oracle
from locoprop_lightning.rest import Rest
from locoprop_lightning.sampling import sampled_gradients
from locoprop_lightning.settings import Fixed, LocalSettings, check_optimizers, check_trainer
from locoprop_lightning.solvers import LocalSolver, Recording
from locoprop_lightning.supervised import SupervisedModule
from locoprop_lightning.tasks import Task


class LocoPropModule(LocalView, Fixed, SupervisedModule):
    """Trains every layer of a known kind by its own local problem (review, section 2).

    A step does one forward and one backward pass, gives each layer its target T = f(A) - lambda_a D, has the solver
    solve all layers, and steps the outer optimizer on W0 - W+. Other parameters are trained by their true gradient with
    ``rest_optimizer``.

    Args:
        network: The network.
        task: Loss, link and metrics.
        solver: Solves the local problems.
        lambda_a: Length of the oracle's step, above 0; its scale is the oracle's.
        lambda_r: Strength of the proximal term, above 0.
        objective: "matching" is LocoProp-M (f is the activation that follows the layer), "squared" LocoProp-S.
        oracle: Direction of the target; ``GradientOracle`` if not given.
        output_transfer: f of the output layer for M: "identity" as in the review's code, "link" as in the LocoProp
            paper (the task's link function).
        transfers: f of a layer by name, a name or a Transfer, overriding what the probing pass finds.
        skip: Patterns of layers that ``rest_optimizer`` trains.
        include: Patterns of layers that are local on request only, such as embeddings.
        damping: "absolute" takes lambda_r as it is, "relative" times the mean eigenvalue of C.
        overrides: By pattern of layers, of which a later match wins: lambda_a, lambda_r, and unit_groups, into how many
            equal groups of neighbouring units the oracle takes it apart, such as 3 for queries, keys and values in one.
        step_length: lambda_a is the length of the oracle's step in "targets", or that of a layer's step in
            "activations": the root mean square by which its outputs move, on 256 rows or more (mathematics, section 9).
        shared_rows: What a row is where a layer acts at several positions of a sample: "expand" takes each position for
            one, "reduce" a sample, with the mean of its inputs and the sum of its gradients (Eschenhagen et al., 2023),
            for ``ClosedForm`` alone. The first dimension of a layer's output must then be the samples.
        max_displacement: How far a layer may move in a step, relative to the norm of its weights (or of PyTorch's first
            ones, if that is larger); no bound if not given. Local losses are those of the solution before it is cut.
        accumulate: Batches of the data whose rows are joined in one step; at the end of an epoch there may be fewer.
        guard: Whether a solution by stale factors that failed is tried again, and a diverged one leaves its layer
            untouched for the step. A non-finite one always does.
        optimizer: Applies the displacements; SGD with rate 1 sets W to W+.
        rest_optimizer: Trains all other parameters.
        lr_scheduler: Makes a schedule, stepped once a batch; ``rest_optimizer`` follows.
        scheduled: What it multiplies: the "outer" rate, or the rate of the solver's "inner" steps.

    Attributes:
        engine: The local layers and all that evolves with them.
        rest: What steps all others.
    """

    def __init__(
        self,
        network: nn.Module,
        task: Task,
        solver: LocalSolver,
        lambda_a: float,
        lambda_r: float,
        objective: Literal["matching", "squared"] = "matching",
        oracle: Oracle | None = None,
        output_transfer: Literal["identity", "link"] = "identity",
        transfers: dict[str, str | Transfer] | None = None,
        skip: Sequence[str] = (),
        include: Sequence[str] = (),
        damping: Literal["absolute", "relative"] = "absolute",
        overrides: dict[str, dict[str, float]] | None = None,
        step_length: Literal["targets", "activations"] = "targets",
        shared_rows: Literal["expand", "reduce"] = "expand",
        max_displacement: float | None = None,
        accumulate: int = 1,
        guard: bool = True,
        optimizer: OptimizerCallable = lambda p: SGD(p, lr=1.0),
        rest_optimizer: OptimizerCallable = lambda p: AdamW(p),
        lr_scheduler: LRSchedulerCallable | None = None,
        scheduled: Literal["outer", "inner"] = "outer",
    ) -> None:
        super().__init__(network, task)
        self.automatic_optimization = False
        check_shapes(network)
        check_choice("", ("identity", "link"), output_transfer=output_transfer)
        settings = LocalSettings(
            lambda_a=lambda_a,
            lambda_r=lambda_r,
            objective=objective,
            output_transfer=task.link if output_transfer == "link" else "identity",
            transfers=transfers or {},
            skip=skip,
            include=include,
            damping=damping,
            overrides=overrides or {},
            guard=guard,
            scheduled=scheduled,
            step_length=step_length,
            shared_rows=shared_rows,
            max_displacement=max_displacement,
            accumulate=accumulate,
        )
        self._joined: JoinedBatches | None = None
        self.engine = LocalEngine(network, solver, GradientOracle() if oracle is None else oracle, settings)
        self.rest = Rest()
        self._optimizer, self._rest_optimizer = optimizer, rest_optimizer
        self._lr_scheduler, self._scheduled = lr_scheduler, scheduled

    @property
    def solver(self) -> LocalSolver:
        """The solver; another one may be set between fits."""
        return self.engine.solver

    @solver.setter
    def solver(self, solver: LocalSolver) -> None:
        self.engine.replace(solver, self.engine.oracle)

    @property
    def oracle(self) -> Oracle:
        """The oracle; another one may be set between fits."""
        return self.engine.oracle

    @oracle.setter
    def oracle(self, oracle: Oracle) -> None:
        self.engine.replace(self.engine.solver, oracle)

    @property
    def accumulate(self) -> int:  # type: ignore[override]
        """Batches of the data that make one step."""
        return self.engine.settings.accumulate

    @property
    def within_step(self) -> bool:
        """Whether a step has taken in batches, and waits for more."""
        return self._joined is not None

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """One pass, all local solves, one outer step; of several batches of a step, the last one makes it."""
        engine, processes, outer = self.engine, self.communicator, self.optimizers()[0]  # type: ignore[index]
        x, target = self.task.inputs(batch), self.task.target(batch)
        starting = engine.discover(self.network, x, processes)
        joined = self._begin(starting) if self._joined is None else self._joined
        with uncompiled(), joined.tape.of(self.task.complete(target) and not self.task.padded(x)):
            output = self(x)
        own = self.share(x, output, target, asked(self.trainer))
        loss = own.weigh(self.loss_of(output, target))
        draws = sampled_gradients(engine, joined.tape, self.task, output, target, own, self.global_step, len(joined))
        self.manual_backward(joined.take(own, draws, loss))
        if len(joined) < self.accumulate and not self.trainer.is_last_batch:
            return {"loss": self.watch(loss, output, target, self.logs_this_step)}
        self._joined = None
        shared, sampled, loss = joined.finish(self.network)
        outer_rate, inner_rate = rates(self.trainer.optimizers, self._scheduled)
        problems = engine.problems(joined.tape, sampled, shared, inner_rate)  # T = f(A) - lambda_a D
        if joined.starting:
            print_layers(self.trainer, engine.found or [], engine.trained_by(problems, *self.trainer.optimizers))
        self.rest.look(self.network, (engine.local[name] for name in problems))
        solutions = engine.solve(problems, shared)
        self.rest.step(self.network, self.trainer.optimizers[1], solutions, self._scheduled == "inner")
        engine.write(solutions)  # W0 - W+ where gradients are
        if shared.wish > Recording.NOTHING:
            tell(self.trainer, problems, engine.reports(solutions, shared), engine.counts)
        logs = self.logs_this_step
        outer.step()
        self._step_schedule()
        return {"loss": self.log_training(loss, output, target, outer_rate * inner_rate, logs)}

    def _begin(self, starting: bool) -> JoinedBatches:
        """Begins a step: no gradients yet, and nothing recorded."""
        self.rest.begin(self.network)
        tape = self.engine.tape(self.network, self.communicator)
        self._joined = joined = JoinedBatches(tape, self.accumulate > 1, starting)
        return joined

    def _step_schedule(self) -> None:
        if (schedule := self.lr_schedulers()) is not None:
            schedule.step()  # type: ignore[union-attr]
            follow(self.trainer.optimizers, self._scheduled)

    def configure_callbacks(self) -> list[Callback]:
        """Hands the solver to the trainer, whose hooks it may use, unless ``check_trainer`` refuses that."""
        super().configure_callbacks()
        if self.trainer.state.fn == TrainerFn.FITTING:
            check_trainer(self.trainer)
        return [self.solver]

    def configure_optimizers(self) -> Any:
        """The outer optimizer and the rest optimizer.

        Only the first batch tells which layers cannot be local, so the rest optimizer is given every parameter; torch's
        optimizers pass over those without a gradient.
        """
        local, everything = set(self.engine.refresh(self.network).values()), owned_parameters(self.network)
        outer = optimizer_from("optimizer", self._optimizer, [p for p in everything if p.parameter in local], False)
        check_all("optimizer", outer, [p for p in everything if p.parameter in local])
        rest = optimizer_from("rest_optimizer", self._rest_optimizer, everything, False)
        tell_default_rate(outer)
        for optimizer in (outer, rest):
            keep_remainders(optimizer)
        scheduled = outer if self._scheduled == "outer" else rest
        schedules = [] if self._lr_scheduler is None else [self.schedule_of(self._lr_scheduler, scheduled)]
        if schedules:  # one may begin below the first rate
            follow((outer, rest), self._scheduled)
        return [outer, rest], schedules

    def on_fit_start(self) -> None:
        """Joins the other processes, and finds the layers anew."""
        check_optimizers(self.trainer)
        super().on_fit_start()
        self._joined = None
        self.engine.start()

    def on_train_start(self) -> None:
        """Sets the rest optimizer's rate after a resume too."""
        super().on_train_start()
        if self.lr_schedulers() is not None:
            follow(self.trainer.optimizers, self._scheduled)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what solver and oracle have learnt of each layer."""
        super().on_save_checkpoint(checkpoint)
        self.engine.save(checkpoint)
        self.rest.save(checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Goes on from what solver and oracle had learnt."""
        super().on_load_checkpoint(checkpoint)
        self.engine.load(checkpoint)
        self.rest.load(checkpoint)
