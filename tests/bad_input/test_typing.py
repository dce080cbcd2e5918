"""Slips of the hand in commands and files of settings: each is refused by the option that was typed, with a way out."""

import shlex
from pathlib import Path

import pytest
import yaml

from locoprop_lightning.cli import main
from locoprop_lightning.results.compare import main as compare
from locoprop_lightning.tune.__main__ import main as tune
from tests.bad_input.support import CONFIGS, sentence_of

pytestmark = [pytest.mark.usefixtures("folder"), pytest.mark.filterwarnings("ignore")]  # Lightning's
SWEEP = f"--quiet --config {CONFIGS}/digits/foof.yaml --space foof --name x --samples 1"

# id, command or settings of a fit on the digits, what the sentence must contain
TYPED = [
    ("a setting of the module", "--model.lambda_a 0", "error: --model.lambda_a=0.0: must be above 0"),
    ("of a class in it", "--model.solver.average 1", "error: --model.solver.average: ClosedForm(average=1.0): must be"),
    ("of the trainer", "--trainer.max_epochs 0", "error: --trainer.max_epochs=0: trains nothing"),
    ("of another kind", "--trainer.max_epochs ten", "error: --trainer.max_epochs: must be int, not ten"),
    ("of the data", "--data.batch_size 0", "error: --data.batch_size: Digits(batch_size=0): must be at least 1"),
    ("a setting misspelt", "--model.solver.averag 1", "error: --model.solver.averag: ClosedForm has no setting"),
    (
        "a setting without its place",
        "--optimzer Adam",
        "unrecognized arguments: --optimzer Adam; near names are model.optimizer",
    ),
    ("a class misspelt", "--model.solver ClosedFrom", "there is no class ClosedFrom; take ClosedForm, Anderson"),
    ("nothing for a number", "--model.lambda_a ''", "--model.lambda_a: must be float, not ''"),
    ("nothing for a name", "--model.objective ''", "must be one of 'matching', 'squared', not ''"),
    ("nothing for a class", "--model.network ''", "--model.network: there is no class ''; take ConvNet, "),
    ("a file for a class", "--model.network /a/x.py", "--model.network: there is no class /a/x.py; take ConvNet, "),
    ("a call for a class", "--model.optimizer 'Adam(lr=1)'", "there is no class Adam(lr=1); take ASGD, "),
    ("no value", "--model.lambda_a --model.lambda_r 3", "error: --model.lambda_a: has no value; give it one, or leave"),
    ("one hyphen", "-model.lambda_a 3", "error: -model.lambda_a: an option begins with two hyphens"),
    ("one hyphen behind", "fit -model.lambda_a 3", "-model.lambda_a: an option begins with two hyphens; give --model."),
    ("an option and its value in one word", "fit '--config digits/foof'",
     "error: '--config digits/foof' is one word; give option and value as two, or as --config=digits/foof."),
    ("all options in one word", "fit '--config digits/foof --trainer.max_steps 3'", " is one word; give each as its "),
    ("several files of a pattern", "--ckpt_path a/1.ckpt a/2.ckpt a/3.ckpt",
     "arguments: a/2.ckpt a/3.ckpt; --ckpt_path takes one: give one of them, such as --ckpt_path a/2.ckpt"),
    ("a file without its option", "--trainer.max_steps 10 digits/foof",
     "arguments: digits/foof; settings have a name, such as --config digits/foof"),
    ("a dash", "fit \u2014model.lambda_a 3", "an option begins with two hyphens; give --model.lambda_a"),
    ("two values", "--model.lambda_a 3 4", "arguments: 4; settings have a name, such as --model.lambda_a 3"),
    ("a number of 400 digits", f"--model.lambda_a {'9' * 400}", "--model.lambda_a: must be a finite number"),
    ("a tuple of one", "--model.optimizer Adam --model.optimizer.betas [0.9]", "betas: must be tuple with 2 elements"),
    ("a group", "--local_losses 5", "--local_losses: is a group of settings; give one of them, such as --local_losses"),
    ("without its parent", "--lambda_a 3", "unrecognized arguments: --lambda_a 3; near names are model.lambda_a"),
    ("a rate", "--lr 3", "near names are model.optimizer.lr, model.rest_optimizer.lr"),
    ("epochs", "--epochs 3", "--epochs 3; near names are trainer.max_epochs, trainer.min_epochs, model.lr_"),
    ("epochs of the trainer", "--trainer.epochs 3", "3; near names are trainer.max_epochs, trainer.min_epochs, "),
    ("a seed", "--seed 3", "--seed 3; near names are seed_everything, data.seed"),
    ("an optimizer misspelt", "--model.optimizer torch.optim.Adm", "near names are torch.optim.Adam, torch.optim.RAd"),
    ("like nothing", "--gpu_count 3", "--gpu_count 3; locoprop fit --help all lists what there is"),
    ("an oracle's setting", "--model.oracle.beta 0.5", "model.oracle: needs a class of its own (class_path), as Ora"),
    ("data to come", "fit --data.batch_size 3", "its class is not chosen yet; put --config FILE or --data CLASS befor"),
    ("a function as text", "--model.lr_scheduler LambdaLR --model.lr_scheduler.lr_lambda 'lambda x: x'",
     "lr_lambda: must be a function by its path"),
    ("a logger", "--trainer.logger TensorBoard", "there is no class TensorBoard; take TensorBoardLogger, CSVLog"),
    ("no file", "fit --config ''", "--config='': names no file; give one, such as digits/foof, or leave it out"),
    ("settings for a file", "fit --config '{model: 3}'", "--config={model: 3}: there is no such file, and none is"),
    ("no checkpoint", "--ckpt_path ''", "--ckpt_path='': names no file; give one, take last, or leave it out"),
    ("a checkpoint of nowhere", "--ckpt_path a.ckpt", "--ckpt_path=a.ckpt: there is no such file; name one that a fit"),
    ("a keyword misspelt", "--ckpt_path latest", "name one that a fit has written; near names are last"),
    ("epochs with an exponent", "--trainer.max_epochs 1e2", "--trainer.max_epochs: must be int, not 1e2; write 100"),
    ("a batch size with an exponent", "--data.batch_size 2.0", "--data.batch_size: must be int, not 2.0; write 2"),
    ("validation never", "--trainer.val_check_interval 0", "--trainer.val_check_interval=0: is never; give a number"),
    ("no time", "--trainer.max_time 00:00:00:00", "--trainer.max_time=00:00:00:00: trains nothing; give a time above"),
    ("time by a misspelt unit", "--trainer.max_time '{minutos: 3}'", "'minutos' is an invalid keyword argument for __"),
    ("time below 0", "--trainer.max_time=-1:0:0:0", "--trainer.max_time=-1:0:0:0: `Timer(duration='-1:0:0:0')` is"),
    ("no validation to stop by", "--trainer.callbacks EarlyStopping --trainer.callbacks.monitor val/loss "
     "--trainer.limit_val_batches 0", "EarlyStopping(monitor='val/loss'): is not logged; take one of train/loss, "),
    ("no validation to keep by", "--trainer.callbacks ModelCheckpoint --trainer.callbacks.monitor val/loss "
     "--trainer.limit_val_batches 0", "ModelCheckpoint(monitor='val/loss'): is not logged; take one of train/loss, "),
    ("no logs to stop by", "--trainer.callbacks EarlyStopping --trainer.callbacks.monitor lr "
     "--trainer.log_every_n_steps 0", "EarlyStopping(monitor='lr'): is not logged; take one of train/loss, val/loss"),
    ("no logger", "--trainer.callbacks LearningRateMonitor --trainer.logger false", "trainer.logger=False: Cannot us"),
    ("no backbone", "--trainer.callbacks BackboneFinetuning", "LocoPropModule has no `backbone`; take one of your"),
    ("accumulation by a callback", "--trainer.callbacks GradientAccumulationScheduler --trainer.callbacks.scheduling "
     "'{0: 2}'", "--trainer.callbacks=GradientAccumulationScheduler: would add up displacements; set model.accumulate"),
    ("what a callback refuses", "--trainer.callbacks Timer --trainer.callbacks.duration x",
     "lightning.pytorch.callbacks.timer.Timer: `Timer(duration='x')` is not a valid duration"),
    ("steps that cross", "--trainer.min_steps 9", "--trainer.min_steps=9: is above trainer.max_steps=1; change one of"),
    ("a schedule of no steps", "--model.lr_scheduler StepLR --model.lr_scheduler.step_size 0",
     "--model.lr_scheduler.step_size: StepLR(step_size=0): must be at least 1"),
    ("a schedule of no length", "--model.lr_scheduler CosineAnnealingLR --model.lr_scheduler.T_max 0",
     "CosineAnnealingLR(T_max=0): must be at least 1"),
    ("an inner SparseAdam", "--model.solver InnerOptimizer --model.solver.optimizer SparseAdam",
     "InnerOptimizer(optimizer=SparseAdam): takes no dense gradients; take Adam"),
    ("layers by number", "--model.transfers '{1: tanh}'", "transfers={1: ...}: names of layers are texts; write '1'"),
]  # fmt: skip


def within(*place, **new):
    """Changes the settings at a place."""

    def change(settings):
        part = settings
        for key in place:
            part = part[key]
        part.update(new)

    return change


MODEL = ("model", "init_args")
# id, what is changed in the file, what the sentence must contain
WRITTEN = [
    ("a number for a group", within(local_losses=3), "a.yaml: local_losses: must hold settings by name, not 3; locopr"),
    ("a list for a group", within(trainer=[1]), "a.yaml: trainer: must hold settings by name, not [1]"),
    ("a text for a group", within(checkpoints="no"), "a.yaml: checkpoints: must hold settings by name, not 'no'"),
    ("no class", within(*MODEL, solver={"average": 0.5}), "model.solver: needs a class of its own (class_path), as"),
    ("no class of it", within(*MODEL, solver={"init_args": {}}), "model: solver: has init_args without a class_path"),
    ("a model without its class", lambda all: all.update(model=all["model"]["init_args"]), "a.yaml: model: has no "
     "class_path; write class_path: LocoPropModule, and put these settings below init_args."),
    ("a model of either class", lambda all: all.update(model={"task": "Classification"}), "write class_path: "
     "BackpropModule (or LocoPropModule), and put these"),
    ("data without their class", within(data={"valdation": 3}), "data: has no class_path; write class_path: Datasets"),
    ("a search space", lambda all: (all.clear(), all.update({"model.lambda_a": {"loguniform": [1, 9]}})),
     "--config=a.yaml: is a search space; give it to locoprop-tune by --space, and name a configuration, such as dig"),
    ("a class of nothing", within(*MODEL, solver={"class_path": None}), "solver: class_path: must be the path of a cl"),
    ("settings of nothing", within(*MODEL, solver={"class_path": "ClosedForm", "init_args": 3}),
     "solver: init_args: must hold settings of the class by name, not 3"),
    ("nothing for a number", within(*MODEL, lambda_a=None), "--model.lambda_a, which is empty (null) in the file"),
    ("nothing for a class", within(*MODEL, task=None), "give --model.task, which is empty (null) in the file"),
    ("a number with an exponent", within("data", init_args={"batch_size": "1e2"}), "must be int, not 100.0; write 100"),
    ("a class as a key", within(*MODEL, optimizer={"SGD": {"lr": 1.0}}), "model.optimizer: SGD stands there as a key;"),
    ("a callback as a key", within("trainer", callbacks={"EarlyStopping": {"monitor": "val/loss"}}),
     "trainer.callbacks: EarlyStopping stands there as a key; give the class by its class_path"),
    ("a number for a class", within(*MODEL, lr_scheduler=0.1), "model.lr_scheduler: there is no class 0.1; take "),
    ("below another", within("trainer", model={"class_path": "LocoPropModule"}), "; model stands at the left margin,"),
    ("at the top", within(solver={"class_path": "ClosedForm"}), "'solver.class_path'; near names are model.solver"),
]  # fmt: skip
# id, command, arguments, what the sentence must contain
OTHERS = [
    ("trials as a word", tune, f"{SWEEP} --samples x", "error: --samples x: must be a whole number."),
    ("time with a unit", tune, f"{SWEEP} --time-budget 5m", "error: --time-budget 5m: must be a number."),
    ("no such search", tune, f"{SWEEP} --search bayes", "--search: invalid choice: 'bayes' (choose from 'random', "),
    ("one word", tune, "'--config digits/foof'", "'--config digits/foof' is one word; give option and value as two"),
    ("one word of many", compare, "runs '--x time --text'", "'--x time --text' is one word; give each as its own"),
    ("an option misspelt", tune, f"{SWEEP} --sample 3", "--sample 3; near names are --samples, "),
    ("a study's option", tune, "study digits --reprot", "--reprot; near names are --report, "),
    (
        "a sweep's option",
        tune,
        "study digits --sample 1",
        "--sample 1; trials and seeds of a study stand in its file, ",
    ),
    ("no study", tune, "study", "are required: STUDY; locoprop-tune study --help lists all"),
    ("a metric misspelt", tune, f"{SWEEP} --metric val/acuracy", "val/loss, val/accuracy; near names are val/accuracy"),
    (
        "no option",
        tune,
        "digits --samples 2",
        "digits: is no option; give locoprop-tune study digits, or --config digits/",
    ),
    ("a file without an option", tune, "a/b.yaml", "give locoprop-tune study a/b.yaml, or --config a/b.yaml"),
    (
        "methods with commas",
        tune,
        "study digits --only foof,adamw --plan",
        "locoprop_m_anderson; separate them by spaces",
    ),
    ("a report of a plan", tune, "study digits --plan --report", "argument --report: not allowed with argument --plan"),
    ("below 0", tune, f"{SWEEP} --max-failures=-1", "error: --max-failures=-1: must be at least 0"),
    ("a setting of --set", tune, f"{SWEEP} --set trainer.max_epochs=0", "error: trainer.max_epochs=0: trains nothing"),
    ("steps of a sweep", tune, f"{SWEEP} --set trainer.max_steps=3", "trainer.max_steps=3: a sweep counts epochs, and"),
    ("smoothing as a word", compare, "runs --smooth x", "error: --smooth x: must be a number."),
    ("nothing to compare", compare, "", "are required: RUN; locoprop-compare --help lists all"),
]


@pytest.mark.parametrize(("command", "said"), [row[1:] for row in TYPED], ids=[row[0] for row in TYPED])
def test_what_is_typed_is_named_as_it_was(command, said, capsys):
    assert said in sentence_of(main, command, capsys)


@pytest.mark.parametrize(("change", "said"), [row[1:] for row in WRITTEN], ids=[row[0] for row in WRITTEN])
def test_what_is_written_in_a_wrong_place_is_named(change, said, capsys):
    settings = yaml.safe_load((CONFIGS / "digits" / "foof.yaml").read_text())
    change(settings)
    Path("a.yaml").write_text(yaml.safe_dump(settings))
    assert said in sentence_of(main, "fit --config a.yaml --trainer.accelerator cpu", capsys)


def test_the_home_folder_is_meant_by_a_tilde(folder, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(folder / "home"))
    Path("home").mkdir()
    Path("home/mine.yaml").write_text("model: 3")
    for of, command, said in [
        (main, "fit --config=~/mine.yaml", "model: must be a class with its init_args, not 3"),
        (main, "--ckpt_path=~/a.ckpt", f"--ckpt_path={folder}/home/a.ckpt: there is no such file"),
        (main, "--model.oracle=~ --model.lambda_a=0", "--model.lambda_a=0.0: must be above 0"),  # YAML's null
        (tune, "--config=~/mine.yaml --space=~/space.yaml", f"--space {folder}/home/space.yaml: there is no such file"),
        (compare, "runs --table=~/", f"--table {folder}/home: is a folder"),
    ]:
        assert said in sentence_of(of, command if of is main else command.split(), capsys)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            "--metric val/loss --mode max",
            "--mode max: takes the highest val/loss for the best; leave it out for the lowest.",
        ),
        ("--mode min", "--mode min: takes the lowest val/accuracy for the best; leave it out for the highest."),
        ("--mode max", ""),
        ("--metric val/f1 --mode max", ""),
    ],
)
def test_a_mode_against_its_metric_is_told(options, said, capsys):
    with pytest.raises(SystemExit):
        tune(f"{SWEEP} {options} --set nonsense".split())
    assert "".join(line for line in capsys.readouterr().err.splitlines() if "--mode" in line) == said


@pytest.mark.parametrize("text", ["a: &x\n  b: *x\n", "&x\nmodel: *x\n", "a: &x [*x]\n"])
def test_an_anchor_that_holds_itself_is_named(text, capsys):
    Path("a.yaml").write_text(text)
    assert "--config=a.yaml: is no YAML: an anchor holds itself" in sentence_of(main, "fit --config a.yaml", capsys)


@pytest.mark.parametrize(("of", "command", "said"), [row[1:] for row in OTHERS], ids=[row[0] for row in OTHERS])
def test_the_other_commands_show_no_page_of_their_usage(of, command, said, capsys):
    assert said in sentence_of(of, shlex.split(command), capsys)
    assert "usage:" not in capsys.readouterr().err
