"""Wrong settings of the command: each ends with one sentence that names setting, value and way out."""

import pytest

from locoprop_lightning.cli import main
from locoprop_lightning.distributed.loopback import meeting_place
from tests.bad_input.support import CONFIGS, arguments, sentence_of

pytestmark = pytest.mark.usefixtures("folder")

ADAM = "fit --config CONFIGS/digits/adam.yaml --trainer.accelerator=cpu --trainer.max_steps=1"
FOOF = "--config CONFIGS/digits/foof.yaml --trainer.accelerator=cpu"
LINEAR = (
    "fit --model BackpropModule --model.network torch.nn.Linear --model.network.in_features 65 --model.optimizer Adam "
    "--model.network.out_features 10 --model.task Classification --data Digits --trainer.accelerator cpu"
)
PIXELS = "fit --config CONFIGS/fashion_mnist/foof.yaml --trainer.accelerator=cpu"

# id, command or settings of a fit on the digits, what the sentence must contain
NUMBERS = [
    ("lambda_a that float holds not", "--model.lambda_a 1e400", "lambda_a=inf: must be a finite number"),
    ("lambda_a infinite", "--model.lambda_a .inf", "lambda_a=inf: must be a finite number"),
    ("lambda_a of no float32 square", "--model.lambda_a 1e30", "lambda_a=1e+30: must be from 1e-18 to 1e18"),
    ("lambda_a 0", "--model.lambda_a 0", "lambda_a=0.0: must be above 0"),
    ("lambda_r vanishing", "--model.lambda_r 1e-300", "lambda_r=1e-300: must be from 1e-18 to 1e18"),
    ("lambda_r minus infinity", "--model.lambda_r=-.inf", "lambda_r=-inf: must be a finite number"),
    ("lambda_a with a comma", "--model.lambda_a 0,5", "--model.lambda_a: must be float, not 0,5; write 0.5"),
    ("lambda_r a word", "--model.lambda_r much", "model.lambda_r: must be float, not much"),
    ("average 1", "--model.solver.average 1", "ClosedForm(average=1.0): must be in [0, 1)"),
    ("average nan", "--model.solver.average .nan", "ClosedForm(average=nan): must be a finite number"),
    ("refresh_every 0", "--model.solver.refresh_every 0", "ClosedForm(refresh_every=0): must be at least 1"),
    ("power", "--model.oracle WhitenedOracle --model.oracle.power .7", "WhitenedOracle(power=0.7): take 1 or 0.5"),
    ("damping", "--model.oracle WhitenedOracle --model.oracle.damping .inf", "WhitenedOracle(damping=inf): must be a"),
    ("rate negative", "--model.optimizer Adam --model.optimizer.lr=-1", "optimizer: Invalid learning rate: -1.0"),
    ("rate infinite", "--model.optimizer Adam --model.optimizer.lr .inf", "optimizer=Adam: lr=inf: must be a finite"),
    ("no units", "--model.network.hidden_features 0", "MLP(hidden_features=0): must be at least 1"),
    ("layers below 0", "--model.network.hidden_layers=-1", "MLP(hidden_layers=-1): must be at least 0"),
    ("minutes infinite", "--checkpoints.minutes .inf", "checkpoints(minutes=inf): must be a finite number"),
    ("every 0 steps", "--checkpoints.every_n_steps 0", "checkpoints(every_n_steps=0): must be at least 1"),
    ("local losses", "--local_losses.every_n_steps=-1", "LocalLossMonitor(every_n_steps=-1): must be at least 0"),
    ("threads 0", "--threads 0", "threads=0: must be at least 1"),
    ("threads by thousands", "--threads 10000", "threads=10000: must be at most"),
    ("threads a word", "--threads many", "threads: must be int, not many"),
    (
        "seed too large",
        "--seed_everything 99999999999999",
        "seed_everything=99999999999999: must be at most 4294967295",
    ),
    ("memory", "--model.network.hidden_features 9999999999", "the memory is full; take a smaller"),
]
LAYERS = [
    (
        "overrides infinite",
        """--model.overrides '{"1": {"lambda_r": .inf}}'""",
        "overrides['1'].lambda_r=inf: must be a",
    ),
    ("overrides nan", """--model.overrides '{"1": {"lambda_r": .nan}}'""", "overrides['1'].lambda_r=nan: must be a"),
    ("overrides misspelt", """--model.overrides '{"1": {"lamda_r": 3}}'""", "has no setting 'lamda_r': take lambda_a"),
    (
        "overrides of no layer",
        """--model.overrides '{"x": {"lambda_r": 3}}'""",
        "'x' matches no layer; the layers are 1",
    ),
    (
        "overrides of a layer that is skipped",
        '--model.skip \'["1"]\' --model.overrides \'{"1": {"lambda_r": 3}}\'',
        "overrides: '1' matches no layer that is local (1: skipped); the layers are 3, 5",
    ),
    (
        "overrides a word",
        """--model.overrides '{"1": {"lambda_r": "x"}}'""",
        "model.overrides: must be lambdas and unit_gr",
    ),
    ("overrides a list", "--model.overrides '[1]'", "model.overrides: must be lambdas and unit_groups by pattern"),
    (
        "unit_groups broken",
        """--model.overrides '{"1": {"unit_groups": 1.5}}'""",
        "unit_groups=1.5: must be a whole num",
    ),
    ("unit_groups below 0", """--model.overrides '{"1": {"unit_groups": -2}}'""", "unit_groups=-2.0: must be above 0"),
    (
        "unit_groups of 64",
        """--model.overrides '{"1": {"unit_groups": 7}}'""",
        "layer '1' has 64 units, which are not so",
    ),
    ("skip nothing", "--model.skip '[\"\"]'", "skip: '' matches no layer; the layers are 1, 3, 5"),
    (
        "skip all",
        "--model.skip '[\"*\"]'",
        "no layer to train locally (1: skipped; 3: skipped; 5: skipped); use Backprop",
    ),
    (
        "skip and include",
        """--model.skip '["1"]' --model.include '["1"]'""",
        "skip and include both name '1': take it out",
    ),
    (
        "include a mapping",
        "--model.include '{\"a\": 1}'",
        "model.include: must be a list of patterns of layers, such as",
    ),
    ("shared_rows", "--model.shared_rows mean", "model.shared_rows: must be one of 'expand', 'reduce', not mean"),
    (
        "transfers unknown",
        """--model.transfers '{"1": "tanhh"}'""",
        "transfers['1']: There is no transfer 'tanhh'; take",
    ),
    (
        "transfers of no layer",
        """--model.objective matching --model.solver Majorization --model.transfers '{"9": "tanh"}'""",
        "transfers: '9' is not a local layer; they are 1",
    ),
    (
        "transfers under the squared loss",
        """--model.transfers '{"1": "relu"}'""",
        "--model.transfers={'1': 'relu'}: objective='squared' matches each layer through the identity, and solver=Clo",
    ),
    (
        "solver of the squared loss",
        "--model.objective matching",
        "ClosedForm solves the squared loss only: set objective",
    ),
    ("task of pixels", "--model.task Reconstruction", "has [297, 10] outputs for [297, 64] pixels; make them agree"),
    ("task of text", "--model.task LanguageModelling", "output [297, 10] must be [n, length, vocabulary]; take"),
    (
        "width of a class of torch",
        LINEAR,
        "network=Linear: cannot take inputs [128, 1, 8, 8] of float32 (mat1 and mat2",
    ),
    ("SparseAdam", "--model.optimizer SparseAdam", "optimizer=SparseAdam takes no dense gradients; take Adam"),
    ("Muon of biases", "--model.optimizer torch.optim.Muon", "only supports 2D parameters whereas we found"),
    (
        "schedule of a metric",
        "--model.lr_scheduler torch.optim.lr_scheduler.ReduceLROnPlateau",
        "needs a metric; take a",
    ),
    (
        "schedule without its setting",
        "--model.lr_scheduler StepLR",
        "are required: step_size (of StepLR); give --model.lr_scheduler.step_size",
    ),
    (
        "schedule too short",
        "--model.lr_scheduler OneCycleLR --model.lr_scheduler.max_lr 1 --model.lr_scheduler.total_steps 5 "
        "--trainer.max_steps 9 --trainer.max_epochs 9",
        "--model.lr_scheduler.total_steps=5: the fit has 9 steps; give at least that, or a shorter fit",
    ),
    (
        "schedule without length",
        "--model.lr_scheduler OneCycleLR --model.lr_scheduler.max_lr 1",
        "lr_scheduler: You must",
    ),
]
TRAINER = [
    ("max_epoch", "--trainer.max_epoch 3", "unrecognized arguments: --trainer.max_epoch 3; near names are trainer.max"),
    ("no name", "fit digits/adam", "arguments: digits/adam; settings have a name, such as --config digits/adam"),
    ("no epochs", "--trainer.max_epochs 0", "trainer.max_epochs=0: trains nothing; give a number above 0"),
    ("no steps", "--trainer.max_steps 0", "trainer.max_steps=0: trains nothing"),
    ("steps below -1", "--trainer.max_steps=-5", "trainer.max_steps=-5: `max_steps` must be a non-negative integer or"),
    ("time", "--trainer.max_time soon", "trainer.max_time=soon: `Timer(duration='soon')` is not a valid duration"),
    ("no batches", "--trainer.limit_train_batches 0 --trainer.limit_val_batches 0", "limit_train_batches=0); give dat"),
    ("batches below 0", "--trainer.limit_train_batches=-1", "trainer.limit_train_batches=-1: You have passed invalid"),
    ("validation in an epoch", "--trainer.val_check_interval 1000 --trainer.limit_val_batches 1.0", "(1000) must be l"),
    ("validation every 0 epochs", "--trainer.check_val_every_n_epoch 0", "check_val_every_n_epoch=0: must be at least"),
    ("logging below 0", "--trainer.log_every_n_steps=-1", "trainer.log_every_n_steps=-1: must be at least 0"),
    ("sanity", "--trainer.num_sanity_val_steps=-7", "trainer.num_sanity_val_steps=-7: must be at least -1"),
    ("clipping", "--trainer.gradient_clip_val 1", "trainer.gradient_clip_val=1: there are displacements"),
    ("accumulation", "--trainer.accumulate_grad_batches 2", "trainer.accumulate_grad_batches=2: would add up"),
    ("checkpoints of none", "--trainer.enable_checkpointing false --checkpoints.every_n_steps 5", "--checkpoints.every_"
     "n_steps=5: trainer.enable_checkpointing=False writes none; leave out one of the two"),
    ("the best of none", "--trainer.enable_checkpointing=false --best.monitor=val/loss", "--best.monitor=val/loss: "),
    ("no test", f"test {FOOF} --trainer.limit_test_batches 0", "--trainer.limit_test_batches=0: leaves test no batc"),
    ("no validation", f"validate {FOOF} --trainer.limit_val_batches 0.0", "limit_val_batches=0: leaves validate no "),
    ("no prediction", f"predict {FOOF} --trainer.limit_predict_batches 0", "limit_predict_batches=0: leaves predict"),
    ("profiler", "--trainer.profiler x", "`profiler` parameter of `Trainer`, it can only be one of ['simple'"),
    ("stopping early by nothing", "--trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor=acc",
     "EarlyStopping(monitor='acc'): is not logged; take one of train/loss, train/accuracy, lr, time/step_ms, val/loss"),
    ("best by nothing", "--trainer.callbacks+=ModelCheckpoint --trainer.callbacks.monitor=acc",
     "ModelCheckpoint(monitor='acc'): is not logged; take one of"),
    ("no such callback", "--trainer.callbacks+=Nonsense", "there is no class Nonsense; take BackboneFinetuning, "),
    ("a callback misspelt", "--trainer.callbacks EarlyStoping", "such as EarlyStopping, not EarlyStoping"),
    ("a callback of ours misspelt", "--trainer.callbacks LocalSchedul", "such as LocalSchedule, not LocalSchedul"),
    ("a schedule misspelt", "--trainer.callbacks LocalSchedule --trainer.callbacks.lamda_a '{0: 1, 500: 0.1}'",
     "--trainer.callbacks: a setting below it is misspelt, or takes no mapping by numbers"),
    ("a callback of nothing", "--trainer.callbacks EarlyStopping",
     "the following arguments are required: monitor (of EarlyStopping); give --trainer.callbacks.monitor"),
    ("a callback's setting", "--trainer.callbacks LocalSchedule --trainer.callbacks.lambda_a 3",
     "trainer.callbacks.lambda_a: must be dict, not 3"),
    ("a callback of nowhere", "--trainer.callbacks nowhere.Mine", "trainer.callbacks: No module named 'nowhere'"),
    ("a callback's settings that cross", "--trainer.callbacks ModelCheckpoint --trainer.callbacks.every_n_epochs 1 "
     "--trainer.callbacks.every_n_train_steps 10",
     "error: --trainer.callbacks: lightning.pytorch.callbacks.model_checkpoint.ModelCheckpoint: Combination of par"),
    ("logger not installed", "--trainer.logger WandbLogger", "WandbLogger: Requirement 'wandb"),
]  # fmt: skip
DEVICES = [
    ("GPU", "--trainer.accelerator gpu", "trainer.accelerator=gpu: "),
    (
        "no such device",
        "--trainer.accelerator quantum",
        "trainer.accelerator=quantum: You selected an invalid accelerator",
    ),
    ("MPS", "--trainer.accelerator mps", "trainer.accelerator=mps: "),
    ("TPU", "--trainer.accelerator tpu", "trainer: Requirement 'torch_xla"),
    ("devices by thousands", "--trainer.devices 100000", "trainer.devices=100000: this machine has processors for"),
    ("no devices", "--trainer.devices 0", "accelerator; take 1 or more, or auto"),
    (
        "devices below 0",
        "--trainer.devices=-3",
        "trainer.devices=-3: `devices` selected with `CPUAccelerator` should be",
    ),
    (
        "devices a word",
        "--trainer.devices two",
        "trainer.devices=two: `devices` selected with `CPUAccelerator` should be",
    ),
    ("processors by index", "--trainer.devices '[0,1]'", "trainer.devices=[0, 1]: `devices` selected with"),
    (
        "a device for two",
        "--trainer.devices 2 --trainer.strategy single_device",
        "--trainer.strategy=single_device: takes one device, not 2; take ddp, or trainer.devices=1",
    ),
    (
        "nodes that do not meet",
        "--trainer.num_nodes 2",
        "--trainer.num_nodes=2: nobody has said where the nodes meet; set"
        " MASTER_ADDR, MASTER_PORT and NODE_RANK on each, or leave it out for one machine",
    ),
    ("no nodes", "--trainer.num_nodes 0", "trainer.num_nodes=0: `num_nodes` must be a positive integer"),
    ("fsdp on a processor", "--trainer.strategy fsdp", "trainer.strategy=fsdp: The strategy `fsdp` requires a GPU"),
    ("no such strategy", "--trainer.strategy x", "trainer.strategy=x: You selected an invalid strategy name"),
    ("16-mixed on a processor", "--trainer.precision 16-mixed", "trainer.precision=16-mixed: a processor has no such"),
    ("16 bits on a processor", f"{ADAM} --trainer.precision 16", "trainer.precision=16: a processor has no such"),
    (
        "16-true on a processor",
        "--trainer.precision 16-true",
        "'16-true': in float16 the gradients of a mean over a batch are too small",
    ),
    ("16-true, baseline", f"{ADAM} --trainer.precision 16-true", "'16-true': float16 overflows on a processor"),
    ("no such precision", "--trainer.precision 17", "trainer.precision: must be one of 64, 32, 16"),
]
COMMANDS = [
    ("a path with a zero", "--trainer.logger.name 'a\0b'", "a path of the settings holds a zero byte; name another"),
    ("a model by number", "--model 3", "model: there is no class 3"),
    ("a command's other class", "--model.network os.system", "model.network: Import path os.system does not correspon"),
    ("nothing", "", "no command: take one of fit, validate, test, predict, such as locoprop fit --config FILE"),
    ("a command misspelt", "fti", "invalid choice: 'fti' (choose from 'fit', 'validate', 'test', 'predict'); such as"),
    ("another program", "compare runs", "; locoprop-compare is a command of its own"),
    ("another program's command", "study digits", "; locoprop-tune is a command of its own"),
    ("no such command", "train", "invalid choice: 'train' (choose from 'fit', 'validate', 'test', 'predict'); such as"),
    ("settings before the command", " --config CONFIGS/digits/foof.yaml fit", "put --config after the command"),
    ("fit alone", "fit", "are required: fit.data, fit.model; give them in a file by --config"),
    ("no data", "fit --model LocoPropModule", "are required: network, task, solver, lambda_a, lambda_r"),
    ("no such class", "--data Nonsense", "data: there is no class Nonsense; take Datasets, Digits, FashionMNIST, Idx"),
    ("a class of another kind", "--data torch.nn.Linear", "does not correspond to a subclass of LightningDataModule;"),
    ("a list of solvers", "--model.solver '[ClosedForm]'", "model.solver: must be a class with its init_args, not ["),
    ("a setting before its class", "fit --model.solvr X --config CONFIGS/digits/foof.yaml",
     "model: its class is not chosen yet; put --config FILE or --model CLASS before --model.solvr"),
    ("a setting misspelt", "--model.lamda_a 3", "has no setting 'lamda_a'; it has network"),
    ("another case", "--model.lambda_A 3", "; near names are lambda_a, lambda_r"),
    ("its near names", "--model.lamda_a 3", "; near names are lambda_a, lambda_r"),
    ("a solver's", "--model.solver.refresh_evry 3", "; near names are refresh_every"),
    ("no network", "--model.network null", "model: the following arguments are required: network"),
    ("validation too large", "--data.validation 1500", "validation=1500): must be a whole number, at least 0 and less"),
    ("validation below 0", f"{PIXELS} --data.validation=-1", "validation=-1): must be a whole number, at least 0"),
    ("part of an image", "--data.batch_size 1.5", "data.batch_size: must be int, not 1.5"),
    ("unsafe checkpoint", "--weights_only false", "weights_only=False: would run whatever code a checkpoint holds; le"),
    ("a part of the images", "--data.validation 0.1", "validation: must be int, a number of samples that are held out"),
    ("best of nothing", "validate --config CONFIGS/digits/foof.yaml --trainer.accelerator=cpu --ckpt_path best",
     "ckpt_path=best: there is no runs/digits/foof/*/checkpoints/best.ckpt, which a fit with validation writes; take"),
    ("best", "--ckpt_path best", "ckpt_path=best: holds weights alone; name a file, or take last"),
    ("monitor", "--best.monitor val/f1", "best.monitor=val/f1: validation does not log it; take one of val/accuracy, "
    "val/loss, or auto"),
    ("best without validation", "--trainer.limit_val_batches 0 --best.monitor val/accuracy",
     "--best.monitor=val/accuracy: there is no validation; leave it out, or validate"),
    ("last of nothing", "--ckpt_path last", "there is no whole checkpoint at runs/digits/foof/*/checkpoints/*.ckpt; l"),
    ("no text there", "fit --config CONFIGS/transformer/adam.yaml --data.root none --trainer.accelerator=cpu",
     "TextFiles(root='none', pattern='*.py'): no file there matches; name a folder"),
    ("no pattern", "fit --config CONFIGS/transformer/adam.yaml --data.pattern= --trainer.accelerator=cpu",
     "TextFiles(root=None, pattern=''): takes a pattern of names within root"),
    ("text too short", "fit --config CONFIGS/transformer/adam.yaml --data.limit 9 --trainer.accelerator=cpu",
     "9 characters are too few; at least"),
]  # fmt: skip
ROWS = [*NUMBERS, *LAYERS, *TRAINER, *DEVICES, *COMMANDS]


@pytest.mark.parametrize(("command", "said"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_a_wrong_command_ends_with_one_sentence(command, said, capsys):
    assert said in sentence_of(main, command, capsys)


def test_a_list_of_few_settings_has_no_near_names_beside_it(capsys):
    said = sentence_of(main, "--model.oracle RMSOracle --model.oracle.power 1", capsys)
    assert said.endswith("RMSOracle has no setting 'power'; it has beta, eps, per")


IN_VAIN = [
    (
        "without a logger",
        "--trainer.logger false --local_losses.histograms true",
        "local_losses.histograms=true: trainer.",
    ),
    (
        "of a baseline",
        f"{ADAM} --local_losses.every_n_steps=10",
        "local_losses.every_n_steps=10: BackpropModule has no l",
    ),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("command", "said"), [row[1:] for row in IN_VAIN], ids=[row[0] for row in IN_VAIN])
def test_local_losses_that_nobody_sees_are_told_and_the_fit_goes_on(command, said, capsys):
    main(arguments(f"{command} --trainer.enable_progress_bar=false"))
    assert f"locoprop fit: --{said}" in capsys.readouterr().err


def test_nodes_that_know_where_they_meet_are_let_go(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "host")
    monkeypatch.setenv("MASTER_PORT", "29500")
    assert meeting_place({"num_nodes": 2}) == {}


def test_checkpoints_that_a_file_asks_for_may_be_switched_off(folder, capsys):
    (folder / "a.yaml").write_text((CONFIGS / "digits" / "adam.yaml").read_text() + "checkpoints: {every_n_steps: 5}\n")
    main(["fit", "--config", "a.yaml", *ADAM.split()[3:], "--trainer.enable_checkpointing=false"])
    assert not list(folder.rglob("*.ckpt"))
