import sys
from importlib.metadata import requires
from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import get_loader

from locoprop_lightning.callbacks import FitSummary, StepTimer
from locoprop_lightning.class_names import CLASSES, YAML, classes_of
from locoprop_lightning.cli import LocoPropCLI, main
from locoprop_lightning.command_line import check_words
from locoprop_lightning.layers import kind

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu", "--trainer.limit_val_batches", "1"]
MODEL = [
    *(
        "--model",
        "LocoPropModule",
        "--model.network",
        "locoprop_lightning.networks.MLP",
        "--model.network.in_features",
        "64",
    ),
    *("--model.network.hidden_features", "16", "--model.network.hidden_layers", "1", "--model.task", "Classification"),
    *("--model.solver", "AndersonAcceleration", "--model.solver.iterations", "10"),
    *("--model.lambda_a", "100", "--data", "Digits", "--data.batch_size", "100"),
]


pytestmark = pytest.mark.usefixtures("folder")


def arguments(command, *more, lambda_r="1000"):
    return [command, *MODEL, "--model.lambda_r", lambda_r, *QUIET, *more]


STRANGERS = """
import torch
from torch import nn
from locoprop_lightning.layers import LayerKind, register
from locoprop_lightning.local import MatrixOperator

class Halves(nn.Module):
    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(4, 64) / 8)

    def forward(self, x):
        return x @ self.kernel.t() / 2

@register
class HalvesKind(LayerKind):
    modules = (Halves,)

    def parameters(self, module):
        return module.kernel, None

    def operator(self, module, inputs):
        return MatrixOperator(torch.cat(list(inputs)) / 2, False)

    def empty(self, module):
        return module.kernel.new_zeros(0, 64)

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), Halves(), nn.Tanh(), nn.Linear(4, 10))
"""


def test_a_kind_of_somebody_else_stands_in_the_table(folder, capsys, monkeypatch):
    (folder / "strangers.py").write_text(STRANGERS)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(kind, "_KINDS", list(kind._KINDS))
    monkeypatch.setenv("COLUMNS", "120")
    model = ["--model", "LocoPropModule", "--model.network", "strangers.Net", *MODEL[MODEL.index("--model.task") :]]
    main(["fit", *model, "--model.lambda_r=1000", *QUIET, "--trainer.max_steps=1", "--trainer.log_every_n_steps=1"])
    (row,) = [line for line in capsys.readouterr().out.splitlines() if "Halves" in line]
    cells = [cell.strip() for cell in row.split("│")[1:-1]]
    assert cells == ["1", "Halves", "4x64", "tanh", "AndersonAcceleration"]


@pytest.mark.filterwarnings("ignore:The dirpath has changed from")
def test_fit_validate_test_and_predict(folder, capsys):
    main(arguments("fit", "--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.log_every_n_steps=1"))
    output = capsys.readouterr().out
    for text in ("Layers", "tanh", "AndersonAcceleration", "train loss", "validation accuracy"):
        assert text in output
    best, first, checkpoint = sorted(folder.rglob("*.ckpt"))
    assert (best.name, first.name, checkpoint.name) == ("best.ckpt", "step=0.ckpt", "step=2.ckpt")
    assert f"--ckpt_path {checkpoint}" in output and f"{best} (val/accuracy " in output
    config = checkpoint.parents[1] / "config.yaml"
    assert f"  test                 locoprop test --config {config} --ckpt_path {checkpoint}" in output
    names = [line[2:22].strip() for line in output.partition("Summary\n")[2].splitlines()]
    assert names[-6:] == ["logs", "best weights", "checkpoint", "see the curves", "compare", "test"]
    assert list(folder.rglob("events.out.tfevents*"))
    assert torch.load(checkpoint, weights_only=True)["global_step"] == 2
    for command in ("validate", "test"):
        main(arguments(command, "--ckpt_path", str(checkpoint)))
        assert f"{command[:3] if command == 'validate' else command}/accuracy" in capsys.readouterr().out
    main(arguments("predict", "--ckpt_path", str(checkpoint), "--predictions.path", "labels.pt"))
    labels = torch.load(folder / "labels.pt", weights_only=True)
    assert labels.shape == (297,) and labels.dtype == torch.int64


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--model.lambda_r", "-1"], "lambda_r=-1.0: must be above 0."),
        (["--model.solver.memory", "0"], "AndersonAcceleration(memory=0): must be at least 1."),
        (["--model.skip", "[frist]"], "skip: 'frist' matches no layer; the layers are 1, 3."),
        (["--model.include", "[frist]"], "include: 'frist' matches no layer; the layers are 1, 3."),
        (
            ["--model.include", "5"],
            """model.include: must be a list of patterns of layers, such as '["tokens"]', not 5""",
        ),
        (["--model.network.in_features", "65"], "set in_features to 64, or give samples of 65."),
        (["--data.batch_size", "0"], "Digits(batch_size=0): must be at least 1."),
        (["--model.objective", "sqared"], "model.objective: must be one of 'matching', 'squared', not sqared"),
        (["--model.lambda_a", "nan"], "model.lambda_a: must be a finite number, not nan"),
        (
            ["--model.overrides.1.lambda_r", "3"],
            "model.overrides: must be lambdas and unit_groups by pattern of layers, such as "
            """'{"1": {"lambda_r": 3}}', not 3""",
        ),
        (["--model.skip", "5"], """model.skip: must be a list of patterns of layers, such as '["1"]', not 5"""),
        (["--seed_everything=-5"], "seed_everything=-5: must be at least 0."),
        (
            ["--model.oracle", "torch.nn.Linear"],
            "model.oracle: Import path torch.nn.Linear does not correspond to a subclass of Oracle; take "
            "GradientOracle, RMSOracle, SpectralOracle, WhitenedOracle, or a class by its path, such as "
            "your_package.YourClass",
        ),
        (
            ["--model.solver", "nowhere.Mine"],
            "No module named 'nowhere' (looked for in this folder, too); take AndersonAcceleration, "
            "ClosedForm, ConjugateGradient, FixedPointIteration, GradientDescent, InnerOptimizer, Majorization, or a "
            "class by its path, such as your_package.YourClass",
        ),
        (["--model.solver.iterations", "0"], "AndersonAcceleration(iterations=0): must be at least 1."),
        (["--data.seed", "x"], "data.seed: must be int, not x"),
        (["--seed_everything", "x"], "seed_everything: must be bool or int, not x"),
        (
            ["--model.oracle", "Nonsense"],
            "model.oracle: there is no class Nonsense; take GradientOracle, RMSOracle, SpectralOracle, WhitenedOracle, "
            "or a class by its path, such as your_package.YourClass",
        ),
        (["--trainer.logger", "X"], "or a class by its path, such as your_package.YourClass"),
        (
            ["--model.oracle", "locoprop_lightning.oracles.RmsOracle"],
            "model.oracle: module 'locoprop_lightning.oracles' has no attribute 'RmsOracle'; take GradientOracle, "
            "RMSOracle, SpectralOracle, WhitenedOracle, or a class by its path, such as your_package.YourClass",
        ),
        (["--model.task.num_classes", "5"], "num_classes=5): the network has 10 outputs; make them agree."),
        (
            ["--ckpt_path", "no.ckpt"],
            "no.ckpt: there is no such file; name one that a fit has written.",
        ),
        (
            ["--ckpt_path", __file__],
            "test_cli.py: is not a checkpoint that torch has saved; name one that a fit has written.",
        ),
        (["--ckpt_path", str(ROOT)], "is a folder; name a .ckpt file in it."),
        (
            ["--model.oracle", "RMSOracle", "--model.oracle.per", "row"],
            "model.oracle.per: must be one of 'unit', 'layer', not row",
        ),
        (
            ["--model.solver", "ConjugateGradient", "--model.solver.memory", "3"],
            "model.solver: ConjugateGradient has no setting 'memory'; it has iterations",
        ),
        (
            ["--model.reduction", "exact"],
            "LocoPropModule has no setting 'reduction' any more: leave it out, or delete its line in the file; what it "
            "named is always done",
        ),
        (
            ["--model.solver", "LocalSolver"],
            "model.solver: needs a class of its own (class_path), as LocalSolver is abstract; take "
            "AndersonAcceleration, ClosedForm, ConjugateGradient, FixedPointIteration, GradientDescent, "
            "InnerOptimizer, Majorization, or a class by its path, such as your_package.YourClass",
        ),
        (
            ["--model.lr_scheduler.warmup", "0.1"],
            "its class is not chosen yet; put --model.lr_scheduler CLASS before --model.lr_scheduler.warmup",
        ),
        (["--modl.x", "3"], "unrecognized arguments: --modl.x 3; near names are model, model.help"),
    ],
)
def test_mistakes_end_with_one_sentence(capsys, more, message):
    with pytest.raises(SystemExit) as stopped:
        main(arguments("fit", "--trainer.max_steps", "1", *more))
    assert stopped.value.code == 2
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    (line,) = [line for line in errors.splitlines() if line.startswith("locoprop: error: ")]
    assert line.endswith(message)


@pytest.mark.parametrize("form", [["--model.network", "MLP"], ["--model.network=MLP"]])
def test_a_class_name_that_torchvision_has_too_is_ours(form, capsys):
    main(arguments("fit", *form, "--trainer.max_steps=1"))
    assert "16x64 + 16" in capsys.readouterr().out  # torchvision's has no such settings


SHORT = """
model:
  class_path: LocoPropModule
  init_args:
    network: {class_path: MLP, init_args: {in_features: 64, hidden_features: 16, hidden_layers: 1}}
    task: Classification
    solver: ClosedForm
    oracle: {class_path: RMSOracle}
    objective: squared
    lambda_a: 1
    lambda_r: 1
trainer: {callbacks: [{class_path: LocalSchedule, init_args: {lambda_a: {0: 1}}}]}
data: Digits
"""


@pytest.mark.parametrize(
    "more", [[], ["--model.network={class_path: MLP, init_args: {in_features: 64, hidden_features: 16}}"]], ids=len
)
def test_a_file_names_our_classes_as_the_command_line_does(folder, capsys, more):
    (folder / "short.yaml").write_text(SHORT)
    main(["fit", "--config=short.yaml", *QUIET, "--trainer.max_steps=1", *more])
    assert "16x64 + 16" in capsys.readouterr().out


def test_a_file_may_leave_its_class_to_the_command_line(folder, capsys):
    part = yaml.safe_load(SHORT)
    (folder / "part.yaml").write_text(yaml.safe_dump(part | {"model": part["model"]["init_args"]}))
    for chosen in (["--model=LocoPropModule"], ["--model.class_path", "locoprop_lightning.LocoPropModule"]):
        main(["fit", *chosen, "--config=part.yaml", *QUIET, "--trainer.max_steps=1"])
        assert "16x64 + 16" in capsys.readouterr().out


class Without:
    """A machine on which an optimizer's package is not installed."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "pytorch_optimizer":
            raise ModuleNotFoundError("No module named 'pytorch_optimizer'", name="pytorch_optimizer")


@pytest.mark.parametrize("ours", [True, False])
def test_the_extra_that_installs_a_package_is_named_where_ours_is_installed(folder, capsys, monkeypatch, ours):
    for name in [name for name in sys.modules if name.partition(".")[0] == "pytorch_optimizer"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Without(), *sys.meta_path])
    if not ours:
        monkeypatch.setattr("locoprop_lightning.refusal.requires", lambda name: requires("a-package-of-nobody"))
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--config", "digits/soap"])
    way = (
        "; install it by pip install 'locoprop-lightning[baselines]'" if ours else " (looked for in this folder, too);"
    )
    assert stopped.value.code == 2 and f"No module named 'pytorch_optimizer'{way}" in capsys.readouterr().err


def test_a_value_may_begin_with_a_hyphen():
    check_words(["fit", "--trainer.logger.name", "-x my run", "--trainer.logger.version=-1 of 2"])


def test_a_text_below_a_class_of_ones_own_stays_a_text():
    own = {"class_path": "mine.Net", "init_args": {"network": "MLP", "task": "Classification"}}
    nested = {"class_path": "mine.Net", "init_args": {"network": {"class_path": "MLP"}, "kinds": ["MLP"]}}
    model = {"class_path": "mine.Module", "init_args": {"network": own, "oracle": "RMSOracle"}}
    data = {"class_path": "mine.Data", "init_args": {"data": "Digits"}}
    read = get_loader(YAML)(yaml.safe_dump({"model": model, "data": data, "notes": {"solver": "ClosedForm"}}))
    assert read == {"model": model, "data": data, "notes": {"solver": "ClosedForm"}}
    read = get_loader(YAML)(yaml.safe_dump({"model": nested}))["model"]["init_args"]
    assert read == {"network": {"class_path": "locoprop_lightning.networks.mlp.MLP"}, "kinds": ["MLP"]}


@pytest.mark.parametrize("key", CLASSES)
def test_every_short_name_of_ours_is_known_in_files(key):
    names = classes_of(key, ours=True)
    model = {"class_path": "LocoPropModule", "init_args": {key: [{"class_path": name} for name in names]}}
    read = get_loader(YAML)(yaml.safe_dump({"model": model}))["model"]["init_args"][key]
    assert [one["class_path"] for one in read] == [f"{one.__module__}.{one.__name__}" for one in names.values()]


@pytest.mark.parametrize(
    ("text", "message"), [("", "holds no settings; see configs/ for files that do."), ("a: [", "is no YAML: ")]
)
@pytest.mark.parametrize("flag", ["--config={}", "--config {}"])
def test_a_broken_file_of_settings_is_named(folder, capsys, text, message, flag):
    (folder / "broken.yaml").write_text(text)
    with pytest.raises(SystemExit):
        main(["fit", *flag.format("broken.yaml").split()])
    assert f"locoprop: error: --config=broken.yaml: {message}" in capsys.readouterr().err


def test_without_a_checkpoint_the_weights_are_said_to_be_initial(capsys):
    main(arguments("validate"))
    assert (
        "locoprop validate: no --ckpt_path, so the network has its initial weights; --ckpt_path best takes"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(("setting", "names"), [("optimizer", "Adam, SplitOptimizer"), ("lr_scheduler", "LinearDecay")])
def test_what_else_could_stand_there(capsys, setting, names):
    with pytest.raises(SystemExit):
        main(arguments("fit", f"--model.{setting}", "X"))
    line = capsys.readouterr().err
    assert f"model.{setting}: there is no class X; take " in line and all(
        f" {name}," in line for name in names.split(", ")
    )


@pytest.mark.slow
@pytest.mark.parametrize("path", CONFIGS, ids=[str(p.relative_to(ROOT / "configs")) for p in CONFIGS])
def test_configs_run(path, tmp_path, request):
    config = yaml.safe_load(path.read_text())
    options = [
        *("--trainer.max_steps", "2", "--trainer.default_root_dir", str(tmp_path)),
        *("--trainer.limit_test_batches", "1", "--data.batch_size", "64"),
        *("--trainer.logger.init_args.save_dir", str(tmp_path)),
    ]
    if "FashionMNIST" in config["data"]["class_path"]:
        request.getfixturevalue("fashion_mnist")  # skips where the data is missing
        options += ["--data.root", str(ROOT / "data")]
    main(["fit", "--config", str(path), *QUIET, *options])
    (checkpoint,) = tmp_path.rglob("step=2.ckpt")
    assert torch.load(checkpoint, weights_only=True)["global_step"] == 2
    assert list(tmp_path.rglob("events.out.tfevents*"))


def test_what_is_built_is_what_fit_would_train_and_writes_nothing(folder):
    changed = {"trainer.max_steps": "2", "trainer.logger": "false", "trainer.accelerator": "cpu", "model.lambda_a": "7"}
    config = ROOT / "configs" / "digits" / "foof.yaml"
    cli = LocoPropCLI.build(config, changed, seed=3, without=(FitSummary,))
    assert (
        cli.settings()["seed_everything"] == 3
        and cli.model.engine.settings.lambda_a == 7
        and cli.trainer.max_steps == 2
    )
    kinds = {type(callback) for callback in cli.trainer.callbacks}
    assert StepTimer in kinds and FitSummary not in kinds
    cli.trainer.fit(cli.model, cli.datamodule)
    assert cli.trainer.global_step == 2 and not list(folder.iterdir())
    assert FitSummary in {type(callback) for callback in LocoPropCLI.build(config, changed).trainer.callbacks}


def test_a_fit_without_a_logger_is_silent_of_its_own_monitor(recwarn):
    main(arguments("fit", "--trainer.logger=false", "--trainer.max_steps=1", "--local_losses.every_n_steps=1"))
    assert not [str(one.message) for one in recwarn if "LocalLossMonitor" in str(one.message)]
