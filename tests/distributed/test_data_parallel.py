"""Data-parallel runs: several processes together do what one does with all rows."""

import os
import socket
import time
import warnings
from functools import partial

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import distributed as dist
from torch import multiprocessing, nn
from torch.utils.data import DataLoader

from locoprop_lightning import BackpropModule, LocoPropModule
from locoprop_lightning.data import Digits
from locoprop_lightning.distributed import Communicator, DataParallel, connect, share_batch
from locoprop_lightning.distributed.lockstep import lockstep, total_of
from locoprop_lightning.distributed.shard import Shard, SummedOperator
from locoprop_lightning.errors import UserError
from locoprop_lightning.local import LocalProblem, MatrixOperator, State, resolve_transfer
from locoprop_lightning.local.operator import spread
from locoprop_lightning.local.reduction import reduced
from locoprop_lightning.networks import MLP
from locoprop_lightning.oracles import GradientOracle, RMSOracle, SpectralOracle, WhitenedOracle
from locoprop_lightning.solvers import (
    ClosedForm,
    FixedPointIteration,
    Majorization,
    Recording,
)
from locoprop_lightning.tasks import Classification, HuggingFaceTask
from tests.catalogue import EVERY, KINDS, draw, problem_of, solver, takes
from tests.support import KEPT, close, flat, operator_of, quiet_trainer, rows_of, same

STEPS, ITERATIONS = 5, 5


def parts(n):
    """First and last sample of three processes, one of which has none."""
    return ((0, -(-n // 2)), (-(-n // 2), -(-n // 2)), (-(-n // 2), n))


def problem(kind, step, part=None):
    """A random problem of one layer, or the part of it that one of three processes has."""
    layer, inputs, direction = draw(kind, seed=step)
    if part is None:
        return problem_of(kind, layer, inputs, direction, 0.7, 100.0)
    bounds = parts(len(inputs))
    per_sample = len(rows_of(layer, direction)) // len(inputs)
    inputs, direction = inputs[slice(*bounds[part])], direction[slice(*bounds[part])]
    processes, samples = connect(), [end - start for start, end in bounds]
    rows = processes.rows([per_sample * count for count in samples], samples, (1, 1, 1))
    operator = processes.operator(operator_of(layer, [inputs]), rows)
    return problem_of(kind, layer, inputs, direction, 0.7, 100.0, operator)


def solve_all(part=None):
    """Every solver over some steps, all layers together: solutions, curves and what has evolved."""
    found = {}
    processes = connect()
    for name in EVERY:
        one, kinds = solver(name, ITERATIONS), [kind for kind in KINDS if takes(name, kind)]
        states = {kind: {} for kind in kinds}
        for step in range(STEPS):
            problems = {kind: problem(kind, step, part) for kind in kinds}
            solutions = one.solve_all(problems, states, Recording.CURVE, processes.run, processes.sum)
            for layer, solution in solutions.items():
                found[f"{name}/{layer}/{step}"] = {
                    "displacement": solution.displacement,
                    "losses": solution.losses,
                    "status": solution.status.value,
                    "out_of_range": problems[layer].out_of_range(),
                    "some": problems[layer].value(solution.displacement, at_most=6),
                }
        found[f"{name}/state"] = states
    return found


def observe_all(part=None):
    """Every oracle over some steps: directions of this process's rows and what has evolved."""
    oracles = {
        "rms": RMSOracle(),
        "layer": RMSOracle(per="layer"),
        "whitened": WhitenedOracle(samples=0, refresh_every=2, warmup=1),
        "root": WhitenedOracle(power=0.5, samples=1, refresh_every=3, warmup=0),
    }
    found = {}
    for name, oracle in oracles.items():
        state: State = {}
        for step in range(STEPS):
            torch.manual_seed(step)
            g, drawn = (10**step * torch.randn(40, 4, dtype=torch.float64) for _ in range(2))
            own, counts = slice(None), (40,)
            if part is not None:
                bounds, counts = (0, 25, 25, 40), (25, 0, 15)
                own = slice(bounds[part], bounds[part + 1])
            rows = connect().rows(counts, counts, (1,) * len(counts))
            oracle.observe(g[own], [drawn[own]] if name == "root" else [], 40, state, rows)
            found[f"{name}/{step}/direction"] = oracle.direction(g[own], 40, state)
            found[f"{name}/{step}/weights"] = oracle.weight_direction(g.t() @ g, 40, state)
        found[f"{name}/state"] = state
    return found


class Recorded(LightningDataModule):
    """Batches of digits, of which each process takes its own samples; ``uneven`` gives the first one three quarters.

    With ``mapping`` they are mappings, in which a label of three does not count. With ``spoilt`` a sample of the second
    batch, which only one process has, is not finite.
    """

    def __init__(self, uneven=False, size=80, mapping=False, spoilt=False):
        super().__init__()
        self.spoilt = spoilt
        self.uneven = uneven
        self.size = size
        self.mapping = mapping

    def train_dataloader(self):
        data = Digits(batch_size=self.size, seed=0)
        data.setup("fit")
        loader = data.train_dataloader()
        loader.sampler.set_epoch(self.trainer.current_epoch)
        batches = [(x.double(), y) for x, y in list(loader)[:3]]
        if self.spoilt:
            batches[1][0][1, 0, 2, 2] = torch.nan
        size, rank = self.trainer.world_size, self.trainer.global_rank
        own = slice(rank, None, size)
        if self.uneven and size > 1:
            own = slice(60) if rank == 0 else slice(60, None)
        batches = [(x[own], y[own]) for x, y in batches]
        if self.mapping:
            batches = [{"x": x, "labels": y.masked_fill(y % 3 == 0, -100)} for x, y in batches]
        return DataLoader(batches, batch_size=None)


class Experts(nn.Module):
    """Samples whose first label-like pixel sum is even go to one expert, the others to the other."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(64, 8), nn.Linear(8, 10)
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))

    def forward(self, x):
        y = self.first(x.flatten(1))
        # The first 60 samples of a batch go to the first expert: with two processes, one of them never calls it.
        low = y[:60] if len(x) == 80 else y if len(x) == 60 else y[:0]
        parts = [expert(part) for expert, part in zip(self.experts, (low, y[len(low) :]), strict=True) if len(part)]
        return self.head(torch.tanh(torch.cat(parts)))


class Twice(nn.Module):
    """Calls its middle layer twice."""

    def __init__(self):
        super().__init__()
        self.first, self.middle, self.head = nn.Linear(64, 8), nn.Linear(8, 8), nn.Linear(8, 10)

    def forward(self, x):
        y = torch.tanh(self.middle(torch.tanh(self.first(x.flatten(1)))))
        return self.head(torch.tanh(self.middle(y)))


class Convolutions(nn.Sequential):
    def __init__(self):
        layers = nn.Conv2d(1, 4, 3, stride=2), nn.Tanh(), nn.Conv2d(4, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(16, 10)
        super().__init__(*layers)


class Kinds(nn.Module):
    """Layers of all the other kinds; black pixels are padding."""

    def __init__(self):
        super().__init__()
        self.tokens, self.up = nn.Embedding(17, 2, padding_idx=0), nn.ConvTranspose2d(2, 2, 2, 2, groups=2)
        self.volume, self.pair = nn.Conv3d(1, 2, (1, 3, 3), (1, 4, 4)), nn.Bilinear(32, 2, 10)

    def forward(self, x):
        y = self.tokens((x * 16).round().long()).movedim(-1, -3)  # [n, 1, 2, 8, 8]
        y = self.volume(self.up(y.flatten(1, 2))[:, None]).tanh()  # [n, 2, 2, 4, 4]
        return self.pair(y[:, 0].flatten(1), y[:, 1].flatten(2).mean(2))


class Answering(nn.Module):
    """Makes the loss itself, and answers with a mapping."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(64, 8), nn.Linear(8, 10)

    def forward(self, x, labels):
        logits = self.head(torch.tanh(self.first(x.flatten(1))))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def mlp():
    return MLP(64, 12, 2)


def normalised():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.LayerNorm(12), nn.Tanh(), nn.Linear(12, 10))


SQUARED = dict(objective="squared")
SPECTRAL = dict(
    oracle=partial(SpectralOracle, refresh_every=2, warmup=1),
    lambda_a=0.05,
    lambda_r=0.1,
    damping="relative",
    step_length="activations",
    **SQUARED,
)
RUNS = {
    "foof": (mlp, ClosedForm, dict(lambda_a=30.0, lambda_r=10.0, **SQUARED), {}),
    "foof_rms_kept": (
        mlp,
        partial(ClosedForm, **KEPT),
        dict(oracle=RMSOracle, lambda_a=0.1, lambda_r=10.0, **SQUARED),
        {},
    ),
    "kfac": (
        mlp,
        partial(ClosedForm, **KEPT),
        dict(
            oracle=partial(WhitenedOracle, damping=1.0, refresh_every=2),
            lambda_a=0.1,
            lambda_r=0.1,
            damping="relative",
            **SQUARED,
        ),
        {},
    ),
    "locoprop_m": (
        mlp,
        partial(FixedPointIteration, 4),
        dict(lambda_a=30.0, lambda_r=1000.0, output_transfer="link"),
        {},
    ),
    "locoprop_m_whitened": (
        mlp,
        partial(Majorization, 3, **KEPT),
        dict(oracle=partial(WhitenedOracle, power=0.5, samples=0), lambda_a=0.1, lambda_r=1.0, damping="relative"),
        {},
    ),
    "spectral": (Convolutions, partial(ClosedForm, **KEPT), SPECTRAL, {}),
    "spectral_wide": (mlp, partial(ClosedForm, **KEPT), SPECTRAL, dict(size=24)),
    "spectral_m": (mlp, partial(Majorization, 2), SPECTRAL | dict(objective="matching"), {}),
    "reduced": (
        Convolutions,
        partial(ClosedForm, **KEPT),
        dict(
            oracle=partial(WhitenedOracle, samples=0, damping=0.1),
            lambda_a=0.05,
            lambda_r=0.1,
            damping="relative",
            shared_rows="reduce",
            **SQUARED,
        ),
        dict(size=81),
    ),
    "rest": (mlp, ClosedForm, dict(lambda_a=30.0, lambda_r=10.0, skip=["3"], **SQUARED), {}),
    "spoilt": (
        normalised,
        partial(ClosedForm, **KEPT),
        dict(oracle=partial(WhitenedOracle, samples=0), lambda_a=0.1, lambda_r=0.1, damping="relative", **SQUARED),
        dict(spoilt=True),
    ),
    "twice": (
        Twice,
        partial(ClosedForm, **KEPT),
        dict(oracle=partial(WhitenedOracle, samples=0), lambda_a=0.1, lambda_r=0.1, damping="relative", **SQUARED),
        {},
    ),
    "wide": (
        mlp,
        partial(ClosedForm, **KEPT),
        dict(oracle=RMSOracle, lambda_a=0.1, lambda_r=10.0, **SQUARED),
        dict(size=24),
    ),
    "wide_m": (mlp, partial(Majorization, 3), dict(oracle=RMSOracle, lambda_a=0.05, lambda_r=10.0), dict(size=24)),
    "odd": (
        mlp,
        partial(ClosedForm, **KEPT),
        dict(
            oracle=partial(WhitenedOracle, damping=1.0, samples=2, refresh_every=2),
            lambda_a=0.1,
            lambda_r=0.1,
            damping="relative",
            **SQUARED,
        ),
        dict(size=81),
    ),
    "convolutions": (Convolutions, partial(Majorization, 3), dict(oracle=RMSOracle, lambda_a=0.05, lambda_r=10.0), {}),
    "kinds": (
        Kinds,
        partial(ClosedForm, **KEPT),
        dict(oracle=RMSOracle, lambda_a=0.05, lambda_r=0.1, damping="relative", include=["tokens"], **SQUARED),
        {},
    ),
    "kinds_m": (
        Kinds,
        partial(Majorization, 2),
        SPECTRAL | dict(objective="matching", include=["tokens"]),
        dict(uneven=True),
    ),
    "uneven": (mlp, partial(Majorization, 3), dict(oracle=RMSOracle, lambda_a=0.05, lambda_r=10.0), dict(uneven=True)),
    "answering": (
        Answering,
        ClosedForm,
        dict(
            task=HuggingFaceTask,
            oracle=partial(WhitenedOracle, damping=1.0, samples=1),
            lambda_a=0.1,
            lambda_r=0.1,
            damping="relative",
            **SQUARED,
        ),
        dict(mapping=True),
    ),
    "experts": (
        Experts,
        ClosedForm,
        dict(oracle=RMSOracle, lambda_a=0.05, lambda_r=10.0, **SQUARED),
        dict(uneven=True),
    ),
}


def train(name, folder, size, checkpoint=None):
    """Two epochs of three batches, or the second alone; the weights, and what solver and oracle have learnt."""
    network, solver, settings, data = RUNS[name]
    seed_everything(3, verbose=False)
    settings = {**settings, "oracle": settings.get("oracle", GradientOracle)()}
    task = settings.pop("task", Classification)()
    module = LocoPropModule(network().double(), task, solver(), **settings)
    plain = "ddp_find_unused_parameters_true" if name == "experts" else "ddp"
    trainer = Trainer(
        max_epochs=2,
        reload_dataloaders_every_n_epochs=1,
        accelerator="cpu",
        devices=size,
        strategy="auto" if size == 1 else plain,
        precision="64-true",
        logger=False,
        callbacks=[ModelCheckpoint(folder, name + "_{epoch}", save_top_k=-1)],
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        log_every_n_steps=1,
    )
    trainer.fit(module, Recorded(**data), ckpt_path=checkpoint)
    return {
        "weights": dict(module.network.state_dict()),
        "oracle": {name: layer.oracle_state for name, layer in module.engine.layers.items()},
        "solver": {name: layer.solver_state for name, layer in module.engine.layers.items()},
        "skipped": module.rest.skipped,
        "loss": trainer.callback_metrics["train/loss"],
        "accuracy": trainer.callback_metrics["train/accuracy"],
    }


def train_plainly(size):
    """Back-propagation on batches of which the processes have different numbers of labels that count."""
    seed_everything(3, verbose=False)
    network = Answering().double()
    module = BackpropModule(network, HuggingFaceTask(), lambda p: torch.optim.SGD(p, lr=0.1))
    trainer = quiet_trainer(
        max_epochs=1,
        devices=size,
        strategy="auto" if size == 1 else "ddp",
        precision="64-true",
        use_distributed_sampler=False,
    )
    trainer.fit(module, Recorded(uneven=True, mapping=True))
    return {"weights": dict(network.state_dict()), "loss": trainer.callback_metrics["train/loss"]}


def count_sums():
    """How many sums over processes one solve of three layers takes."""
    calls, fingerprints = [], []
    sum_ = dist.all_reduce

    def counted(x, *others, **options):
        (calls if x.is_floating_point() else fingerprints).append(x.numel())
        return sum_(x, *others, **options)

    dist.all_reduce = counted
    processes, problems = connect(), {f"tanh{step}": problem("tanh", step, dist.get_rank()) for step in range(3)}
    FixedPointIteration(5).solve_all(
        problems, {name: {} for name in problems}, Recording.NOTHING, processes.run, processes.sum
    )
    dist.all_reduce = sum_
    return {"sums": calls, "fingerprints": fingerprints}


def child(rank, size, port, work, folder):
    """One process of a test: joins the others, works and keeps what it found."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": str(size)}
    os.environ |= {
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(size),
        "TORCHELASTIC_RUN_ID": "test",
        "GROUP_RANK": "0",
    }
    dist.init_process_group("gloo", rank=rank, world_size=size)
    torch.save(work(rank, folder), folder / f"{rank}.pt")
    dist.barrier()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def together(size, work, folder):
    """What each of some processes found."""
    children = multiprocessing.spawn(child, (size, free_port(), work, folder), nprocs=size, join=False)
    deadline = time.monotonic() + 200
    try:
        while not children.join(timeout=1):
            assert time.monotonic() < deadline, "the processes wait for each other"
    finally:
        for process in children.processes:
            process.kill()
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(size)]


def problems_of(rank, folder):
    return {
        "solvers": solve_all(rank),
        "oracles": observe_all(rank),
        "sums": count_sums(),
        "astray": [go_astray(rank, where) for where in ("order", "shape", "one more")],
    }


def go_astray(rank, where):
    """What a process hears where one of three takes another way."""
    last = rank == 2

    def first():
        shape = (3,) if where == "shape" and last else (2,)
        return total_of(torch.ones(shape))

    def second():
        x = total_of(torch.ones(2))
        return total_of(x) if where == "one more" and last else x

    tasks = {"first": first, "second": second}
    if where == "order" and last:
        del tasks["first"]
    try:
        connect().run(tasks)
    except UserError as error:
        return str(error)
    return "nothing"


def runs_of(rank, folder):
    found = {name: train(name, folder, 2) for name in RUNS} | {"plain": train_plainly(2)}
    dist.barrier()  # the first process writes the checkpoints
    name = "locoprop_m_whitened"
    return found | {"resumed": train(name, folder / "again", 2, folder / f"{name}_epoch=0.ckpt")}


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    return together(3, problems_of, tmp_path_factory.mktemp("three"))


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return together(2, runs_of, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def alone():
    return solve_all()


def agree(found, expected, tolerance):
    found, expected = flat(found), flat(expected)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        close(found[key].double(), value.double(), tolerance)


@pytest.mark.processes
@pytest.mark.parametrize("name", EVERY)
def test_a_solver_on_parts_of_the_rows_gives_the_solution_of_all(three, alone, name):
    expected = {key: value for key, value in alone.items() if key.startswith(f"{name}/")}
    for one in three:
        agree({key: one["solvers"][key] for key in expected}, expected, 1e-9)


@pytest.mark.processes
def test_an_oracle_on_parts_of_the_rows_learns_what_one_on_all_does(three):
    expected = observe_all()
    for key, value in expected.items():
        if key.endswith("direction"):
            close(torch.cat([one["oracles"][key] for one in three]), value, 1e-9)
        else:
            for one in three:
                agree({key: one["oracles"][key]}, {key: value}, 1e-9)


@pytest.mark.processes
def test_one_buffer_an_iteration(three):
    size = 3 * 3 * 6  # three layers of 3 units, 5 inputs and a bias
    for one in three:
        assert one["sums"]["sums"] == [size] * 5 + [3 * 2]  # first gradients, four others, and how the solves ended
        assert one["sums"]["fingerprints"] == [2] * 6  # one before each, and one at the end


@pytest.mark.processes
def test_processes_at_sums_of_different_layers_are_named(three):
    for one in three:
        order, shape, more = one["astray"]
        start = (
            "trainer.devices: the processes stand at sums of different layers (process 0 at first (2,) torch.float32"
        )
        assert order.startswith(start) and "process 2 at second (2,) torch.float32)" in order
        assert shape.startswith(start) and "process 2 at first (3,) torch.float32, second" in shape
        assert "process 0 at none; process 1 at none; process 2 at second (2,)" in more
        assert all("must take the same way on every process" in said for said in (order, shape, more))


@pytest.mark.processes
@pytest.mark.filterwarnings("ignore")
def test_back_propagation_weighs_the_processes(two):
    expected = train_plainly(1)
    for one in two:
        agree(one["plain"], expected, 1e-8)


@pytest.mark.processes
@pytest.mark.parametrize("name", RUNS)
def test_two_processes_train_as_one_with_the_same_batches(two, name, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = train(name, tmp_path, 1)
    first, second = (one[name] for one in two)
    for key in ("weights", "oracle", "solver"):
        agree(first[key], expected[key], 1e-8)
        assert same(first[key], second[key])
    for key in ("loss", "accuracy"):
        close(first[key], expected[key], 1e-6)
    assert first["skipped"] == second["skipped"] == expected["skipped"] == 2 * (name == "spoilt")
    assert all(x.isfinite().all() for x in flat(first["weights"]).values())


@pytest.mark.processes
def test_a_resumed_run_has_the_weights_of_one_never_stopped(two):
    for one in two:
        for key in ("weights", "oracle", "solver"):
            assert same(one["resumed"][key], one["locoprop_m_whitened"][key])


@pytest.mark.parametrize("calls", [1, 2])
@pytest.mark.parametrize("samples", [(4, 4, 4), (5, 4, 4), (2, 3, 5)])
def test_rows_stand_where_one_process_has_them(samples, calls):
    positions, total = 6, sum(samples)
    # by call, sample and position, as one process joins them; the samples dealt out in turns, or after each other
    whole = torch.arange(calls * total * positions).reshape(calls, total, positions)
    dealt = samples[0] - samples[-1] in (0, 1)
    chosen = set(spread(whole.numel(), 20, torch.device("cpu")).tolist())
    found = []
    for rank in range(3):
        counts = [calls * positions * count for count in samples]
        shard = Shard.of(counts, rank, lambda x: x, samples, [calls] * 3)
        own = calls * positions * samples[rank]
        assert shard.count(own) == whole.numel()
        index, count = shard.sample(own, 20, torch.device("cpu"))
        assert count == len(chosen)
        if dealt:
            expected = whole[:, rank::3].flatten()
            assert torch.equal(shard.places(own), expected)
        found += shard.places(own)[index].tolist()
    assert sorted(found) == sorted(chosen)


def data_parallel(monkeypatch, rank, size):
    """The communicator of one of several processes that are not there."""
    monkeypatch.setattr(dist, "get_world_size", lambda: size)
    monkeypatch.setattr(dist, "get_rank", lambda: rank)
    monkeypatch.setattr(dist, "get_backend", lambda: "gloo")
    return DataParallel()


def test_samples_are_joined_in_the_order_in_which_they_were_dealt(monkeypatch):
    x = torch.arange(22).reshape(11, 2)
    parts = [x[rank::3] for rank in range(3)]
    counts = [len(part) for part in parts]

    def all_gather(out, own):
        for buffer, part in zip(out, parts, strict=True):
            buffer[: len(part)] = part

    monkeypatch.setattr(dist, "all_gather", all_gather)
    for rank in range(3):
        processes = data_parallel(monkeypatch, rank, 3)
        joined = processes.interleave(parts[rank], counts)
        assert torch.equal(joined, x) and torch.equal(processes.own_part(joined, counts), parts[rank])


def test_a_task_keeps_its_grad_mode(monkeypatch):
    monkeypatch.setattr(dist, "all_reduce", lambda x, *others, **options: x.mul_(2) if x.is_floating_point() else x)

    def task(enabled):
        with torch.set_grad_enabled(enabled):
            first = total_of(torch.ones(()))
            return first, torch.is_grad_enabled(), total_of(torch.ones(2)), torch.is_grad_enabled()

    with torch.no_grad():
        results = lockstep({"on": lambda: task(True), "off": lambda: task(False)})
        assert not torch.is_grad_enabled()
    for name, (first, before, second, after) in results.items():
        assert (before, after) == (name == "on",) * 2 and first == 2 and second.tolist() == [2, 2]


def test_one_process_is_no_special_case():
    alone, x = Communicator(), torch.randn(4, 3)
    operator = MatrixOperator(x, True)
    rows = alone.rows([4], [4], [1])
    assert type(connect()) is Communicator and alone.operator(operator, rows) is operator
    assert rows.count(4) == 4 and rows.sum(x) is alone.sum(x) is alone.mean(x) is alone.interleave(x, [4]) is x
    assert alone.gather([1, 2], x.device) == [[1, 2]] and alone.agree("a", x.device)
    assert alone.run({"a": lambda: 1, "b": lambda: 2}) == {"a": 1, "b": 2}


def test_a_form_that_needs_all_rows_says_so():
    shard = Shard([2, 3], 0, lambda x: x)
    problem = LocalProblem(
        SummedOperator(MatrixOperator(torch.randn(2, 4), False), shard),
        torch.randn(2, 3),
        torch.randn(2, 3),
        torch.randn(3, 4),
        None,
        resolve_transfer("identity"),
        1.0,
        1.0,
    )
    assert problem.n == 5
    with pytest.raises(UserError, match="needs all rows in one process: take whole\\(\\) first"):
        reduced(problem)


def test_no_layers_need_no_other_process(monkeypatch):
    monkeypatch.setattr(dist, "all_reduce", None)
    assert lockstep({}) == {}


def test_a_backend_of_gpus_alone_has_a_group_of_the_hosts_for_a_fit(monkeypatch):
    made, gone = [], []
    processes = data_parallel(monkeypatch, 0, 2)
    monkeypatch.setattr(dist, "get_backend", lambda: "nccl")
    monkeypatch.setattr(dist, "new_group", lambda backend: made.append(backend) or "hosts")
    monkeypatch.setattr(dist, "destroy_process_group", gone.append)
    processes.close()
    assert (made, gone) == ([], [])
    for _ in range(2):
        assert processes.run({}) == {}
    assert made == ["gloo"]
    processes.close()
    assert gone == ["hosts"]


@pytest.mark.parametrize(("other", "alike"), [((3, 10), True), ((3, 11), False)])
def test_processes_know_each_others_part_of_a_batch(other, alike):
    sent = []

    class Pair(Communicator):
        size = 2

        def gather(self, numbers, device):
            sent.append(list(numbers))
            return [sent[-1], sent[0]]

    share_batch(Pair(), torch.zeros(3, 4), torch.zeros(other), 3, 2, 0.75)  # what the other process sends
    batch = share_batch(Pair(), torch.zeros(5, 4), torch.zeros(5, 10), 5, 1, 2.5)
    assert (batch.terms, batch.samples, batch.wish, batch.alike) == (8, (5, 3), 2, alike)
    assert (batch.own, batch.weight) == (2.5, 3.25)
    assert batch.weigh(torch.ones(())).item() == pytest.approx(2.5 * 2 / 3.25)
    assert all(isinstance(number, int) for number in sent[0])
