"""Networks that nobody here wrote: a short fit of torchvision's, with random weights and small images."""

import math

import pytest
import torch
import torchvision.models as models
from torch import nn
from torch.utils.data import DataLoader

from locoprop_lightning import LocoPropModule
from locoprop_lightning.observer import SolveObserver
from locoprop_lightning.oracles import RMSOracle
from locoprop_lightning.solvers import ClosedForm, Majorization, Recording
from locoprop_lightning.tasks import Classification
from tests.support import quiet_trainer

SAMPLES, SIZE = 4, 32
NETWORKS = {
    "resnet18": lambda: models.resnet18(num_classes=10),
    "vgg11": lambda: models.vgg11(num_classes=10),
    "mobilenet_v2": lambda: models.mobilenet_v2(num_classes=10),
    "vit_b_16": lambda: models.vit_b_16(image_size=32, num_classes=10),
    "densenet121": lambda: models.densenet121(num_classes=10),
    "googlenet": lambda: models.googlenet(num_classes=10, aux_logits=False, init_weights=False),
    "shufflenet_v2": lambda: models.shufflenet_v2_x1_0(num_classes=10),
}
SOLVERS = {"closed_form": (ClosedForm, "squared"), "majorization": (lambda: Majorization(2), "matching")}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
]


class Watch(SolveObserver):
    """Keeps the losses, and the largest matrix that a solver inverts."""

    def __init__(self):
        self.losses, self.largest = [], 0

    def recording(self, trainer):
        return Recording.ENDS

    def on_solved(self, trainer, problems, reports, counts):
        preconditioner = trainer.lightning_module.solver.preconditioner
        for problem in problems.values():
            size = problem.n if preconditioner.uses_kernel(problem) else problem.operator.width
            self.largest = max(self.largest, size)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(outputs["loss"].item())


@pytest.fixture(
    params=[(n, s) for n in NETWORKS for s in SOLVERS if (n, s) != ("vgg11", "majorization")],  # of 130 M weights
    ids=lambda p: "-".join(p),
)
def fit(request):
    """Three steps: the name, the module after them, its parameters before, and what was watched."""
    name, solver = request.param
    make = NETWORKS[name]
    make_solver, objective = SOLVERS[solver]
    module = LocoPropModule(make(), Classification(), make_solver(), 0.05, 100.0, objective, RMSOracle())
    before = {name: p.detach().clone() for name, p in module.network.named_parameters()}
    x, y = torch.rand(3 * SAMPLES, 3, SIZE, SIZE), torch.arange(3 * SAMPLES) % 10
    watch = Watch()
    trainer = quiet_trainer(
        max_steps=3,
        callbacks=[watch],
    )
    trainer.fit(module, DataLoader(list(zip(x, y, strict=True)), SAMPLES))
    return name, module, before, watch


def test_a_short_fit(fit):
    name, module, before, watch = fit
    layers = {layer.name: layer for layer in module.engine.found}
    assert len(watch.losses) == 3 and all(map(math.isfinite, watch.losses))
    # Whoever trains a layer, it has moved; whoever does not is named with a reason.
    for parameter, old in before.items():
        layer = layers[parameter.rpartition(".")[0]]
        moved = not torch.equal(module.network.get_parameter(parameter).detach(), old)
        assert moved or (not layer.local and layer.reason), parameter
    kinds = {n: m for n, m in module.network.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    others = {n for n in kinds if not layers[n].local}
    if name == "vit_b_16":  # nn.MultiheadAttention reads these weights itself
        assert others == {n for n in kinds if n.endswith("self_attention.out_proj")}
        assert all(layers[n].reason == "weights are read outside the layer" for n in others)
    else:
        assert not others
    if name == "vgg11":
        assert layers["classifier.0"].module.in_features == 25_088
        expected = "relu" if module.engine.settings.objective == "matching" else "identity"
        assert {n: layers[n].transfer.name for n in kinds} == dict.fromkeys(kinds, expected) | {
            "classifier.6": "identity"
        }
        assert watch.largest <= 577  # rows or inputs, whichever are fewer
    else:  # normalisation, GELU or a sum follows every layer
        assert all(layers[n].transfer.name == "identity" for n in kinds if layers[n].local)
