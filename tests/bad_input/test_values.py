"""Values of a wrong kind: each is refused with its class, shown shortly, and with what could stand there."""

import pytest
import torch
from torch import Tensor, nn

from locoprop_lightning import BackpropModule, LocalBackward, LocoPropModule
from locoprop_lightning.callbacks import HyperparameterLogger, LocalLossHistory, LocalLossMonitor
from locoprop_lightning.data import Digits, FashionMNIST
from locoprop_lightning.errors import UserError
from locoprop_lightning.networks import MLP, ConvNet, Decoder, DeepAutoencoder, ResNet18
from locoprop_lightning.optimizers import FullPrecisionMuon, LinearDecay, Rule, SplitOptimizer, TensorFlowRMSprop
from locoprop_lightning.oracles import GradientOracle, Oracle, RMSOracle
from locoprop_lightning.solvers import AndersonAcceleration, ClosedForm, GradientDescent, InnerOptimizer, Recording
from locoprop_lightning.tasks import Classification

X = torch.zeros(4, 6)
SGD = torch.optim.SGD


class Early:
    """What cannot be shown."""

    def __repr__(self):
        raise AttributeError("not made")


class Elsewhere(BackpropModule):
    """A network that makes a tensor on another device than its inputs are on."""

    def __init__(self):
        super().__init__(MLP(6, 6, 0, 3), Classification(3), SGD)
        self.network.register_forward_pre_hook(lambda module, inputs: inputs[0] + torch.zeros(4, 6, device="meta"))


def skipping(*patterns, **settings):
    network = nn.Sequential(*(nn.Linear(6, 6) for _ in range(30)))
    return LocoPropModule(
        network, Classification(6), ClosedForm(), 1.0, 1.0, objective="squared", skip=patterns, **settings
    )


def local_backward(units=3, **settings):
    network = nn.Sequential(nn.Linear(6, units))
    return LocalBackward(network, X, ClosedForm(), lambda_a=1.0, lambda_r=1.0, objective="squared", **settings)


def of_other_units():
    first, second = local_backward(4, oracle=RMSOracle()), local_backward(3, oracle=RMSOracle())
    first(X, lambda output: output.square().mean())
    second.load_state_dict(first.state_dict())


def without_gradients(mode):
    with mode():
        backward()


def detached(loss_of):
    local = local_backward()
    for _ in range(2):
        local(X, lambda output: torch.zeros((), requires_grad=True))  # a batch without terms
    local(X, loss_of)


def solutions(recording=Recording.NOTHING):
    local = local_backward()
    local(X, lambda output: output.mean(), recording=recording)
    return local.solutions


def called_again():
    local = local_backward()

    def distilled(output):
        with torch.no_grad():
            now = local.network(X)
        return (output - now).square().mean()

    local(X, distilled)
    local(X, lambda output: (output - local.network(X).detach()).square().mean())
    local(X, lambda output: local.network(X).mean())


def backward(x=X, **arguments):
    local = local_backward()
    return local(x, lambda output: output.mean(), **arguments) if isinstance(x, Tensor) else local.load_state_dict(x)


LOCAL = [
    (
        "inputs too wide",
        lambda: backward(torch.zeros(4, 7)),
        "network=Sequential: cannot take inputs [4, 7] of float32",
    ),
    ("terms as text", lambda: backward(terms="x"), "LocalBackward(terms='x'): must be a whole number"),
    (
        "a recording's name",
        lambda: backward(recording="curve"),
        "(recording='curve'): must be a Recording, such as Rec",
    ),
    ("a state of none", lambda: backward(3), "LocalBackward(state_dict=3): must be what state_dict() has returned"),
    (
        "a state of another",
        lambda: backward({"a": 1}),
        "LocalBackward(state_dict of a): must be what state_dict() has ",
    ),
    ("a state of other units", of_other_units, "layer '0' is of 4 units there and of 3 here; load it into the network"),
    (
        "no_grad",
        lambda: without_gradients(torch.no_grad),
        "gradients are switched off by torch.no_grad or torch.inferen",
    ),
    (
        "inference mode",
        lambda: without_gradients(torch.inference_mode),
        "LocalBackward: gradients are switched off by ",
    ),
    (
        "a loss of a copy",
        lambda: detached(lambda output: output.detach().requires_grad_().mean()),
        "the loss does not depend on the network's output, and no layer has a gradient; make it of the argument",
    ),
    (
        "a loss of another network",
        lambda: detached(lambda output: nn.Linear(6, 3)(X).mean()),
        "LocalBackward: the loss does not depend on the network's output",
    ),
    (
        "solutions of a step that recorded none",
        lambda: solutions()["0"],
        "the last step recorded none; call it with r",
    ),
    (
        "solutions of no layer",
        lambda: solutions(Recording.ENDS)["1"],
        "is no layer that was solved; there are ['0']",
    ),
    (
        "the network called again",
        called_again,
        "loss_of has called the network again; make the loss of the output that",
    ),
    (
        "inputs elsewhere",
        lambda: backward(X.to("meta")),
        "cannot take inputs [4, 6] of float32 on meta, its weights are on cpu; move one of the two by .to(...).",
    ),
    (
        "a convolution of float64",
        lambda: BackpropModule(nn.Conv2d(1, 1, 2), Classification(), SGD)(torch.zeros(1, 1, 3, 3).double()),
        "should be the same); give the network the sizes and types of its data",
    ),
    (
        "tensors of its own elsewhere",
        lambda: Elsewhere()(X),
        "); have the network make its own tensors on the device o",
    ),
    ("layers by number", lambda: skipping(transfers={0: "tanh"}), "transfers={0: ...}: names of layers are texts; wr"),
    ("a layer's number", lambda: LocalLossHistory()[0], "LocalLossHistory[0]: names of layers are texts; write '0'"),
    ("a number of no layer", lambda: skipping().layers[30], "19 and 10 more; names are texts, such as '0'"),
    ("held out or not", lambda: Digits(validation=True), "Digits(validation=True): must be a whole number, at least 0"),
    ("a checkpoint by number", lambda: LocoPropModule.load_from_checkpoint(3), "(checkpoint_path=3): must be a path"),
]
FLAGS = [
    ("proximal", lambda: GradientDescent(proximal="no"), "GradientDescent(proximal='no'): must be True or False"),
    ("bias correction", lambda: ClosedForm(bias_correction=0), "ClosedForm(bias_correction=0): must be True or False"),
    ("safeguard", lambda: AndersonAcceleration(safeguard=None), "(safeguard=None): must be True or False"),
    ("persistent", lambda: InnerOptimizer(SGD, persistent=[]), "InnerOptimizer(persistent=[]): must be True or False"),
    ("by epoch", lambda: LinearDecay(SGD([X]), by_epoch="no"), "LinearDecay(by_epoch='no'): must be True or False"),
    ("curves", lambda: LocalLossMonitor(curves=skipping), "LocalLossMonitor(curves=the function skipping): must be T"),
    ("histograms", lambda: LocalLossMonitor(histograms=Early), "LocalLossMonitor(histograms=Early): must be True or"),
    ("download", lambda: FashionMNIST(download="False"), "FashionMNIST(download='False'): must be True or False"),
    ("pixels of an image file", lambda: MLP(6, 5, 1)(X.byte()), "MLP(inputs=a Tensor [4, 6] of uint8): must be floa"),
    ("those of a convolution", lambda: ConvNet()(X.byte()), "ConvNet(inputs=a Tensor [4, 6] of uint8): must be floati"),
    ("those of ResNet", lambda: ResNet18()(X.long()), "ResNet18(inputs=a Tensor [4, 6] of int64): must be floating-"),
    ("those of an autoencoder", lambda: DeepAutoencoder(6)(X.byte()), "(inputs=a Tensor [4, 6] of uint8): must be fl"),
    ("bias", lambda: MLP(bias=X), "MLP(bias=a Tensor [4, 6] of float32): must be True or False"),
    ("convolutions", lambda: SplitOptimizer([X], SGD, SGD, convolutions=1), "SplitOptimizer(convolutions=1): must be"),
    ("nesterov", lambda: FullPrecisionMuon([X], nesterov="yes"), "FullPrecisionMuon(nesterov='yes'): must be True or"),
]
OTHERS = [
    ("depth", lambda: Decoder(depth=None), "Decoder(depth=None): must be a whole number"),
    ("cap", lambda: Decoder(cap="x"), "Decoder(cap='x'): must be a number"),
    ("colours", lambda: ResNet18(channels="x"), "ResNet18(channels='x'): must be a whole number"),
    ("no parameters", lambda: FullPrecisionMuon(None), "FullPrecisionMuon(params=None): must be a list of parameters"),
    ("a rate of none", lambda: TensorFlowRMSprop([X], lr=None), "TensorFlowRMSprop(lr=None): must be a number"),
    ("none of two made", lambda: SplitOptimizer([X], list, SGD), "one of its optimizers: makes a list of 1, not a tor"),
    ("kinds of none", lambda: Rule(kinds=3), "Rule(kinds=3): must be a list of kinds"),
    ("settings", lambda: HyperparameterLogger("lr"), "HyperparameterLogger(settings='lr'): must be settings by name"),
]
SHOWN = [
    ("a long list", lambda: ClosedForm(average=[0.5] * 99), "ClosedForm(average=a list of 99): must be a number"),
    ("a long text", lambda: ClosedForm(average="a b " * 99), "a b a b ...'): must be a number"),
    ("a tensor", lambda: ClosedForm(average=X), "ClosedForm(average=a Tensor [4, 6] of float32): must be a number"),
    ("tensors", lambda: ClosedForm(average=(X, X)), "ClosedForm(average=a tuple of 2): must be a number"),
    ("an object", lambda: ClosedForm(average=object()), "ClosedForm(average=a object): must be a number"),
    ("what is half made", lambda: BackpropModule(Early(), None, SGD), "(network=a Early): must be a network"),
    ("many layers", lambda: skipping("x"), "skip: 'x' matches no layer; the layers are 0, 1, 2"),
    ("more layers", lambda: skipping("x"), "18, 19 and 10 more."),
]
ROWS = [*LOCAL, *FLAGS, *OTHERS, *SHOWN]


@pytest.mark.parametrize(("call", "said"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_a_wrong_value_is_refused_by_one_sentence(call, said):
    with pytest.raises(UserError) as refused:
        call()
    assert said in str(refused.value) and "\n" not in str(refused.value) and len(str(refused.value)) < 300


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: MLP(hidden=3), "MLP has no argument 'hidden'; it has in_features, hidden_features, "),
        (lambda: LocoPropModule(lamda_a=3), "; near names are lambda_a, lambda_r"),
        (lambda: ClosedForm(averge=0.5), "ClosedForm has no argument 'averge'; it has average, "),
        (lambda: Digits(batchsize=3), "; near names are batch_size"),
    ],
)
def test_an_argument_that_a_class_has_not_is_told_with_those_it_has(call, said):
    with pytest.raises(TypeError) as refused:
        call()
    assert said in str(refused.value)


def test_a_method_that_takes_other_arguments_than_that_which_it_overrides():
    with pytest.raises(UserError, match=r"^Mine.direction\(gradient\): must take \(gradient, terms, state\), as O"):

        class Mine(Oracle):
            def direction(self, gradient):
                return gradient

    with pytest.raises(UserError, match=r"^Late.on_train_start\(trainer\): must take \(trainer, pl_module\), as C"):

        class Late(ClosedForm):
            def on_train_start(self, trainer):
                pass

    class Free(Oracle):
        def direction(self, gradient, *others):
            return gradient

    assert Free().direction(X, 4, {}) is X


def test_a_class_without_settings_takes_none():
    with pytest.raises(TypeError, match="GradientOracle.* takes no arguments"):
        GradientOracle(3)
