"""What all Lightning modules of this package share, and the module of the baselines: plain back-propagation."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import LearningRateFinder
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import MetricCollection

from locoprop_lightning import mixed_imports
from locoprop_lightning.batches import check_gradient, explained
from locoprop_lightning.checkpoints import stamp, stamped
from locoprop_lightning.distributed import Communicator, SharedBatch, connect, share_batch
from locoprop_lightning.errors import UserError, check_object
from locoprop_lightning.fit_checks import check_batch, check_callbacks, check_data, check_epoch, check_fit
from locoprop_lightning.layer_table import print_layers
from locoprop_lightning.layers.compiled import original, tell_uncompiled
from locoprop_lightning.layers.discovery import check_network, discover
from locoprop_lightning.layers.probe import call
from locoprop_lightning.loading import Loadable
from locoprop_lightning.optimizers import LinearDecay, owned_parameters
from locoprop_lightning.optimizers.factory import optimizer_from, schedule_from
from locoprop_lightning.optimizers.joined import JoinedOptimizer, describe
from locoprop_lightning.optimizers.remainders import tell_dropped
from locoprop_lightning.optimizers.schedule import check_length, tell_length
from locoprop_lightning.reprs import Told, sized
from locoprop_lightning.tasks import MeanLoss, Task, detached


class SupervisedModule(Told, Loadable):
    """Evaluation, logging, and checks of checkpoints.

    Args:
        network: The network. One that ``torch.compile`` made is ``network._orig_mod`` here, with the names of that.
        task: Loss and metrics.

    Attributes:
        accumulate: Batches of the data that make one step.
        untouched: Trainable parameters, by name, that no backward pass of the fit has reached.
        communicator: What the processes of the fit do together.
    """

    accumulate = 1

    def __init__(self, network: nn.Module, task: Task) -> None:
        super().__init__()
        mixed_imports.tell(type(self).__name__)
        own = type(self).__name__
        check_network(own, network)
        check_object(own, Task, "a task, such as Classification(10)", task=task)
        self.network, self.task = network, task
        metrics = task.metrics()
        check_object(f"{type(task).__name__}.metrics", MetricCollection, "a MetricCollection", returned=metrics)
        self.train_metrics = metrics.clone(prefix="train/")
        self.val_metrics = metrics.clone(prefix="val/")
        self.test_metrics = metrics.clone(prefix="test/")
        self.val_loss, self.test_loss = MeanLoss(), MeanLoss()
        self.communicator = Communicator()
        self.untouched: dict[str, nn.Parameter] = {}
        self._saved_optimizers: list[str] | None = None  # names in the checkpoint that was loaded

    def __repr__(self) -> str:
        return f"{type(self).__name__}({sized(self.network)}, {self.task!r})"

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "network" and isinstance(value, nn.Module):
            self._called = (value,)  # compiled perhaps; in a tuple, so that it is no second part of this module
            value = original(value)
        super().__setattr__(name, value)

    def forward(self, x: Any) -> Any:
        """Output of the network; a tuple or list of inputs becomes its arguments, a mapping its keyword arguments."""
        with explained(self.network, x):
            return call(*self._called, x)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Loss and metrics of a validation batch."""
        self._evaluate(batch, "val", self.val_metrics, self.val_loss)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Loss and metrics of a test batch."""
        self._evaluate(batch, "test", self.test_metrics, self.test_loss)

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        """Predictions of the task for a batch, with or without targets."""
        return self.task.predict(self(self.task.inputs(batch)))

    def _evaluate(self, batch: Any, stage: str, metrics: MetricCollection, mean: MeanLoss) -> None:
        output, target = self(self.task.inputs(batch)), self.task.target(batch)
        loss, size = self.task.mean_loss(output, target), self.task.terms(target)
        metrics.update(self.task.score(output), target)
        mean.update(loss, self.task.weight(target, size))  # Lightning's own mean does not weigh the processes
        self.log(f"{stage}/loss", mean, batch_size=size, prog_bar=stage == "val")
        self.log_dict(metrics, batch_size=size, prog_bar=stage == "val")

    def share(self, x: Any, output: Any, target: Any, wish: int) -> SharedBatch:
        """What the processes know of each other's part of a batch.

        Args:
            x: Inputs of the network.
            output: Its output.
            target: What that is compared with.
            wish: A number of which all come to know the largest.
        """
        terms = self.task.terms(target)
        weight = self.task.weight(target, terms)
        return share_batch(self.communicator, x, self.task.logits(output), terms, wish, weight)

    def loss_of(self, output: Any, target: Any) -> Tensor:
        """The task's mean loss of a training step, which must have a gradient."""
        loss = self.task.mean_loss(output, target)
        check_gradient(self.network, output, loss)
        return loss

    def log_training(self, loss: Tensor, output: Any, target: Any, rate: float, logs: bool) -> Tensor:
        """Logs a training step, and gives the mean of its loss over processes, scalar.

        Args:
            loss: Loss of this process, weighted so that the mean is that of the whole batch.
            output: Output of the network.
            target: What it was compared with.
            rate: Rate of the optimizer.
            logs: Whether to log more than the loss.
        """
        mean = self.communicator.mean(self.watch(loss, output, target, logs))
        self.log("train/loss", mean, prog_bar=True)
        if logs:
            self.log_dict(self.train_metrics.compute())  # of all processes
            self.train_metrics.reset()
            self.log("lr", rate)
        return mean

    def watch(self, loss: Tensor, output: Any, target: Any, logs: bool) -> Tensor:
        """Has the metrics of a step take in a batch where the step is logged, and gives its loss without its graph."""
        if logs:
            self.train_metrics.update(self.task.score(detached(output)), target)
        return loss.detach()

    @property
    def logs_this_step(self) -> bool:
        """Whether the trainer logs the step that is being taken."""
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return every > 0 and (self.global_step + 1) % every == 0

    def schedule_of(self, make: LRSchedulerCallable, optimizer: Optimizer) -> Any:
        """Makes a schedule, and tells it the length of the run if it asks.

        Raises:
            UserError: Where the run has no length, or more steps than the schedule, or the schedule needs a metric.
        """
        schedule = schedule_from(make, optimizer)
        if isinstance(schedule, LinearDecay):
            tell_length(schedule, self.trainer, self.accumulate)
        check_length(schedule, self.trainer, self.accumulate)
        return schedule

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the format, the names of the optimizers, and what the module was made of."""
        stamp(checkpoint, self._optimizer_names(), self.configuration)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Checks the format, and remembers the names of the optimizers, which a fit compares."""
        self._saved_optimizers = stamped(checkpoint)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Loads weights.

        Raises:
            UserError: If they are of another network.
        """
        try:
            return super().load_state_dict(state_dict, strict, assign)
        except RuntimeError as error:
            _, first, *more = str(error).splitlines() or [""] * 2
            others = (f" ({len(more)} more do not fit)" if more else "") + "; take the network of its run."
            own = f"network={type(self.network).__name__}"
            raise UserError(f"{own}: the checkpoint is of another network: {first.strip()}{others}") from error

    def on_fit_start(self) -> None:
        """Joins the other processes, and refuses to resume with other optimizers.

        Raises:
            UserError: Names both.
        """
        if self.trainer.precision == "16-true" and self.trainer.strategy.root_device.type == "cpu":
            raise UserError("trainer.precision='16-true': float16 overflows on a processor; take 'bf16-true' or 32.")
        self.communicator = connect()
        if self.communicator.size not in (1, self.trainer.world_size):
            raise UserError(
                f"trainer.devices: this process is one of {self.communicator.size} of torch.distributed, but the "
                f"trainer counts {self.trainer.world_size}: let Lightning start them, or leave the process group."
            )
        if not self.automatic_optimization:  # its training steps record
            tell_uncompiled(*self._called)
        self.val_metrics.reset()  # a pass in inference mode leaves states that no other may write into
        self.untouched = {name: p for name, p in self.network.named_parameters() if p.requires_grad}
        saved, own = self._saved_optimizers, self._optimizer_names()
        if self.trainer.ckpt_path is not None and saved is not None and saved != own:
            raise UserError(
                f"ckpt_path: the checkpoint was trained by {' and '.join(saved)}, not by {' and '.join(own)}; resume "
                "with the configuration that made it."
            )

    def on_train_start(self) -> None:
        """Takes up the data where a checkpoint left it, and tells schedules the length of the run once more.

        A schedule that asks for it has the data set up before the checkpoint is read; callbacks change batches since.
        """
        self.trainer.fit_loop._load_combined_loader_states()
        for config in self.trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, LinearDecay):
                tell_length(config.scheduler, self.trainer, self.accumulate)

    def configure_callbacks(self) -> list[Callback]:
        """No callbacks; refuses those that cannot do their work.

        Raises:
            UserError: For a search of the learning rate, which is no attribute here.
        """
        mixed_imports.check(self.trainer)
        check_data(self.trainer)
        check_callbacks(self.trainer)
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, LearningRateFinder):
                raise UserError(
                    "trainer.callbacks=LearningRateFinder: there is no attribute lr that it could set; sweep the rate, "
                    "as in `locoprop-tune` with a space for model.optimizer.lr."
                )
        return []

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Refuses a batch of which nothing came."""
        check_batch(self, outputs)

    def on_train_epoch_end(self) -> None:
        """Refuses an epoch of which nothing came."""
        check_epoch(self, self.network, self.task, self.untouched.keys())

    def on_fit_end(self) -> None:
        """Leaves the other processes, and refuses a fit that had nothing to train on."""
        self.communicator.close()
        self.communicator = Communicator()
        check_fit(self.trainer)

    def on_after_backward(self) -> None:
        """Notes which parameters have a gradient for the first time."""
        if self.untouched:
            self.untouched = {name: p for name, p in self.untouched.items() if p.grad is None}

    def _optimizer_names(self) -> list[str]:
        """What must be the same for the optimizers' state to fit: their kinds, and how many parameters they have."""
        names = []
        for optimizer in self.trainer.optimizers:
            kinds = optimizer.signature if isinstance(optimizer, JoinedOptimizer) else type(optimizer).__name__
            names.append(f"{kinds} ({sum(len(group['params']) for group in optimizer.param_groups)} parameters)")
        return names


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
        self._starting = True

    def on_fit_start(self) -> None:
        """Joins the other processes, says what 16-bit weights lose, and has the table of layers printed again."""
        super().on_fit_start()
        tell_dropped(self.network)
        self._starting = True

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Prints the table of layers before the first step."""
        if self._starting:
            self._starting = False
            x = self.task.inputs(batch)
            with explained(self.network, x):
                layers = discover(self.network, x)
            trained = {x.name: describe(self.trainer.optimizers[0], x.module) for x in layers if x.reason != "frozen"}
            print_layers(self.trainer, layers, trained, plain=True)

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """One forward pass; Lightning does the rest."""
        x, target = self.task.inputs(batch), self.task.target(batch)
        output = self(x)
        loss = self.loss_of(output, target)
        if self.communicator.size > 1:  # which may have different numbers of terms
            loss = self.share(x, output, target, 0).weigh(loss)
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        return {"loss": loss, "mean_loss": self.log_training(loss, output, target, rate, self.logs_this_step)}

    def configure_optimizers(self) -> Any:
        """The optimizer of all trainable parameters, and its schedule."""
        trainable = [entry for entry in owned_parameters(self.network) if entry.parameter.requires_grad]
        optimizer = optimizer_from("optimizer", self._optimizer, trainable)
        if self._lr_scheduler is None:
            return optimizer
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.schedule_of(self._lr_scheduler, optimizer), "interval": "step"},
        }
