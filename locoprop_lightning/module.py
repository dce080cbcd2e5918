"""The two Lightning modules: local solves (manual optimisation) and plain back-propagation for the baselines."""

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Literal
from zlib import crc32

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils._pytree import tree_leaves, tree_map
from torchmetrics import MetricCollection

from locoprop_lightning import processes
from locoprop_lightning.errors import UserError, check_choice, check_object, check_positive
from locoprop_lightning.layer_table import print_layers
from locoprop_lightning.local import Layer, LocalProblem, Record, Tape, Transfer, discover, resolve_transfer
from locoprop_lightning.local.discovery import call, candidates, check_names, check_patterns
from locoprop_lightning.local.factor import State
from locoprop_lightning.local.linear_map import WeightLayer
from locoprop_lightning.local.share import Share
from locoprop_lightning.local.tape import Rows
from locoprop_lightning.optimizers import LinearDecay, SplitOptimizer
from locoprop_lightning.oracles import GradientOracle, Oracle
from locoprop_lightning.seed import run_seed
from locoprop_lightning.solvers import LocalSolver
from locoprop_lightning.tasks import MeanLoss, Task

Batch = tuple[Any, Any]


class SupervisedModule(LightningModule):
    """What both modules share: evaluation, logging and the table of layers.

    Args:
        network: The network.
        task: Loss and metrics.
    """

    def __init__(self, network: nn.Module, task: Task) -> None:
        super().__init__()
        check_object(nn.Module, network=network)
        check_object(Task, task=task)
        self.network = network
        self.task = task
        metrics = task.metrics()
        self.train_metrics = metrics.clone(prefix="train/")
        self.val_metrics = metrics.clone(prefix="val/")
        self.test_metrics = metrics.clone(prefix="test/")
        self.val_loss, self.test_loss = MeanLoss(), MeanLoss()
        self._layers: list[Layer] | None = None
        self._saved_optimizers: list[str] | None = None  # names in the checkpoint that was loaded
        self.untouched: dict[str, nn.Parameter] = {}  # trainable ones that no backward pass of the fit has reached

    def forward(self, x: Any) -> Any:
        """Output of the network; a tuple or list of inputs becomes its arguments, a mapping its keyword arguments."""
        return call(self.network, x)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:  # noqa: D102
        self._evaluate(batch, "val", self.val_metrics, self.val_loss)

    def test_step(self, batch: Batch, batch_idx: int) -> None:  # noqa: D102
        self._evaluate(batch, "test", self.test_metrics, self.test_loss)

    def predict_step(self, batch: Batch | Tensor, batch_idx: int) -> Tensor:
        """Predictions of the task for a batch, with or without targets."""
        return self.task.predict(self(batch if isinstance(batch, Tensor) else batch[0]))

    def _evaluate(self, batch: Batch, stage: str, metrics: MetricCollection, mean: MeanLoss) -> None:
        output, target = self(batch[0]), self.task.target(*batch)
        loss, size = self.task.loss(output, target), self.task.terms(target)
        metrics.update(self.task.score(output), target)
        mean.update(loss, size)  # Lightning's own mean does not weigh the processes
        self.log(f"{stage}/loss", mean, batch_size=size, prog_bar=stage == "val")
        self.log_dict(metrics, batch_size=size, prog_bar=stage == "val")

    def _schedule(self, make: LRSchedulerCallable, optimizer: Optimizer) -> Any:
        """Makes a schedule, and tells it the length of the run if it asks."""
        schedule = _make("lr_scheduler", make, optimizer)
        if isinstance(schedule, LinearDecay) and schedule.total_steps is None:
            total = self.trainer.estimated_stepping_batches
            if total == float("inf"):
                raise UserError("lr_scheduler=LinearDecay needs an end: set trainer.max_epochs, or its total_steps.")
            schedule.total_steps = int(total)
        return schedule

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the names of the optimizers."""
        checkpoint["optimizers"] = self._optimizer_names()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:  # noqa: D102
        self._saved_optimizers = checkpoint.get("optimizers")

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Loads weights.

        Raises:
            UserError: If they are of another network.
        """
        try:
            return super().load_state_dict(state_dict, strict, assign)
        except RuntimeError as error:
            _, first, *more = str(error).splitlines() or [""] * 2
            others = f" ({len(more)} more do not fit)" if more else ""
            raise UserError(f"The checkpoint is of another network: {first.strip()}{others}") from error

    def on_fit_start(self) -> None:
        """Forgets the layers of an earlier fit, and refuses to resume with other optimizers.

        Raises:
            UserError: Names both.
        """
        together = processes.count()
        if together not in (1, self.trainer.world_size):
            raise UserError(
                f"trainer.devices: this process is one of {together} of torch.distributed, but the trainer counts "
                f"{self.trainer.world_size}: let Lightning start them, or leave the process group."
            )
        self._layers = None
        self.untouched = {name: p for name, p in self.network.named_parameters() if p.requires_grad}
        saved, own = self._saved_optimizers, self._optimizer_names()
        if self.trainer.ckpt_path is not None and saved is not None and saved != own:
            raise UserError(
                f"ckpt_path: the checkpoint was trained by {' and '.join(saved)}, not by {' and '.join(own)}; resume "
                "with the configuration that made it."
            )

    def on_after_backward(self) -> None:
        """Notes which parameters have a gradient for the first time."""
        if self.untouched:
            self.untouched = {name: p for name, p in self.untouched.items() if p.grad is None}

    def _optimizer_names(self) -> list[str]:
        """What must be the same for the optimizers' state to fit: their kinds, and how many parameters they have."""
        names = []
        for optimizer in self.trainer.optimizers:
            parts = optimizer.children if isinstance(optimizer, SplitOptimizer) else (optimizer,)
            kinds = "/".join(type(part).__name__ for part in parts)
            names.append(f"{kinds} ({sum(len(group['params']) for group in optimizer.param_groups)} parameters)")
        return names

    @property
    def _logs_this_step(self) -> bool:
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return every > 0 and (self.global_step + 1) % every == 0

    def _log_training(self, loss: Tensor, output: Tensor, target: Any, rate: float, logs: bool) -> None:
        self.log("train/loss", processes.mean(loss), prog_bar=True)
        if logs:
            self.train_metrics.update(self.task.score(output), target)
            self.log_dict(self.train_metrics.compute())  # of all processes
            self.train_metrics.reset()
            self.log("lr", rate)


class BackpropModule(SupervisedModule):
    """Trains by back-propagation with any torch optimizer: the baselines.

    Args:
        network: The network.
        task: Loss and metrics.
        optimizer: Makes the optimizer from the parameters.
        lr_scheduler: Makes a schedule from the optimizer; stepped once a batch.
    """

    def __init__(
        self,
        network: nn.Module,
        task: Task,
        optimizer: OptimizerCallable,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(network, task)
        self._optimizer = optimizer
        self._lr_scheduler = lr_scheduler

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Prints the table of layers before the first step."""
        if self._layers is None:
            self._layers = discover(self.network, batch[0])
            name = type(self.trainer.optimizers[0]).__name__
            trained = {layer.name: name for layer in self._layers if layer.reason != "frozen"}
            print_layers(self.trainer, self._layers, trained, plain=True)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One forward pass; Lightning does the rest."""
        logs = self._logs_this_step
        output, target = self(batch[0]), self.task.target(*batch)
        loss = self.task.loss(output, target)
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        self._log_training(loss.detach(), _detached(output), target, rate, logs)
        return loss

    def configure_optimizers(self) -> Any:  # noqa: D102
        optimizer = _make("optimizer", self._optimizer, [p for p in self.network.parameters() if p.requires_grad])
        if self._lr_scheduler is None:
            return optimizer
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self._schedule(self._lr_scheduler, optimizer), "interval": "step"},
        }


class LocoPropModule(SupervisedModule):
    """Trains every linear layer by its own local problem (review, section 2).

    A training step does one forward and one backward pass, builds each layer's target T = f(A) - lambda_a D, and steps
    the outer optimizer; the solver, a callback, solves all layers in ``on_before_optimizer_step`` and puts W0 - W+
    where their gradients are. Other parameters are trained by their true gradient with ``rest_optimizer``.

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
        damping: "absolute" takes lambda_r as it is, "relative" times trace(C)/d_in.
        overrides: lambda_a and lambda_r by pattern of layers; a later match wins.
        reduction: What several processes (strategy "ddp") do together. "exact" solves the local problems of all their
            rows: sums over rows go over the processes, and weights are those of one process with the whole batch.
        guard: Whether a diverged local solution leaves its layer untouched for the step. A non-finite one always does.
        optimizer: Applies the displacements; SGD with rate 1 sets W to W+.
        rest_optimizer: Trains all other parameters.
        lr_scheduler: Makes a schedule of the outer rate, stepped once a batch; ``rest_optimizer`` follows.
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
        damping: Literal["absolute", "relative"] = "absolute",
        overrides: dict[str, dict[str, float]] | None = None,
        reduction: Literal["exact"] = "exact",
        guard: bool = True,
        optimizer: OptimizerCallable = lambda p: SGD(p, lr=1.0),
        rest_optimizer: OptimizerCallable = lambda p: AdamW(p),
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(network, task)
        self.automatic_optimization = False
        check_choice("", ("matching", "squared"), objective=objective)
        check_choice("", ("identity", "link"), output_transfer=output_transfer)
        check_choice("", ("absolute", "relative"), damping=damping)
        check_choice("", ("exact",), reduction=reduction)
        check_positive("", lambda_a=lambda_a, lambda_r=lambda_r)
        _check_solver(solver, objective)
        if oracle is not None:
            check_object(Oracle, oracle=oracle)
        self.solver = solver
        self.lambda_a = lambda_a
        self.lambda_r = lambda_r
        self.objective = objective
        self.oracle = GradientOracle() if oracle is None else oracle
        self.output_transfer = task.link if output_transfer == "link" else "identity"
        self.transfers = {name: _transfer(name, t) for name, t in (transfers or {}).items()}
        self.skip = list(skip)
        self.damping = damping
        self.guard = guard
        self._optimizer = optimizer
        self._rest_optimizer = rest_optimizer
        self._lr_scheduler = lr_scheduler
        self._candidates = candidates(network, self.skip)
        if not self._candidates:
            raise UserError("LocoPropModule: the network has no layer to train locally; use BackpropModule.")
        check_names("transfers", self.transfers, self._candidates)
        self._overrides = self._checked(overrides or {})
        self._local: dict[str, WeightLayer] = {}
        self.problems: dict[str, LocalProblem] = {}
        self.oracle_state: dict[str, State] = {}  # by name of the layer
        self.record_losses = False  # whether this step computes the local-loss curves

    def _checked(self, overrides: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
        check_patterns("overrides", overrides, self._candidates)
        for pattern, values in overrides.items():
            for key, value in values.items():
                if key not in ("lambda_a", "lambda_r"):
                    raise UserError(f"overrides[{pattern!r}] has no setting {key!r}: take lambda_a or lambda_r.")
                check_positive("", **{f"overrides[{pattern!r}].{key}": value})
        return overrides

    def _lambdas(self, name: str) -> dict[str, float]:
        """The lambdas of a layer."""
        settings = {"lambda_a": self.lambda_a, "lambda_r": self.lambda_r}
        for pattern, values in self._overrides.items():
            if fnmatchcase(name, pattern):
                settings |= values
        return settings

    def configure_callbacks(self) -> list[Callback]:
        """Hands the solver to the trainer, so that it cannot be forgotten."""
        return [self.solver]

    def configure_optimizers(self) -> Any:
        """The outer optimizer and the rest optimizer.

        Only the first batch tells which layers cannot be local, so the rest optimizer is given every parameter; torch's
        optimizers pass over those without a gradient.
        """
        self._candidates = candidates(self.network, self.skip)  # some may have been frozen since
        local = [p for layer in self._candidates.values() for p in layer.parameters()]
        outer = _make("optimizer", self._optimizer, local)
        rest = _make("rest_optimizer", self._rest_optimizer, list(self.network.parameters()))
        for setting, optimizer in (("optimizer", outer), ("rest_optimizer", rest)):
            if isinstance(optimizer, LBFGS):
                raise UserError(f"{setting}=LBFGS evaluates the loss several times a step; take one that does not.")
        schedules = [] if self._lr_scheduler is None else [self._schedule(self._lr_scheduler, outer)]
        if any(isinstance(schedule, ReduceLROnPlateau) for schedule in schedules):
            raise UserError("lr_scheduler=ReduceLROnPlateau needs a metric; take a schedule that counts steps.")
        if schedules:  # one may begin below the first rate
            _follow(rest, outer)
        return [outer, rest], schedules

    def on_fit_start(self) -> None:
        """Refuses what local solves cannot do.

        Raises:
            UserError: For several processes that split the weights, for a precision that scales the loss, and for other
                optimizers on resume.
        """
        if self.trainer.world_size > 1 and not isinstance(self.trainer.strategy, DDPStrategy):
            raise UserError(
                f"trainer.strategy: local problems are summed over the processes of 'ddp' alone, not over those of "
                f"{type(self.trainer.strategy).__name__}, and there are {self.trainer.world_size}."
            )
        if self.trainer.precision == "16-mixed":
            raise UserError("trainer.precision='16-mixed' scales the loss and with it every target; take 'bf16-mixed'.")
        super().on_fit_start()

    def on_train_start(self) -> None:
        """Sets the rest optimizer's rate after a resume too."""
        if self.lr_schedulers() is not None:
            outer, rest = self.optimizers()  # type: ignore[attr-defined]
            for group in outer.param_groups:
                group.setdefault("initial_lr", group["lr"])  # the run had no schedule before
            _follow(rest, outer)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """One pass, all local solves, one outer step."""
        x = batch[0]
        starting = self._layers is None
        if starting:
            self._discover(x)
        logs = self._logs_this_step
        outer, rest = self.optimizers()  # type: ignore[attr-defined]
        self.network.zero_grad(set_to_none=True)
        with Tape(self._local, [*self.network.parameters(), *self.network.buffers()]) as tape:
            output = self(x)
        target = self.task.target(*batch)
        loss, own = self.task.loss(output, target), self.task.terms(target)
        recording = self.record_losses, self.solver.whole_curves
        said = [own, _length(x), _length(output), _kind_of(output), *recording]
        table = processes.gather([int(number) for number in said], loss.device)
        counts, samples, rows, kinds, records, whole = zip(*table, strict=True)
        # Else a process that records would wait for the others.
        self.record_losses, self.solver.whole_curves = any(records), any(whole)
        terms = sum(counts)
        alike = len(counts) == 1 or (isinstance(output, Tensor) and len(set(kinds)) == 1)
        sampled = self._sampled(tape, output, loss.device, own / terms, rows if alike else None)
        if len(counts) > 1:  # its mean over processes, which is what DDP makes of gradients, is that of all terms
            loss = loss * (own * len(counts) / terms)
        self.manual_backward(loss)
        with torch.no_grad(), torch.autocast(loss.device.type, enabled=False):
            shares = self._shares(tape, samples, loss.device)
            self.problems = processes.lockstep(
                {
                    name: partial(self._problem, name, tape.records[name], sampled, terms, share, rounded)
                    for name, (share, rounded) in shares.items()
                }
            )
        if starting:
            self._announce()
        self._step_rest(rest)
        rate = outer.param_groups[0]["lr"]
        outer.step()
        self.record_losses, self.solver.whole_curves = recording
        self.problems = {}
        self._step_schedule(outer, rest)
        self._log_training(loss.detach(), _detached(output), target, rate, logs)
        return {"loss": loss.detach()}

    def _discover(self, x: Any) -> None:
        self._layers = discover(self.network, x, self.skip, self.transfers, self.objective, self.output_transfer)
        outputs = [layer.name for layer in self._layers if layer.output]
        if self.output_transfer != "identity" and len(outputs) != 1:
            raise UserError(
                f"output_transfer='link' needs one layer whose pre-activation is the network's output, but there are "
                f"{len(outputs)}: set transfers={{name: {self.output_transfer!r}}} instead."
            )
        for layer in self._layers:
            if layer.local and layer.name not in self._candidates:
                layer.transfer, layer.reason = None, "unfrozen after the optimizers were made"
        said = crc32(str([(layer.name, layer.transfer and layer.transfer.name) for layer in self._layers]).encode())
        if len(set(map(tuple, processes.gather([said], self.device)))) > 1:
            raise UserError(
                "trainer.devices: the processes' first batches take different ways through the network, so that they "
                "do not agree on its local layers; name those that are not always called in skip."
            )
        self._local = {layer.name: self._candidates[layer.name] for layer in self._layers if layer.local}
        self._settings = {name: self._lambdas(name) for name in self._local}
        self._transfers = {layer.name: layer.transfer for layer in self._layers if layer.transfer is not None}

    def _announce(self) -> None:
        for problem in self.problems.values():
            self.solver.check(problem)
        rest = type(self.trainer.optimizers[1]).__name__
        trained = {}
        for layer in self._layers or []:
            if layer.name in self.problems:
                trained[layer.name] = self.solver.describe(self.problems[layer.name])
            elif layer.local and self._local[layer.name].weight.grad is None:
                trained[layer.name], layer.reason = type(self.solver).__name__, "no gradient in the first batch"
            elif layer.local:
                trained[layer.name], layer.reason = rest, "called where its rows cannot be recorded"
            elif layer.reason != "frozen":
                trained[layer.name] = rest
        print_layers(self.trainer, self._layers or [], trained)

    def _shares(self, tape: Tape, samples: Sequence[int], device: torch.device) -> dict[str, tuple[Share, bool]]:
        """The layers that have a problem in this step, on any process.

        Returns:
            Where the rows of this process stand among all, and whether autocast has rounded the weight gradient.
        """
        numbers = []
        for record in tape.records.values():
            kind = record.kind
            numbers += [kind, record.n if kind == Rows.SOLVABLE else 0, record.autocast, record.calls]
        table = processes.gather(numbers, device)
        shares = {}
        for index, name in enumerate(tape.records):
            kinds, rows, rounded, calls = zip(*(row[4 * index : 4 * index + 4] for row in table), strict=True)
            if max(kinds) == Rows.SOLVABLE:
                shares[name] = processes.share(rows, samples, calls), any(rounded)
            elif max(kinds) == Rows.NONE:  # zeros would be a reason to decay to the rest optimizer
                self._local[name].zero_grad(set_to_none=True)
        return shares

    def _sampled(
        self, tape: Tape, output: Any, device: torch.device, part: float, rows: Sequence[int] | None
    ) -> list[dict[str, Tensor]]:
        """Gradients of labels drawn from the model's prediction, as often as the oracle asks, from their own seed.

        Args:
            tape: The tape.
            output: Output of the network.
            device: Where it is.
            part: Part of the loss's terms that this process has.
            rows: Rows of each process's output, where these are alike: then the labels are those that one process would
                draw.
        """
        draws = self.oracle.draws(self.oracle_state or {name: {} for name in tape.records})
        if draws == 0:
            return []
        seed, prediction = [run_seed(), self.global_step], _detached(output)
        if rows is None:
            seed.append(processes.rank())
        else:
            prediction = processes.interleave(prediction, rows)
        generator = torch.Generator(device).manual_seed(crc32(" ".join(map(str, seed)).encode()))
        labels = [self.task.sample_labels(prediction, generator) for _ in range(draws)]
        if rows is not None:
            labels = [processes.own_part(label, rows) for label in labels]
        return [tape.gradients(self.task.loss(output, label) * part) for label in labels]

    def _problem(
        self,
        name: str,
        record: Record,
        sampled: list[dict[str, Tensor]],
        terms: int,
        share: Share,
        rounded: bool,
    ) -> LocalProblem:
        layer, settings = self._local[name], self._settings[name]
        if record.kind != Rows.SOLVABLE:  # other processes alone have some
            record = record.nothing()
        rows, g = record.map(), record.gradient()
        if share.processes > 1:
            g = g / share.processes  # undoes the weight of the loss
        oracle, state = self.oracle, self.oracle_state.setdefault(name, {})
        others = {"share": share} if share.processes > 1 else {}
        oracle.observe(g, [draw[name] if name in draw else g for draw in sampled], terms, state, **others)
        weight, bias = layer.weight.grad, None if layer.bias is None else layer.bias.grad
        rounded = rounded or weight is None or weight.dtype != g.dtype

        def first_gradient() -> Tensor | None:
            """lambda_a D^T Y, from the back-propagated G^T Y where the oracle can."""
            assert weight is not None
            parts = [weight.flatten(1)] if bias is None else [weight.flatten(1), bias[:, None]]
            # torch.cat makes a copy, which may be written over.
            direction = oracle.weight_direction(torch.cat(parts, 1), terms, state)
            return None if direction is None else direction.mul_(settings["lambda_a"])

        problem = LocalProblem(
            rows=rows,
            pre_activation=lambda: record.pre_activation(rows),
            direction=lambda: oracle.direction(g, terms, state),
            weight=layer.weight.detach().flatten(1).to(g.dtype),
            bias=None if layer.bias is None else layer.bias.detach().to(g.dtype),
            transfer=self._transfers[name],
            lambda_a=settings["lambda_a"],
            lambda_r=settings["lambda_r"],
            first_gradient=None if rounded else first_gradient,
            name=name,
            share=share,
        )
        if self.damping == "relative":
            mean = problem.trace() / problem.map.width
            problem.lambda_r = settings["lambda_r"] * mean.clamp_min(torch.finfo(mean.dtype).tiny)  # inputs of zeros
        return problem

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what the oracle has learnt of each layer."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["oracle_state"] = self.oracle_state

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:  # noqa: D102
        super().on_load_checkpoint(checkpoint)
        self.oracle_state = checkpoint.get("oracle_state", {})

    def commit(self, name: str, displacement: Tensor | None) -> None:
        """Puts W0 - W+ where the gradients of a layer are; None leaves the layer alone for this step.

        Args:
            name: Name of the layer.
            displacement: V = W+ - W0 [d_out, width].
        """
        layer = self._local[name]
        if displacement is None:
            layer.zero_grad(set_to_none=True)
            return
        weight, bias = self.problems[name].split(displacement)
        layer.weight.grad = weight.neg().to(layer.weight.dtype).reshape(layer.weight.shape)
        if bias is not None and layer.bias is not None:
            layer.bias.grad = bias.neg().to(layer.bias.dtype)

    def _step_rest(self, rest: LightningOptimizer) -> None:
        """Steps the rest, whose gradients are then gone, so that the outer optimizer finds displacements only."""
        for name in self.problems:  # without a gradient the rest optimizer passes over them
            self._local[name].zero_grad(set_to_none=True)
        if any(p.grad is not None for p in self.network.parameters()):
            rest.optimizer.step()  # not the wrapper's, which would count a second global step
        self.network.zero_grad(set_to_none=True)

    def _step_schedule(self, outer: LightningOptimizer, rest: LightningOptimizer) -> None:
        schedule = self.lr_schedulers()
        if schedule is not None:
            schedule.step()  # type: ignore[union-attr]
            _follow(rest, outer)


def _follow(rest: Optimizer | LightningOptimizer, outer: Optimizer | LightningOptimizer) -> None:
    """Gives the rest optimizer the outer one's share of its first rate, after a schedule has set that."""
    group = outer.param_groups[0]
    share = group["lr"] / group["initial_lr"] if group["initial_lr"] else 1.0
    for other in rest.param_groups:
        start = other.setdefault("initial_lr", other["lr"])
        other["lr"] = start * share


def _make(setting: str, factory: Callable[..., Any], argument: Any) -> Any:
    """Calls a factory that the user chose; what it refuses is the user's to mend."""
    try:
        return factory(argument)
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        hint = "; SplitOptimizer gives matrices one rule and the rest another" if "2D" in str(error) else ""
        raise UserError(f"{setting}: {error}{hint}.") from error


def _transfer(name: str, transfer: str | Transfer) -> Transfer:
    try:
        return resolve_transfer(transfer)
    except UserError as error:
        raise UserError(f"transfers[{name!r}]: {error}") from error


def _length(x: Any) -> int:
    """Length of the first dimension of the first tensor."""
    return next((len(leaf) for leaf in tree_leaves(x) if isinstance(leaf, Tensor) and leaf.dim()), 1)


def _kind_of(output: Any) -> int:
    """A number of what the outputs of several processes must share so that their rows can be joined."""
    return crc32(f"{output.shape[1:]} {output.dtype}".encode()) if isinstance(output, Tensor) else 0


def _detached(output: Any) -> Any:
    return tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, output)


def _check_solver(solver: LocalSolver, objective: str) -> None:
    check_object(LocalSolver, solver=solver)
    name = type(solver).__name__
    if not hasattr(solver, "state"):
        raise UserError(f"solver={name}: its __init__ must call super().__init__().")
    if solver.squared_only and objective == "matching":
        raise UserError(
            f"solver={name} solves the squared loss only: set objective to 'squared', or take another solver, such as "
            "Majorization."
        )
