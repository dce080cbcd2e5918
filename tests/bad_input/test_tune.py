"""Wrong sweeps and studies: each is refused by one sentence before a cluster is started."""

from pathlib import Path

import pytest

from locoprop_lightning.tune.__main__ import main
from tests.bad_input.support import CONFIGS, sentence_of
from tests.support import ROOT

pytestmark = pytest.mark.usefixtures("folder")

SPACES = ROOT / "tune" / "spaces"
ADAM = f"a: {{config: {CONFIGS}/digits/adam.yaml, space: {SPACES}/adam.yaml"
SWEEP = f"--config CONFIGS/digits/foof.yaml --space {SPACES}/foof.yaml --name x --samples 1"
OF_SPACE = "--config CONFIGS/digits/foof.yaml --space space.yaml --name x --samples 1"

# id, options beside a configuration and a space, what the sentence must contain
SWEEPS = [
    ("GPUs that are not there", "--gpus-per-trial 99", "--gpus-per-trial 99: there are"),
    ("processors that are not there", "--cpus-per-trial 6400", "--cpus-per-trial 6400: there are"),
    ("processors below 0", "--cpus-per-trial=-1", "--cpus-per-trial=-1.0: must be above 0"),
    ("no processors", "--cpus-per-trial 0", "--cpus-per-trial=0.0: must be above 0"),
    ("GPUs below 0", "--gpus-per-trial=-1", "--gpus-per-trial=-1.0: must be above 0"),
    ("time below 0", "--time-budget=-5", "--time-budget=-5.0: must be above 0"),
    ("time nan", "--time-budget nan", "--time-budget=nan: must be a finite number"),
    ("no trials", "--samples 0", "samples=0: must be at least 1"),
    ("no grace", "--grace 0", "grace=0: must be at least 1"),
    (
        "grace of all epochs",
        "--scheduler asha --grace 20",
        "--grace 20: is not below the 20 epochs of a trial; give less",
    ),
    (
        "grace beyond all epochs",
        "--scheduler median --grace 50 --seeds 2",
        "--grace 50: is not below the 40 epochs of a",
    ),
    ("no workers", "--workers-per-trial 0", "--workers-per-trial=0: must be at least 1"),
    ("seed below 0", "--seed=-1", "seed=-1: must be at least 0"),
    ("no such mode", "--mode up", "argument --mode: invalid choice: 'up'"),
    ("a name of two", "--name a/b", "--name a/b: is no name of a folder; --storage says where that lies"),
    ("a name above", "--name ..", "--name ..: is no name of a folder"),
    ("storage where none can be", "--storage /dev/null/x", "--storage /dev/null/x: /dev/null is no folder that can be"),
    ("an address of no port", "--address here", "--address here: must be HOST:PORT, ray://HOST:PORT, or 'auto'"),
    ("an address of nobody", "--address 127.0.0.1:1", "--address 127.0.0.1:1: nothing answers there ("),
    ("a metric of nobody", "--metric acc", "--metric acc: is not logged after an epoch; take one of train/loss, val/l"),
    ("no value", "--set nonsense", "--set nonsense: must be KEY=VALUE, such as data.validation=5000"),
    ("a setting of nobody", "--set model.x=3", "LocoPropModule has no setting 'x'; it has network, task, solver"),
    ("a searched setting", "--set model.lambda_a=3", "--set model.lambda_a=3: is searched by the space; take it out"),
    ("no epochs", "--set trainer.max_epochs=0", "trainer.max_epochs=0: trains nothing"),
    ("nothing to go on with", "--resume", "holds no sweep; look at --storage and --name"),
]
STUDIES = [
    ("an optimizer of nobody", f"methods: {{{ADAM}, set: {{model.optimizer: nonsense}}}}}}", "there is no class nonse"),
    (
        "a list of optimizers",
        f"methods: {{{ADAM}, set: {{model.optimizer: [1]}}}}}}",
        "a: model.optimizer: there is no class [1]; take",
    ),
    ("a setting of nobody", f"methods: {{{ADAM}, set: {{model.x: 3}}}}}}", "a: model: BackpropModule has no setting '"),
    ("settings as a list", f"methods: {{{ADAM}, set: [1]}}}}", "study.yaml: a: set: must be a mapping of settings to"),
    ("trials below 0", f"budget: {{trials: -1}}\nmethods: {{{ADAM}}}}}", "budget(trials=-1): must be at least 1"),
    ("trials as text", f"budget: {{trials: x}}\nmethods: {{{ADAM}}}}}", "budget(trials='x'): must be a whole number"),
    ("no budget", f"budget:\nmethods: {{{ADAM}}}}}", "study.yaml: budget: must be a mapping of names to values"),
    ("a budget misspelt", f"budget: {{trails: 1}}\nmethods: {{{ADAM}}}}}", "budget: trails is none of trials, seeds,"),
    ("threads by thousands", f"budget: {{threads: 99999}}\nmethods: {{{ADAM}}}}}", "threads=99999: must be at most"),
    ("no methods", "methods: {}", "study.yaml: methods: name at least one, such as adam: configs/digits/adam.yaml"),
    ("methods of nothing", "methods:", "study.yaml: methods: must be a mapping of names to values"),
    ("methods as a list", "methods: [a]", "study.yaml: methods: must be a mapping of names to values"),
    ("a method by number", "methods: {a: 3}", "study.yaml: a: must be a configuration, or {config: FILE, space: FILE"),
    ("a method of nowhere", "methods: {a: b.yaml}", "study.yaml: a: config: b.yaml: there is no such file, and none"),
    ("a method with a path", "methods: {a/b: c.yaml}", "a/b: a method's name has letters, digits and . _ + - alone"),
    (
        "a space by number",
        f"methods: {{a: {{config: {CONFIGS}/digits/adam.yaml, space: 3}}}}",
        "a: space: 3: there is",
    ),
    ("a judge of nobody", f"judge: val/x\nmethods: {{{ADAM}}}}}", "--metric val/x: is not logged after an epoch; take"),
    ("a judge that tests", f"judge: test/loss\nmethods: {{{ADAM}}}}}", "judge: must be train/loss or a metric of held"),
    ("a reference of nobody", f"reference: b\nmethods: {{{ADAM}}}}}", "study.yaml: reference: b is none of the method"),
    ("max_epoch", f"workload: {{trainer.max_epoch: 3}}\nmethods: {{{ADAM}}}}}", "near names are trainer.max_epochs"),
    ("a title misspelt", f"titel: x\nmethods: {{{ADAM}}}}}", "study.yaml: titel: is none of budget, judge, methods, n"),
    ("nothing", "", "STUDY study.yaml: must hold a mapping; see docs/studies.md"),
    ("no YAML", "a: [", "STUDY study.yaml: is no YAML: "),
]
SPACE = [
    ("nothing searched", "", "--space space.yaml: holds no settings, such as model.lambda_a"),
    (
        "nested",
        "model: {lambda_a: {uniform: [1, 9]}}",
        "space: model: must have exactly one of uniform, loguniform, integers, choice; write model.lambda_a on a line",
    ),
    ("a configuration", "model: {class_path: LocoPropModule}", "--space space.yaml: is a configuration; name the set"),
    ("a kind of nobody", "model.lambda_a: {normal: [0, 1]}", "space: model.lambda_a: must have exactly one of uniform"),
    ("below 0", "model.lambda_a: {uniform: [-1, 1]}", "space: model.lambda_a=-1.0: lambda_a=-1.0: must be above 0"),
    ("infinite", "model.lambda_a: {uniform: [1, .inf]}", "space: model.lambda_a: uniform must be two numbers, the low"),
    ("too large", "model.lambda_a: {loguniform: [1, 1.0e+300]}", "lambda_a=1e+300: must be from 1e-18 to 1e18"),
    ("misspelt", "model.lamda_a: {uniform: [1, 2]}", "near names are model.lambda_a"),
    ("seeds", "seed_everything: {integers: [0, 3]}", "space: seed_everything: is the same for all trials; take --seed"),
    ("when of no choice", "model.oracle: {choice: [GradientOracle, RMSOracle]}\nmodel.oracle.beta: {uniform: [0, 1], "
     "when: {model.oracle: RMS}}", "asks for model.oracle=RMS, which is none of its choices GradientOracle, RMSOracle"),
    ("when of no number", "model.lambda_a: {uniform: [1, 2]}\nmodel.lambda_r: {uniform: [0, 1], when: "
     "{model.lambda_a: 3}}", "model.lambda_r: when asks for model.lambda_a=3, which is none of its values."),
    ("step as text", "model.solver.refresh_every: {integers: [1, 4], step: x}", "integers must be whole numbers, and"),
]  # fmt: skip


# id, what is in the folder of a sweep, what the sentence must contain
LEFT = [
    ("options as a list", {"options.json": "[1]"}, "options.json: holds no options; put back a copy of it, or"),
    ("options cut", {"options.json": '{"na'}, "runs/tune/x/options.json: is damaged (Unterminated string"),
    (
        "a state cut",
        {"options.json": '{"name": "x"}', "experiment_state-1.json": ""},
        "experiment_state-1.json: is dam",
    ),
    ("a sweep renamed", {"options.json": '{"name": "y"}'}, "--name x: the sweep in "),
    (
        "its former name",
        {"options.json": '{"name": "y"}'},
        " began as y, and would go on there; give its folder that n",
    ),
]
ONE = '{"method": "a", "mark": "m", "trial": 0, "status": "done", "value": 1.0}'
# id, file of a study's results, what it holds, what the sentence must contain
STORED = [
    ("a trial cut", "trials.jsonl", f"{ONE}\n{ONE[:9]}", "trials.jsonl: line 2: is damaged (Expecting "),
    ("a trial of bytes", "trials.jsonl", "\ufffd", "line 1: is damaged (Expecting value"),
    ("a trial's status", "trials.jsonl", ONE.replace('"done"', "3"), "line 1: status=3: is not what a run has writte"),
    ("a trial's loss", "trials.jsonl", ONE.replace("1.0", '"x"'), "line 1: value='x': is not what a run has writte"),
    ("a trial of nobody", "trials.jsonl", "{}", "line 1: is of no whole run, and lacks mark, method, status, trial, v"),
]


@pytest.mark.parametrize(("files", "said"), [row[1:] for row in LEFT], ids=[row[0] for row in LEFT])
def test_a_sweep_that_was_damaged_does_not_go_on(capsys, files, said):
    folder = Path("runs/tune/x")
    folder.mkdir(parents=True)
    for name, text in ({"tuner.pkl": ""} | files).items():
        (folder / name).write_text(text)
    assert said in sentence_of(main, ["--name", "x", "--resume"], capsys)


@pytest.mark.parametrize(("name", "text", "said"), [row[1:] for row in STORED], ids=[row[0] for row in STORED])
def test_results_that_were_damaged_are_named(capsys, name, text, said):
    Path("results").mkdir()
    Path("results", name).write_text(text)
    Path("study.yaml").write_text(f"methods: {{{ADAM}}}}}")
    assert said in sentence_of(main, ["study", "study.yaml", "--out", "results", "--report"], capsys)


@pytest.mark.parametrize(("options", "said"), [row[1:] for row in SWEEPS], ids=[row[0] for row in SWEEPS])
def test_a_wrong_sweep_is_refused(capsys, options, said):
    assert said in sentence_of(main, ["--quiet", *_words(f"{SWEEP} {options}")], capsys)


@pytest.mark.parametrize(("text", "said"), [row[1:] for row in STUDIES], ids=[row[0] for row in STUDIES])
def test_a_wrong_study_is_refused(capsys, text, said):
    Path("study.yaml").write_text(text)
    assert said in sentence_of(main, ["study", "study.yaml", "--out", "a/b", "--plan"], capsys)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("study study.yaml --out a --report", "--report: "),
        ("study study.yaml --out a --report", "holds nothing of this study yet; run it without --report first, or n"),
        ("study study.yaml --samples 8", "--samples 8; trials and seeds of a study stand in its file, under budget;"),
        ("study study.yaml --scheduler=asha", "--scheduler=asha; trials and seeds of a study stand in its file"),
        ("study --only a study.yaml", "--only took study.yaml as one of its own; put STUDY first, such as "
         "locoprop-tune study study.yaml --only a."),
        (f"study study.yaml --add {CONFIGS}/digits/foof.yaml --plan", "digits/foof.yaml: is a configuration; write a "
         "file with a line NAME: {config: "),
        ("study study.yaml --add more.yaml --plan", "--add more.yaml: methods: each method stands at the left margin"),
    ],
)  # fmt: skip
def test_a_study_that_is_asked_for_something_else_says_what(capsys, command, said):
    Path("study.yaml").write_text(f"methods: {{{ADAM}}}}}")
    Path("more.yaml").write_text(f"methods: {{{ADAM}}}}}")
    assert said in sentence_of(main, command.split(), capsys)


@pytest.mark.parametrize(("text", "said"), [row[1:] for row in SPACE], ids=[row[0] for row in SPACE])
def test_a_wrong_space_is_refused(capsys, text, said):
    Path("space.yaml").write_text(text)
    assert said in sentence_of(main, _words(OF_SPACE), capsys)


def _words(text):
    return text.replace("CONFIGS", str(CONFIGS)).split()
