"""Wrong files, folders that cannot be written, full disks, ports and runs in each other's way."""

import errno
import os
import pickle
import signal
import socket
import struct
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from tensorboard.compat.tensorflow_stub.io import gfile
from torchvision.datasets import ImageFolder

from locoprop_lightning import load_run
from locoprop_lightning.cli import main
from locoprop_lightning.data import FashionMNIST
from locoprop_lightning.data.fashion_mnist import FILES
from locoprop_lightning.errors import UserError
from locoprop_lightning.refusal import missing
from locoprop_lightning.results.compare import main as compare
from locoprop_lightning.run_folder import RunFolder
from tests.bad_input.support import arguments, sentence_of

pytestmark = pytest.mark.usefixtures("folder")

PIXELS = "fit --config CONFIGS/fashion_mnist/foof.yaml --trainer.accelerator=cpu --trainer.limit_train_batches=1"
TEXT = "fit --config CONFIGS/transformer/adam.yaml --trainer.accelerator=cpu --data.root=text"
BYTES = bytes(range(256))
# What becomes of a folder in /proc: who may write there is told by the system.
ROOT_ALONE = "/proc is no folder that can be written to"
NOWHERE = "/proc/x: No such file or directory" if os.access("/proc", os.W_OK) else ROOT_ALONE
OF_RUN = {"global_step": 3, "epoch": 0, "pytorch-lightning_version": "2.6", "optimizer_states": [], "lr_schedulers": []}
OF_ADAM = (
    "model: {class_path: locoprop_lightning.BackpropModule, init_args: {optimizer: {class_path: torch.optim.Adam}}}"
)
OWN = """
from pathlib import Path
from lightning.pytorch import Callback, LightningDataModule
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from locoprop_lightning.oracles import Oracle
from locoprop_lightning.solvers import ClosedForm, IterativeSolver
from locoprop_lightning.tasks import Classification
from torch import nn
from torch.utils.data import Dataset

class Boom(nn.Module):
    def __init__(self):
        raise RuntimeError("boom")

class Early(nn.Module):
    def __init__(self):
        self.layer = nn.Linear(2, 2)

class Wide(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layer = nn.Linear(width, 2)

class Still(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)

class Folder(Dataset):
    def __init__(self, root, file=""):
        Path(root, file).stat()

class Hidden(Classification):
    def __init__(self):
        self.count = 10

class Kept(ClosedForm):
    def __init__(self):
        pass

class Data(LightningDataModule):
    def __init__(self):
        pass

    def train_dataloader(self):
        return [1]

class Unmade(Optimizer):
    def __init__(self, parameters):
        pass

class Endless(LRScheduler):
    pass

class Steps(IterativeSolver):
    def __init__(self, iterations: int = 10):
        super().__init__(iterations)

    def steps(self, problem, v, gradient, k, carry):
        return v

class First(Oracle):
    def direction(self, gradient, terms, state):
        return gradient[:1]

class Short(Callback):
    def on_train_start(self, trainer):
        pass

def function(x):
    return x
"""


def write(name, content):
    Path(name).parent.mkdir(exist_ok=True, parents=True)
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())


def save(content):
    torch.save(content, "a.ckpt")


def whole():
    """The bytes of a file that torch has saved."""
    save({"state_dict": {}})
    return Path("a.ckpt").read_bytes()


def own_images(count):
    """Files as those of Fashion-MNIST, of so many images."""
    for file in FILES:
        shape = (count, *file.shape[1:])
        header = struct.pack(f">4B{len(shape)}I", 0, 0, 8, len(shape), *shape)
        write(f"own/{file.name}", header + bytes(int(np.prod(shape))))


CONFIG = "fit --config a.yaml"
CHECKPOINT = "--ckpt_path a.ckpt"
# id, what makes the file, command, what the sentence must contain
ROWS = [
    ("settings of bytes", lambda: write("a.yaml", BYTES), CONFIG, "config=a.yaml: is no YAML: 'utf-8' codec"),
    ("settings in Latin-1", lambda: write("a.yaml", "a: ü".encode("latin1")), CONFIG, "config=a.yaml: is no YAML: 'ut"),
    ("settings with a zero", lambda: write("a.yaml", "a: \0"), CONFIG, "is no YAML: unacceptable character #x0000"),
    ("settings as a list", lambda: write("a.yaml", "- 1"), CONFIG, "config=a.yaml: holds no settings; see configs/"),
    ("settings as a number", lambda: write("a.yaml", "3"), CONFIG, "config=a.yaml: holds no settings; see configs/"),
    ("settings twice", lambda: write("a.yaml", "a: 1\na: 2"), CONFIG, "config=a.yaml: a: stands there twice; keep one"),
    ("settings unknown", lambda: write("a.yaml", "modell: 3"), CONFIG, "does not accept option 'modell'; near names a"),
    ("settings in a folder", lambda: write("a.yaml/b", ""), CONFIG, "config=a.yaml: is a folder; name a file in it"),
    ("settings without init_args", lambda: write("a.yaml", "model: {class_path: LocoPropModule, solver: {class_path: "
     "ClosedForm}}"), CONFIG, "model: solver stands beside class_path; put settings of the class below init_args"),
    ("settings beside init_args", lambda: write("a.yaml", "model: {class_path: LocoPropModule, init_args: {solver: "
     "{class_path: ClosedForm, init_arg: {average: 0.5}}}}"), CONFIG, "config=a.yaml: model: solver: init_arg stands "
     "beside class_path; put settings of the class below init_args; near names are init_args"),
    ("a network without forward", lambda: write("own_f.py", OWN), "--model.network own_f.Still",
     "network=Still: has no forward; give it a forward(x)"),
    ("a checkpoint of settings", lambda: save({"state_dict": {}}), "fit --config a.ckpt",
     "--config=a.ckpt: is a checkpoint; give it by --ckpt_path, and its run's config.yaml by --config"),
    ("a checkpoint cut short", lambda: write("a.ckpt", whole()[:500]), CHECKPOINT,
     "--ckpt_path=a.ckpt: is damaged or cut short; copy it again, or name one that a fit has written"),
    ("a checkpoint cut short beside one", lambda: (write("b.ckpt", whole()[:500]), save({"state_dict": {}} | OF_RUN)),
     "--ckpt_path b.ckpt", "is damaged or cut short; the last whole one beside it is a.ckpt"),
    ("no folder of images", lambda: write("own.py", OWN), "--data Datasets --data.train own.Folder "
     "--data.train.root pictres", "--data.train.root=pictres: there is no pictres; name a file or folder that is"),
    ("no file in a folder", lambda: write("own.py", OWN), "--data Datasets --data.train own.Folder "
     "--data.train.root pictres --data.train.file a/b", "root=pictres: there is no pictres/a/b; name a file or"),
    ("a folder of checkpoints", lambda: write("a.ckpt/b", ""), CHECKPOINT, "ckpt_path=a.ckpt: is a folder; name a .ck"),
    ("no settings", lambda: None, CONFIG, "config=a.yaml: there is no such file, and none is shipped; locoprop"),
    ("two files of settings", lambda: write("a.yaml", "a: 1"), "--config a.yaml", "config=a.yaml: is a second file be"),
    ("empty checkpoint", lambda: write("a.ckpt", ""), CHECKPOINT, "torch has saved; name one that a fit has written"),
    ("pickled checkpoint", lambda: write("a.ckpt", pickle.dumps({})), CHECKPOINT, "is not a checkpoint that torch has"),
    ("checkpoint of a list", lambda: save([1, 2]), CHECKPOINT, "ckpt_path=a.ckpt: is no checkpoint of a run: it has n"),
    ("weights of Python", lambda: save({"w": torch.ones(2)}), CHECKPOINT, "is no checkpoint of a run: it has no state"),
    ("a whole module", lambda: save(torch.nn.Linear(2, 2)), CHECKPOINT, "holds what torch does not read safely, such"),
    ("weights of nonsense", lambda: save({"state_dict": 3} | OF_RUN), CHECKPOINT, "of a run: it has no state_dict of"),
    ("no steps", lambda: save({"state_dict": {}} | OF_RUN | {"global_step": "x"}), CHECKPOINT, "has no global_step of"),
    ("of another trainer", lambda: save({"state_dict": {}, "global_step": 1}), CHECKPOINT, "no pytorch-lightning_vers"),
    ("of another network", lambda: save({"state_dict": {"network.1.weight": torch.ones(2)}} | OF_RUN), CHECKPOINT,
     "network=MLP: the checkpoint is of another network: "),
    ("of another method", lambda: save({"state_dict": {}, "configuration": OF_ADAM} | OF_RUN), "test --config "
     "CONFIGS/digits/foof.yaml --trainer.accelerator cpu --ckpt_path a.ckpt", "--ckpt_path=a.ckpt: is of BackpropModule"
     ", Adam, and the configuration is of LocoPropModule, SGD, ClosedForm; give the configuration of its run"),
    ("weights to go on from", lambda: save({k: v for k, v in OF_RUN.items() if "s" != k[-1]} | {"state_dict": {}}),
     CHECKPOINT, "holds weights alone, from which no fit can go on"),
    ("a network that fails", lambda: write("own_a.py", OWN), "--model.network own_a.Boom", "boom (RuntimeError, "),
    ("a solver without a step", lambda: write("own.py", OWN), "--model.solver own.Steps --model.objective matching",
     "--model.solver: own.Steps lacks step(); add it (it has steps)"),
    ("a network that imports what is not there", lambda: write("own_g.py", "import nothere_g" + OWN),
     "--model.network own_g.Still", "model.network: No module named 'nothere_g' (looked for in this "
     "folder, too); install it, as own_g.Still imports it"),
    ("an optimizer that imports what is not there", lambda: write("own_h.py", "import nothere_h"),
     "--model.optimizer own_h.Mine", "); install it, as own_h.Mine imports it"),
    ("a network made early", lambda: write("own_b.py", OWN), "--model.network own_b.Early",
     "own_b.Early: cannot assign module before Module.__init__() call (AttributeError, "),
    ("a network of no width", lambda: write("own_c.py", OWN), "--model.network own_c.Wide", "own_c.py line 23)"),
    ("a network's function", lambda: write("own_d.py", OWN), "--model.network own_d.function", "not correspond to a s"),
    *((name, lambda: write("own.py", OWN), f"--{setting} own.{made}", f"own.{made}: its __init__ must call super().__i")
      for name, setting, made in [("a task half made", "model.task", "Hidden"), ("a solver half made", "model.solver",
      "Kept"), ("data half made", "data", "Data"), ("an optimizer half made", "model.optimizer", "Unmade")]),
    ("a schedule without rates", lambda: write("own.py", OWN), "--model.lr_scheduler own.Endless",
     "its class lacks a method that its base class leaves open, such as get_lr; add it"),
    ("a direction of one row", lambda: write("own.py", OWN), "--model.oracle own.First",
     "the oracle's direction is [1, 64], and must be [300, 64]"),
    ("a callback of fewer arguments", lambda: write("own.py", OWN), "--trainer.callbacks own.Short",
     "Short.on_train_start() takes 2 positional arguments but 3 were given"),
    ("a broken module", lambda: write("own_e.py", "def f(:"), "--model.network own_e.A", "invalid syntax (own_e.py, l"),
    ("own images of that number", lambda: own_images(10), PIXELS + " --data.root own",
     "is another data set, or damaged: its dimensions are [10, 28, 28], not [60000, 28, 28]; name another root if it"),
    ("own images", lambda: own_images(60_000), PIXELS + " --data.root own", "damaged: its SHA-256 checksum is"),
    ("text of bytes", lambda: write("text/a.py", BYTES * 100), TEXT, "text/a.py is no text, as it holds zeros; name a"),
    ("text in one file", lambda: write("text", "abc"), TEXT, "TextFiles(root='text', pattern='*.py'): no file there m"),
    ("logs in a file", lambda: write("a", ""), "--trainer.logger.save_dir a", "a/digits/foof cannot be made or writte"),
    ("logs where none can be", lambda: None, "--trainer.logger.save_dir /proc/x", "/proc/x/digits/foof cannot be made"),
    ("logs of a long name", lambda: None, f"--trainer.logger.name {'x' * 300}", "(File name too long); name a folder"),
    ("root in a file", lambda: write("a", ""), "--trainer.logger false --trainer.default_root_dir a",
     "trainer.default_root_dir=a: a/checkpoints cannot be made or written to (Not a directory); name a folder that ca"),
    ("predictions in a folder", lambda: write("a/b", ""), "predict --config CONFIGS/digits/foof.yaml "
     "--trainer.accelerator cpu --predictions.path a", "predictions.path=a: is a folder; name a file in it"),
    ("predictions where none can be", lambda: None, "predict --config CONFIGS/digits/foof.yaml "
     "--trainer.accelerator cpu --predictions.path /proc/x/a", "/proc/x: No such file or directory; name another plac"),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # Lightning's
@pytest.mark.parametrize(("make", "command", "said"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_a_wrong_file_is_named(folder, capsys, monkeypatch, make, command, said):
    monkeypatch.syspath_prepend(folder)
    make()
    assert said in sentence_of(main, command, capsys)


GONE = [
    ("its file", "nowhere_g.Net", "No module named 'nowhere_g', which nowhere_g.Net is in; put its folder on the path"),
    ("its class", "own_i.Net", "module 'own_i' has no attribute 'Net'; put back the file that has it"),
    ("what its file imports", "own_j.Net", "No module named 'nothere_j'; install it"),
]


@pytest.mark.parametrize(("network", "said"), [row[1:] for row in GONE], ids=[row[0] for row in GONE])
def test_a_run_whose_network_is_gone_says_what_is_missing(folder, monkeypatch, network, said):
    monkeypatch.syspath_prepend(folder)
    write("own_i.py", "a = 1")
    write("own_j.py", "import nothere_j")
    save(
        {"state_dict": {}, "configuration": OF_ADAM.replace("{optimizer", f"{{network: {network}, optimizer")} | OF_RUN
    )
    with pytest.raises(UserError) as refused:
        load_run("a.ckpt")
    assert str(refused.value).startswith(f"a.ckpt: its model cannot be made again: {said}")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("root", "made"), [("nowhere", None), ("part", FILES[0].name)])
def test_what_is_read_instead_of_the_named_folder_is_said(fashion_mnist, capsys, root, made):
    if made:
        write(f"{root}/{made}", "")
    other = FashionMNIST(root=root, download=False)
    if other.find() is None:
        pytest.skip("Debian's package is not here")
    other.setup("validate")
    lacking = FILES[1].name if made else FILES[0].name
    assert f"FashionMNIST: root={root} has no {lacking}, so that " in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EACCES])
def test_a_disk_that_takes_nothing_is_named(capsys, monkeypatch, number):
    def refuse(path, *arguments, **settings):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    said = sentence_of(main, "--model.lambda_a 1", capsys)
    assert (
        f"trainer.logger.save_dir=runs: runs/digits/foof cannot be made or written to ({os.strerror(number)})" in said
    )


@pytest.mark.filterwarnings("ignore")
def test_a_disk_that_is_full_when_the_logs_begin_ends_the_run(capsys, monkeypatch):
    def refuse(self, *arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(gfile.LocalFileSystem, "_write", refuse)
    threads = threading.active_count()
    said = sentence_of(main, "--trainer.enable_checkpointing false --trainer.log_every_n_steps 1", capsys)
    assert "runs/digits/foof/version_0: No space left on device; name another place, or make this one free" in said
    assert threading.active_count() <= threads + 1


ENDS = ["--trainer.max_steps 2", "--trainer.max_epochs 1 --trainer.max_steps=-1 --trainer.limit_train_batches 2"]
FULL = "/checkpoints/step={}.ckpt cannot be written (No space left on device); the last whole one is "


def fill(monkeypatch, *at):
    """Has the disk be full for checkpoints at some steps."""
    save = Trainer.save_checkpoint

    def refuse(trainer, path, weights_only=None):
        if trainer.global_step in at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(trainer, path, weights_only)

    monkeypatch.setattr(Trainer, "save_checkpoint", refuse)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("more", ["", "--checkpoints.every_n_steps 1"])
@pytest.mark.parametrize("ends", ENDS)
def test_a_fit_whose_weights_are_on_no_disk_says_so_last_and_ends_with_status_1(capsys, monkeypatch, ends, more):
    fill(monkeypatch, 2)
    with pytest.raises(SystemExit) as stopped:
        main(arguments(f"--trainer.limit_val_batches 0 {ends} {more}"))
    said = capsys.readouterr()
    assert stopped.value.code == 1 and said.err.count("cannot be written") == 1
    assert said.err.splitlines()[-1].startswith("locoprop: error: runs/") and FULL.format(2) in said.err
    assert "Summary" in said.out and "go on" in said.out and "locoprop test" not in said.out


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("ends", ENDS)
def test_a_checkpoint_that_a_later_one_replaces_is_a_warning(capsys, monkeypatch, ends):
    fill(monkeypatch, 1)
    main(arguments(f"--trainer.limit_val_batches 0 {ends} --checkpoints.every_n_steps 1"))
    said = capsys.readouterr()
    assert said.err.count("cannot be written") == 1 and FULL.format(1) in said.err
    assert "locoprop test" in said.out and "checkpoints/step=2.ckpt" in said.out


@pytest.mark.filterwarnings("ignore")
def test_two_runs_do_not_write_into_one_folder(capsys):
    """The second one is refused before it writes, as long as the first one is there."""

    class Second(Callback):
        def on_train_start(self, trainer, pl_module):
            path = Path(trainer.logger.log_dir)
            first = {p.relative_to(path) for p in path.rglob("*")}
            other = RunFolder(trainer)
            with pytest.raises(Exception, match="holds a run already|another run is writing there"):
                other.claim(None)
            with pytest.raises(Exception, match="another run is writing there; wait for it, or name another folder"):
                other._lock(path)
            other.give_up()
            assert {p.relative_to(path) for p in path.rglob("*")} == first
            seen.append(path)

    seen = []
    sys.modules["second"] = type(sys)("second")
    sys.modules["second"].Second = Second
    Second.__module__ = "second"
    command = "--trainer.logger.version 7 --trainer.callbacks+=second.Second"
    try:
        main(arguments(command))
    finally:
        del sys.modules["second"]
        Second.__module__ = __name__  # the list of all classes, which another test asks for, imports their modules
    assert [path.name for path in seen] == ["version_7"]
    assert "holds a run already; go on with it by --ckpt_path last" in sentence_of(
        main, command.split(" --tr")[0], capsys
    )


@pytest.mark.parametrize("classes", [[], ["cat"]])
def test_a_folder_that_a_class_finds_nothing_in_is_named(folder, classes):
    for name in classes:
        (folder / "in" / "any" / name).mkdir(parents=True)
    (folder / "in" / "any").mkdir(parents=True, exist_ok=True)
    with pytest.raises(FileNotFoundError) as found:
        ImageFolder("in/any")
    told = missing(found.value, {"data.what": "any", "data.other": "folder", "data.root": "in/any"})
    assert told is None if classes else told.startswith("data.root=in/any: Couldn't find any class folder in in/any; n")


def test_a_fit_that_is_to_end_before_its_checkpoint_leaves_nothing(capsys):
    main(arguments("--trainer.max_epochs 2 --trainer.max_steps=-1 --trainer.limit_train_batches 1"))
    said = sentence_of(main, "--ckpt_path last --trainer.max_epochs 1", capsys)
    assert said.startswith("locoprop: error: --trainer.max_epochs=1: runs/digits/foof/version_0/checkpoints/step=2.")
    assert "has 2 epochs already; give more, or leave out --ckpt_path" in said
    assert [one.name for one in Path("runs/digits/foof").iterdir()] == ["version_0"]


@pytest.mark.filterwarnings("ignore")
def test_a_port_that_is_taken_is_named(capsys, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", str(taken.getsockname()[1]))
        said = sentence_of(main, "--trainer.strategy ddp --trainer.devices 1", capsys)
    assert "cannot be listened at (Address already in use); leave the variable out, or name a free port" in said


@pytest.mark.filterwarnings("ignore")
def test_a_signal_before_the_first_step_leaves_a_run_that_can_go_on(capsys):
    with pytest.raises(SystemExit) as stopped:
        name = "--trainer.callbacks"
        at = f"{name}+=tests.test_resume.SignalAt {name}.number={int(signal.SIGTERM)} {name}.step=0"
        main(arguments(f"--trainer.max_steps 4 {at}"))
    assert stopped.value.code == 143
    assert "--ckpt_path runs/digits/foof/version_0/checkpoints/step=1.ckpt" in capsys.readouterr().out


COMPARED = [
    ("no such run", "nowhere", "nowhere"),
    ("smoothing of 2", "runs --smooth 2", "smooth=2.0: must be in [0, 1)"),
    ("smoothing nan", "runs --smooth nan", "smooth=nan: must be a finite number"),
    ("no such axis", "runs --x weeks", "argument --x: invalid choice: 'weeks'"),
    ("no such metric", "RUNS --metric acc", "acc"),
    ("a figure where none can be", "RUNS --out /proc/x/a.png", "/proc/x"),
    (
        "a checkpoint",
        "RUNS/digits/foof/version_0/checkpoints/step=1.ckpt",
        "step=1.ckpt: is a file; name the folder of a run, such as RUNS/digits/foof/version_0.",
    ),
    ("no logs", "EMPTY", "No run has logged 'train/loss'; name folders of runs, such as runs/digits"),
    ("a table where none can be", "RUNS --table /proc/x/a.md", f"{NOWHERE}; name another plac"),
    (
        "a figure below a file",
        "RUNS --out file/a.svg",
        "--out file/a.svg: file is no folder that can be written to; nam",
    ),
    ("a table below a file", "RUNS --table file/a/a.md", "--table file/a/a.md: file is no folder that can be written"),
    ("a figure before the runs", "--out a.svg RUNS", "as one of its own; put RUN first, such as locoprop-compare "),
    (
        "a focus of nobody",
        "RUNS --focus adamw --out a.svg",
        "--focus=adamw: there is no such method; take one of foof.",
    ),
    ("a figure of no kind", "RUNS --out a.xyz", "a.xyz"),
    ("a figure in a folder", "nowhere --out FOLDER", "--out folder.png: is a folder; name a file in it"),
    ("a table in a folder", "nowhere --table FOLDER", "--table folder.png: is a folder; name a file in it"),
]


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """A run's logs."""
    folder = tmp_path_factory.mktemp("logged")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        main(arguments("--trainer.log_every_n_steps 1 --trainer.enable_model_summary false"))
    return folder / "runs"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("command", "said"), [row[1:] for row in COMPARED], ids=[row[0] for row in COMPARED])
def test_a_wrong_comparison_ends_with_one_sentence(logged, capsys, command, said):
    Path("folder.png").mkdir()
    Path("file").touch()
    text = command.replace("RUNS", str(logged)).replace("FOLDER", "folder.png").replace("EMPTY", "folder.png")
    assert said.replace("RUNS", str(logged)) in sentence_of(compare, text.split(), capsys)
