"""Wrong calls from Python: each is refused by one sentence that names what was given and what could stand there."""

import re
from functools import partial

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, Timer
from torch import Tensor, nn
from torch.optim.lr_scheduler import StepLR

from locoprop_lightning import BackpropModule, LocalBackward, LocoPropModule, load_run
from locoprop_lightning.callbacks import LocalSchedule, PredictionWriter, RunCheckpoints
from locoprop_lightning.cli import main
from locoprop_lightning.data import Datasets, Digits, FashionMNIST, TextFiles
from locoprop_lightning.data.base import ImageData
from locoprop_lightning.data.datasets import DatasetLoader
from locoprop_lightning.errors import UserError
from locoprop_lightning.local import LocalProblem, resolve_transfer
from locoprop_lightning.networks import MLP, ConvNet, DeepAutoencoder
from locoprop_lightning.optimizers import FullPrecisionMuon, LinearDecay, Rule, RuledOptimizer, SplitOptimizer
from locoprop_lightning.oracles import Oracle, RMSOracle, SpectralOracle, WhitenedOracle
from locoprop_lightning.refusal import sentence
from locoprop_lightning.results.compare import main as compare
from locoprop_lightning.results.logs import read_runs
from locoprop_lightning.solvers import (
    AndersonAcceleration,
    ClosedForm,
    FixedPointIteration,
    GradientDescent,
    InnerOptimizer,
)
from locoprop_lightning.tasks import Classification, LanguageModelling, Reconstruction, Task
from tests.support import quiet_trainer

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's
SGD = partial(torch.optim.SGD, lr=0.1)
X, Y = torch.zeros(4, 6), torch.tensor([0, 1, 2, 0])


class Given:
    """A loader of the batches that it is given."""

    def __init__(self, *batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)

    def __len__(self):
        return len(self.batches)


class Headed(nn.Module):
    """A network whose output is made into something else."""

    def __init__(self, made):
        super().__init__()
        self.layer, self.made = nn.Linear(6, 3), made

    def forward(self, x):
        return self.made(self.layer(x))


class Lossy(Classification):
    """A task whose loss is made into something else."""

    def __init__(self, made):
        super().__init__(3)
        self.made = made

    def loss(self, output, target):
        return self.made(super().loss(output, target))


class Solves(ClosedForm):
    """A solver whose outcome is made into something else."""

    def __init__(self, made):
        super().__init__()
        self.made = made

    def run(self, problem, state, recording):
        return self.made(super().run(problem, state, recording))


class Points(Oracle):
    """An oracle whose direction is made of the gradient."""

    def __init__(self, made):
        super().__init__()
        self.made = made

    def direction(self, gradient, terms, state):
        return self.made(gradient)


class Reads(ImageData):
    """Data of four images, with what else it is given."""

    train_size, scale = 4, 1.0

    def __init__(self, *labels, dtype=torch.uint8):
        super().__init__(batch_size=2)
        self.samples = [(torch.zeros(4, 1, 2, 2, dtype=dtype), label) for label in labels]

    def read(self):
        return self.samples


class Sets(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        pl_module.lambda_a = 5.0


class Forgets(LocoPropModule):
    """A module whose training step does not call that of its base class."""

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1]) if batch_idx else None


class Overrides(LocoPropModule):
    """A module that makes optimizers of its own."""

    count = 1

    def configure_optimizers(self):
        return [SGD(self.parameters()) for _ in range(self.count)]


def network(inputs=6, outputs=3):
    return nn.Sequential(nn.Linear(inputs, 5), nn.Tanh(), nn.Linear(5, outputs))


def locoprop(network=None, kind=LocoPropModule, **arguments):
    parts = dict(task=Classification(3), solver=ClosedForm(), lambda_a=1.0, lambda_r=1.0, objective="squared")
    return kind(globals()["network"]() if network is None else network, **parts | arguments)


def backprop(net=None, **arguments):
    return BackpropModule(network() if net is None else net, **dict(task=Classification(3), optimizer=SGD) | arguments)


def fit(module, *batches, **settings):
    quiet_trainer(max_steps=2, num_sanity_val_steps=0, **settings).fit(module, Given(*batches))


def again(**settings):
    trainer, module = quiet_trainer(max_steps=2, **settings), locoprop()
    with pytest.raises(UserError):
        trainer.fit(module, Given((X, Y)))
    trainer.fit(module, Given((X, Y)))


def fit_on(*loaders):
    quiet_trainer(max_steps=2, num_sanity_val_steps=0).fit(locoprop(), *loaders)


def by_hand(net):
    local = LocalBackward(net, X, ClosedForm(), lambda_a=1.0, lambda_r=1.0, objective="squared")
    local(X, lambda output: nn.functional.cross_entropy(output, Y))


def both(*batches, net=None, **arguments):
    """Fits the module of local losses, whose sentence must be that of back-propagation."""
    with pytest.raises(UserError) as refused:
        fit(backprop(net, **arguments), *batches)
    with pytest.raises(UserError, match=re.escape(str(refused.value))):
        fit(locoprop(net, **arguments), *batches)
    raise refused.value


def one_cycle(optimizer):
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=1)


def problem(**parts):
    identity = resolve_transfer("identity")
    given = dict(operator=X, pre_activation=torch.zeros(4, 3), direction=torch.zeros(4, 3), weight=torch.zeros(3, 6))
    return LocalProblem(**given | dict(bias=None, transfer=identity, lambda_a=1.0, lambda_r=1.0) | parts)


def solved_at_rate(rate):
    return InnerOptimizer(lambda p: torch.optim.SGD(p, lr=rate), 2).solve(problem())


MODULES = [
    (
        "no network",
        lambda: LocoPropModule(None, Classification(3), ClosedForm(), 1, 1),
        "(network=None): must be a netw",
    ),
    ("a network's class", lambda: backprop(nn.Linear), "(network=Linear): give an object, Linear(...), not the cl"),
    ("a network's name", lambda: backprop("mlp"), "BackpropModule(network='mlp'): must be a network, a t"),
    ("a task's name", lambda: backprop(task="classification"), "task='classification'): must be a task, such as Cla"),
    ("a solver's name", lambda: locoprop(solver="ClosedForm"), "solver='ClosedForm': must be a solver, such as Clo"),
    ("an oracle's name", lambda: locoprop(oracle="RMSOracle"), "oracle='RMSOracle': must be an oracle, such as RM"),
    ("lambda_a as text", lambda: locoprop(lambda_a="1"), "lambda_a='1': must be a number"),
    ("no lambda_a", lambda: locoprop(lambda_a=None), "lambda_a=None: must be a number"),
    (
        "an oracle for lambda_a",
        lambda: LocoPropModule(network(), Classification(3), ClosedForm(), RMSOracle(), 0.2, 10),
        "lambda_a=RMSOracle(): must be a number",
    ),
    ("lambda_a true", lambda: locoprop(lambda_a=True), "lambda_a=True: must be a number"),
    ("lambda_a complex", lambda: locoprop(lambda_a=1j), "lambda_a=1j: must be a number"),
    ("lambda_a a list", lambda: locoprop(lambda_a=[1]), "lambda_a=[1]: must be a number"),
    ("lambda_r infinite", lambda: locoprop(lambda_r=float("inf")), "lambda_r=inf: must be a finite number"),
    ("guard as text", lambda: locoprop(guard="no"), "guard='no': must be True or False"),
    ("skip as text", lambda: locoprop(skip="0"), "skip='0': must be a list of patterns of layers, such as ['1']"),
    ("skip by number", lambda: locoprop(skip=[0]), "skip=[0]: must be a list of patterns"),
    ("include a number", lambda: locoprop(include=3), "include=3: must be a list of patterns"),
    ("overrides a list", lambda: locoprop(overrides=[1]), "overrides=[1]: must be lambdas and unit_groups by patt"),
    ("overrides a number", lambda: locoprop(overrides={"0": 3}), "overrides['0']=3: must be a mapping, such as"),
    ("overrides as text", lambda: locoprop(overrides={"0": {"lambda_a": "3"}}), "overrides['0'].lambda_a='3': must be"),
    (
        "overrides by number",
        lambda: locoprop(overrides={0: {"lambda_a": 3}}),
        "overrides={0: ...}: names of layers are texts; write '0'",
    ),
    ("unit_groups infinite", lambda: locoprop(overrides={"0": {"unit_groups": float("inf")}}), "unit_groups=inf: must"),
    ("transfers a list", lambda: locoprop(transfers=["tanh"]), "transfers=['tanh']: must be functions by layer, such"),
    (
        "a callback's class",
        lambda: fit(locoprop(), (X, Y), callbacks=[Sets]),
        "callbacks=Sets: give an object, Sets(...)",
    ),
    ("a callback's class, and again", lambda: again(callbacks=[Sets]), "callbacks=Sets: give an object, Sets(...)"),
    ("no data", lambda: quiet_trainer().fit(locoprop()), "data: fit was given none; give a loader, or a data module s"),
    (
        "no data for a test",
        lambda: quiet_trainer().test(locoprop()),
        "data: test was given none; give a loader, or",
    ),
    (
        "a schedule of nothing",
        lambda: LocalSchedule(),
        "LocalSchedule: changes nothing; give one of lambda_a, lambda_r, i",
    ),
    ("lambda_a set in a fit", lambda: fit(locoprop(), (X, Y), callbacks=[Sets()]), "engine.local[LAYER].lambda_a with"),
    ("objective set", lambda: setattr(locoprop(), "objective", "matching"), "set engine.settings.objective before a f"),
    (
        "super forgotten",
        lambda: fit(locoprop(kind=Forgets), *[(X, Y)] * 9),
        "Forgets.training_step took no step: call super().training_step(batch, batch_idx) in it",
    ),
    (
        "super forgotten, one batch",
        lambda: fit(locoprop(kind=Forgets), (X, Y)),
        "Forgets.training_step took no step: c",
    ),
    (
        "one optimizer",
        lambda: fit(locoprop(kind=Overrides), (X, Y)),
        "Overrides.configure_optimizers: returns 1 optimi",
    ),
    (
        "three",
        lambda: fit(locoprop(kind=type("Three", (Overrides,), {"count": 3})), (X, Y)),
        "returns 3 optimizers, an",
    ),
    (
        "transfers under the squared loss",
        lambda: locoprop(transfers={"0": "tanh"}),
        "transfers={'0': 'tanh'}: objective="
        "'squared' matches each layer through the identity, and solver=ClosedForm takes no other; leave them out",
    ),
    ("all layers frozen", lambda: locoprop(network().requires_grad_(False)), "(0: frozen; 2: frozen); unfreeze one by"),
    ("another kind of solver", lambda: setattr(locoprop(), "solver", 3), "solver=3: must be a"),
]
OPTIMIZERS = [
    ("an optimizer's name", lambda: fit(backprop(optimizer="SGD"), (X, Y)), "optimizer: is 'SGD'; give a function th"),
    ("no optimizer made", lambda: fit(backprop(optimizer=lambda p: 3), (X, Y)), "optimizer: makes a int, not a torch."),
    ("of another network", lambda: fit(locoprop(optimizer=lambda p: SGD(network().parameters())), (X, Y)),
     "optimizer=SGD: has parameters of something else; take those that it is called with"),
    ("of some parameters", lambda: fit(locoprop(optimizer=lambda p: SGD([*p][:2])), (X, Y)), "optimizer=SGD: has not t"
     "he parameters 2.weight, 2.bias; take all that it is called with, or freeze those that shall stay"),
    ("a schedule too short", lambda: fit(locoprop(lr_scheduler=one_cycle), (X, Y), (X, Y)),
     "lr_scheduler.total_steps=1: the fit has 2 steps; give at least that, or a shorter fit"),
    ("no schedule made", lambda: fit(backprop(lr_scheduler=lambda o: 3), (X, Y)), "lr_scheduler: makes a int, not a s"),
    ("inner optimizer's name", lambda: InnerOptimizer("Adam"), "InnerOptimizer(optimizer='Adam'): must make an optimi"),
    ("inner rate below 0", lambda: solved_at_rate(-1.0), "InnerOptimizer(optimizer): Invalid learning rate: -1.0"),
    ("inner rate infinite", lambda: solved_at_rate(float("inf")), "InnerOptimizer(optimizer): lr=inf: must be a finit"),
    ("an optimizer made", lambda: fit(backprop(optimizer=SGD(network().parameters())), (X, Y)), "is a SGD that is mad"),
    ("a schedule made", lambda: fit(backprop(lr_scheduler=StepLR(SGD([X]), 1)), (X, Y)),
     "is a StepLR that is made already; give a function that makes one, such as partial(StepLR, step_size=100) for"),
    ("a schedule without its steps", lambda: fit(backprop(lr_scheduler=StepLR), (X, Y)),
     "argument: 'step_size'; give a function that has it, such as partial(StepLR, step_size=...)"),
    ("a schedule's name", lambda: fit(backprop(lr_scheduler="cosine"), (X, Y)), "lr_scheduler: is 'cosine'; give a f"),
    ("Muon's rate as text", lambda: FullPrecisionMuon([X], lr="1"), "FullPrecisionMuon(lr='1'): must be a number"),
    ("Muon's decay as text", lambda: FullPrecisionMuon([X], weight_decay="1"), "weight_decay='1'): must be a number"),
    ("Muon's decay below 0", lambda: FullPrecisionMuon([X], weight_decay=-1), "weight_decay=-1): must be at least 0"),
    ("an excluded name", lambda: SplitOptimizer([X], SGD, SGD, exclude="0"), "exclude='0'): give a list of patterns, "),
    ("one of two made", lambda: SplitOptimizer([X], SGD([X]), SGD), "SplitOptimizer: one of its optimizers: is a SGD"),
    ("one rule", lambda: RuledOptimizer([X], SGD, Rule(kinds=["bias"])), "rules=Rule(kinds=['bias'])): give a list, s"),
    ("no rules", lambda: RuledOptimizer([X], SGD, None), "RuledOptimizer(rules=None): give a list, such as [Rule("),
    ("a rule's rate as text", lambda: Rule(kinds=["bias"], lr="1"), "Rule(lr='1'): must be a number"),
    ("a rule's kind", lambda: Rule(kinds="bias"), "Rule(kinds='bias'): give a list of kinds, ['bias']"),
    ("a schedule of parameters", lambda: LinearDecay([X]), "LinearDecay(optimizer=a list of 1): must be an opt"),
    ("end as text", lambda: LinearDecay(SGD([X]), end_factor="1"), "LinearDecay(end_factor='1'): must be in [0, 1]"),
    ("warmup as text", lambda: LinearDecay(SGD(network().parameters()), warmup="x"), "LinearDecay(warmup='x'): must b"),
]  # fmt: skip
BATCHES = [
    ("a class", lambda: fit_on(Digits), "data=Digits: give an object, Digits(...), not the class"),
    ("the class for validation", lambda: fit_on(Given((X, Y)), Digits), "data=Digits: give an object, Digits(...)"),
    (
        "tensors",
        lambda: fit_on((X, Y)),
        "data=a tuple of 2: the entries of a Tensor [4] of int64 are single samples; "
        "give batches, such as DataLoader(TensorDataset(x, y), batch_size=64)",
    ),
    ("arrays", lambda: fit_on({"x": X.numpy(), "y": Y.numpy()}), "the entries of a ndarray [4] of int64 are single s"),
    (
        "one sample",
        lambda: both((X[0], Y[:1]), net=MLP(6, 5, 1, 3)),
        "MLP(inputs=a Tensor [6] of float32): has no first dimension of samples; give batches, such as DataLoader(",
    ),
    ("too wide", lambda: both((torch.zeros(4, 7), Y)), "network=Sequential: cannot take inputs [4, 7] of float32 (mat"),
    ("of whole numbers", lambda: both((X.long(), Y)), "cannot take inputs [4, 6] of int64 (mat1 and mat2 must have th"),
    ("of float64", lambda: both((X.double(), Y)), "cannot take inputs [4, 6] of float64"),
    ("of NumPy", lambda: both((X.numpy(), Y)), "network=Sequential: cannot take a ndarray (linear(): argument 'input'"),
    ("of a list", lambda: both(([1, 2], Y)), "network=Sequential: cannot take a list of 2 inputs (Sequential.forward("),
    ("a dictionary", lambda: both({"x": X, "labels": Y}), "cannot take a mapping of x, labels (Sequential.forward() g"),
    ("without labels", lambda: both((X,)), "Classification: the batch's labels are float32, not whole numbers in a te"),
    ("labels out of range", lambda: both((X, Y + 5)), "label 5 is neither from 0 to 2, as 3 outputs have it, nor ign"),
    ("labels below 0", lambda: both((X, Y - 5)), "label -5 is neither from 0 to 2, as 3 outputs have it, nor ignore"),
    ("labels float", lambda: both((X, Y.float())), "Classification: the batch's labels are float32, not whole numbers"),
    ("labels one-hot", lambda: both((X, nn.functional.one_hot(Y))), "labels [4, 3] do not fit outputs [4, 3]; give on"),
    ("labels too few", lambda: both((X, Y[:3])), "labels [3] do not fit outputs [4, 3]; give one label, a whole numbe"),
    ("labels in a column", lambda: both((X, Y[:, None])), "for every 3 outputs: labels [4]."),
    ("labels as text", lambda: both((X, ["a"] * 4)), "Classification: the batch's labels are list, not whole numbers"),
    ("labels of NumPy", lambda: both((X, np.zeros(4, int))), "Classification: the batch's labels are ndarray, not who"),
    ("none at all", lambda: fit(backprop()), "data: there is no batch to train on (trainer.limit_train_batches=1.0)"),
    ("nothing but None", lambda: fit(locoprop(), None), "data: no step was taken in an epoch: its batches were None,"),
    ("pixels out of range", lambda: both((X + 9, Y), net=network(6, 6), task=Reconstruction()), "are not within 0 and"),
    ("pixels too many", lambda: both((X, Y), task=Reconstruction()), "has [4, 3] outputs for [4, 6] pixels; make them"),
    ("text of one label", lambda: both((X, Y), task=LanguageModelling()), "output [4, 3] must be [n, length, vocabula"),
]
OUTPUTS = [
    ("a pair", lambda: both((X, Y), net=Headed(lambda a: (a, a))), "the network's output is a tuple, not a tensor of"),
    ("a dictionary", lambda: both((X, Y), net=Headed(lambda a: {"a": a})), "the network's output is a dict, not a ten"),
    ("nothing", lambda: both((X, Y), net=Headed(lambda a: None)), "the network's output is a NoneType, not a tensor o"),
    (
        "without a gradient",
        lambda: both((X, Y), net=Headed(torch.detach)),
        "network=Headed: its output has no gradient in training; take torch.no_grad() and detach() out of its forward",
    ),
    (
        "without a gradient, drawn labels",
        lambda: fit(locoprop(Headed(torch.detach), oracle=WhitenedOracle()), (X, Y)),
        "network=Headed: its output has no gradient",
    ),
    (
        "without a gradient, by hand",
        lambda: by_hand(Headed(torch.detach)),
        "network=Headed: its output has no gradient",
    ),
    ("flat", lambda: both((X, Y), net=Headed(torch.flatten)), "the network's output [12] must be [n, num_classes, ..."),
    ("a loss a sample", lambda: both((X, Y), task=Lossy(lambda a: a.repeat(4))), "Lossy.loss: must return a tensor of"),
    ("a loss that is a float", lambda: both((X, Y), task=Lossy(float)), "a mean over terms, not a float"),
    ("a loss without gradient", lambda: both((X, Y), task=Lossy(torch.detach)), "Lossy.loss: has no gradient; make it"),
    (
        "a loss of a copy",
        lambda: both((X, Y), net=Headed(lambda a: a.detach().requires_grad_())),
        "Classification.loss: no gradient has reached the network in an epoch; make it of the output by functions of",
    ),
    ("no loss", lambda: fit(backprop(task=Task()), (X, Y)), "Task must override loss(output, target)"),
]
PARTS = [
    ("a solution on its side", lambda: fit(locoprop(solver=Solves(lambda o: o._replace(displacement=o[0].mT))), (X, Y)),
     "Solves.run: the Outcome's displacement is [7, 5], and must be a tensor [5, 7]"),
    ("growth a float", lambda: fit(locoprop(solver=Solves(lambda o: o._replace(growth=0.0))), (X, Y)),
     "Solves.run: the Outcome's growth is a float, and must be a tensor []"),
    ("no direction", lambda: fit(locoprop(oracle=Points(lambda g: None)), (X, Y)), "direction is a NoneType, and must"),
    ("a direction of NumPy", lambda: fit(locoprop(oracle=Points(Tensor.numpy)), (X, Y)), "direction is a ndarray, and"),
    ("samples of two widths", lambda: next(iter(DatasetLoader([X[0], X[0, :3]], 2, None))), "samples do not make a ba"),
    ("labels too few", lambda: Reads(Y[:3], Y).setup("fit"), "Reads.read: training labels must be int64 [4], one of "
     "each image, got torch.int64 [3]"),
    ("test labels as parts", lambda: Reads(Y, Y.float()).setup("fit"), "Reads.read: test labels must be int64 [4], on"),
    ("images of floats", lambda: Reads(Y, Y, dtype=torch.float32).setup("fit"), "Reads.read: training images must "),
    ("tensors for a data set", lambda: Datasets((X, Y)), "such as TensorDataset(inputs, labels), or a list of"),
    ("samples of none", lambda: DatasetLoader([], 2, None), "data: list is empty; give it samples"),
    ("arguments as text", lambda: main("fit --config a"), "main('fit --config a'): takes a list of arguments, ['fit'"),
    ("those of a comparison", lambda: compare("runs"), "main('runs'): takes a list of arguments, ['runs']"),
    ("one folder for a list", lambda: read_runs("runs", "train/loss"), "(names='runs'): give a list of folders, ['r"),
    ("a run of nothing", lambda: load_run(None), "load_run(folder=None): must be a path, as text"),
    ("a run without one", lambda: load_run("."), "no checkpoint of a run; name the folder of one, such as runs/"),
    ("a file of no run", lambda: load_run(__file__), "test_python.py: is not a checkpoint that torch has saved; nam"),
    ("a run elsewhere", lambda: load_run("/nowhere/x"), "there is no such folder; name one of a run, such as runs/..."),
    ("a checkpoint by number", lambda: load_run(".", 12), "load_run(checkpoint=12): must be a path, as text"),
]  # fmt: skip
PROBLEMS = [
    ("lambda_r below 0", lambda: problem(lambda_r=-10), "LocalProblem(lambda_r=-10): must be above 0"),
    ("lambda_r 0", lambda: problem(lambda_r=0.0), "LocalProblem(lambda_r=0.0): must be above 0"),
    ("lambda_r nan", lambda: problem(lambda_r=float("nan")), "LocalProblem(lambda_r=nan): must be a finite number"),
    ("lambda_a as text", lambda: problem(lambda_a="3"), "LocalProblem(lambda_a='3'): must be a number"),
    ("weight of another width", lambda: problem(weight=torch.zeros(3, 7)), "weight is [3, 7], and must be [3, 6]"),
    ("direction of other units", lambda: problem(direction=torch.zeros(4, 2)), "direction is [4, 2], and must be [4,"),
    ("other rows", lambda: problem(pre_activation=torch.zeros(5, 3)), "pre_activation is [5, 3], and must be [4, 3]"),
    ("bias of other units", lambda: problem(bias=torch.zeros(4)), "LocalProblem: bias is [4], and must be [3]"),
    ("a transfer's name", lambda: problem(transfer="identity"), "LocalProblem(transfer='identity'): must be a transf"),
    ("rows as lists", lambda: problem(operator=[[1.0]]), "LocalProblem(operator=[[1.0]]): must be a matrix of rows"),
    ("one row", lambda: problem(operator=torch.zeros(6)), "LocalProblem: the rows are [6], and must be [n, d_in]"),
    ("rows of whole numbers", lambda: problem(operator=X.long()), "the rows are of torch.int64, and must be floating"),
    ("a matrix", lambda: ClosedForm().solve(torch.eye(3)), "ClosedForm.solve(problem=a Tensor [3, 3] of float32): "),
    ("none", lambda: ClosedForm().solve(None), "ClosedForm.solve(problem=None): must be a LocalProblem, such as"),
]
NUMBERS = [
    ("average", lambda: ClosedForm(average="x"), "ClosedForm(average='x'): must be a number"),
    ("no average", lambda: ClosedForm(average=None), "ClosedForm(average=None): must be a number"),
    ("iterations", lambda: FixedPointIteration("10"), "FixedPointIteration(iterations='10'): must be a whole number"),
    ("memory", lambda: AndersonAcceleration(10, memory=0.5), "AndersonAcceleration(memory=0.5): must be a whole numbe"),
    ("ridge", lambda: AndersonAcceleration(10, ridge=float("inf")), "AndersonAcceleration(ridge=inf): must be a finit"),
    ("rate", lambda: GradientDescent(10, rate="1"), "GradientDescent(rate='1'): must be a number"),
    ("beta", lambda: RMSOracle(beta="x"), "RMSOracle(beta='x'): must be a number"),
    ("damping", lambda: WhitenedOracle(damping="x"), "WhitenedOracle(damping='x'): must be a number"),
    ("no damping", lambda: SpectralOracle(damping=None), "SpectralOracle(damping=None): must be a number"),
    ("classes", lambda: Classification("10"), "Classification(num_classes='10'): must be a whole number"),
    ("ignored label", lambda: Classification(3, "x"), "Classification(ignore_index='x'): must be a whole numb"),
    ("a schedule's function", lambda: LocalSchedule(lambda_a=lambda step: 1.0), "must be values by step, such as {0:"),
    *(
        (f"no first {name}", partial(LocalSchedule, **{name: {100: 1}}), "={100: 1}): has no value for step 0; add one")
        for name in ("lambda_a", "lambda_r", "iterations")
    ),
    ("minutes", lambda: RunCheckpoints(minutes="x"), "checkpoints(minutes='x'): must be a number"),
    ("path of predictions", lambda: PredictionWriter(3), "predictions(path=3): must be a path, as text"),
    ("batch size", lambda: Digits(batch_size="x"), "Digits(batch_size='x'): must be a whole number"),
    ("batch size of evaluation", lambda: Digits(eval_batch_size="x"), "(eval_batch_size='x'): must be a whole number"),
    ("held-out images", lambda: Digits(validation=1.5), "Digits(validation=1.5): must be a whole number, at least"),
    ("seed", lambda: Digits(seed="x"), "Digits(seed='x'): must be a whole number"),
    ("root", lambda: FashionMNIST(root=None), "FashionMNIST(root=None): must be a path, as text"),
    ("root of text", lambda: TextFiles(root=3), "TextFiles(root=3): must be a path, as text"),
    ("seed of text", lambda: TextFiles(seed=-1), "TextFiles(seed=-1): must be at least 0"),
    ("pattern", lambda: TextFiles(pattern=None), "TextFiles(pattern=None): must be a pattern of names"),
    ("hidden units", lambda: MLP(hidden_features=1.5), "MLP(hidden_features=1.5): must be a whole number"),
    ("inputs of a network", lambda: MLP(6, 5, 1)("abc"), "MLP(inputs='abc'): must be a tensor, whose first"),
    ("an empty batch of another width", lambda: MLP(6, 5, 1)(torch.zeros(0, 7)), "a sample of this data has 7 values"),
    ("channels", lambda: ConvNet("x"), "ConvNet(channels='x'): must be a whole number"),
    ("code", lambda: DeepAutoencoder(code="x"), "DeepAutoencoder(code='x'): must be a whole number"),
]
ROWS = [*MODULES, *OPTIMIZERS, *BATCHES, *OUTPUTS, *PARTS, *PROBLEMS, *NUMBERS]


def test_a_network_without_a_gradient_is_validated():
    """Its output is only refused where a step is to be made of it."""
    for module in (locoprop(Headed(torch.detach)), backprop(Headed(torch.detach))):
        for mode in (True, False):
            quiet_trainer(inference_mode=mode).validate(module, Given((X, Y)), verbose=False)
        assert module.task.mean_loss(module(X), Y) > 0


@pytest.mark.parametrize(("call", "said"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_a_wrong_call_is_refused_by_one_sentence(folder, call, said):
    with pytest.raises(UserError) as refused:
        call()
    assert said in str(refused.value) and "\n" not in str(refused.value)
    assert not list(folder.iterdir())


def test_the_rate_that_nobody_chose_is_said(caplog):
    fit(locoprop(optimizer=torch.optim.SGD), (X, Y))
    assert "optimizer=SGD: lr=0.001 is torch's default" in caplog.text and "lr=1 takes a layer to its" in caplog.text
    caplog.clear()
    fit(locoprop(optimizer=SGD), (X, Y))
    assert "torch's default" not in caplog.text


def test_parameters_that_are_frozen_may_be_left_out_of_the_optimizer():
    module = locoprop()
    module.network[2].bias.requires_grad_(False)
    module = locoprop(module.network, optimizer=lambda p: SGD([one for one in p if one.requires_grad]))
    fit(module, (X, Y))


@pytest.mark.parametrize("callback", [EarlyStopping("train/loss", patience=0), Timer("00:00:01:00")])
def test_a_schedule_may_be_shorter_than_a_fit_that_something_else_ends(callback):
    with pytest.raises(ValueError, match="Tried to step 2 times") as stopped:
        fit(locoprop(lr_scheduler=one_cycle), (X, Y), (X, Y), callbacks=[callback])
    assert "its total_steps are over, and the fit goes on; give as many as it has" in sentence(stopped.value)


def test_lambda_a_is_changed_where_the_sentence_says():
    """Within a fit by the layer, whose displacements are others then."""

    class Doubles(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            for layer in pl_module.engine.local.values():
                layer.lambda_a = 2.0

    ends = []
    for callbacks in ([], [Doubles()]):
        torch.manual_seed(0)
        module = locoprop(nn.Sequential(nn.Linear(6, 3)))
        start = module.network[0].bias.detach().clone()
        fit(module, (X, Y), callbacks=callbacks)
        ends.append(module.network[0].bias.detach() - start)
    assert not torch.allclose(*ends)


def test_an_iterator_that_is_used_up_does_not_go_on_for_ever():
    trainer = quiet_trainer(max_steps=5, max_epochs=-1)
    with pytest.raises(UserError, match="data: no step was taken in an epoch: iterators last for one pass"):
        trainer.fit(locoprop(), iter([(X, Y)] * 2))
    assert trainer.global_step == 2
