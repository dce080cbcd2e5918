"""What several test modules share."""

import importlib.util
import io
import time
from pathlib import Path

import torch
from lightning.pytorch import Trainer

from locoprop_lightning.layers import Tape, kind_of
from locoprop_lightning.local import LocalProblem
from locoprop_lightning.solvers import Recording

ROOT = Path(__file__).parents[1]
KEPT = dict(average=0.9, refresh_every=3, warmup=1)  # a factor that is averaged and kept for some steps


def script(name, folder="benchmarks"):
    """A script of the benchmarks, or of another folder, as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def quiet_trainer(**settings):
    """A trainer on the processor that prints and writes nothing, unless the settings say otherwise."""
    quiet = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    return Trainer(**quiet | {"enable_progress_bar": False, "enable_model_summary": False} | settings)


def close(a, b, tolerance):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def joined(solution, problem):
    """V = [W+ | b+] - [W0 | b0]."""
    v = solution.weight - problem.weight
    return v if problem.bias is None else torch.cat([v, (solution.bias - problem.bias)[:, None]], 1)


def flat(state, path=""):
    """Every tensor, number and string in a state, as tensors by their path."""
    if not isinstance(state, dict):
        return {path: torch.as_tensor(list(state.encode()) if isinstance(state, str) else state)}
    return {key: x for name, value in state.items() for key, x in flat(value, f"{path}/{name}").items()}


def same(a, b):
    """Whether two states hold the same, bit for bit."""
    a, b = flat(a), flat(b)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


class Stateful:
    """A solver with the states of its layers, as a run keeps them: ``solve`` goes on from solve to solve."""

    def __init__(self, solver):
        self.solver = solver
        self.states = {}

    def solve(self, problem, recording=Recording.NOTHING):
        return self.solver.solve(problem, self.states.setdefault(problem.name, {}), recording)

    def resumed(self, solver):
        """Another solver with these states, written to a file and read again."""
        other = Stateful(solver)
        other.states = through_a_file(self.states)
        return other


def through_a_file(state):
    """A state as a checkpoint brings it back."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def operator_of(layer, inputs):
    """The linear operator of a layer at the inputs of its calls."""
    return kind_of(layer).operator(layer, inputs)


def rows_of(layer, output):
    """An output of a layer as rows."""
    return kind_of(layer).rows(layer, output)


def taped(layers, moving=()):
    """A tape of some layers, by name."""
    return Tape({name: (layer, kind_of(layer)) for name, layer in layers.items()}, moving)


def replaced(problem, **parts):
    """The same problem made anew, with some arguments of its own."""
    known = {
        "operator": problem.operator,
        "pre_activation": problem.pre_activation,
        "direction": problem.direction,
        "weight": problem.weight,
        "bias": problem.bias,
        "transfer": problem.transfer,
        "lambda_a": problem.lambda_a,
        "lambda_r": problem.lambda_r,
        "rate": problem.rate,
        "length": problem.length,
        "name": problem.name,
    }
    return LocalProblem(**known | parts)


def with_rows(problem, index):
    """The problem of some of its rows, which may be taken several times."""
    operator = problem.operator.select(torch.as_tensor(index))
    return replaced(
        problem, operator=operator, pre_activation=problem.pre_activation[index], direction=problem.direction[index]
    )


def with_units(problem, units):
    """The problem of some of its units."""
    return replaced(
        problem,
        pre_activation=problem.pre_activation[:, units],
        direction=problem.direction[:, units],
        weight=problem.weight[units],
        bias=None if problem.bias is None else problem.bias[units],
    )


def augmented(problem):
    """[Y | 1], or Y without a bias."""
    y = problem.operator.dense().rows
    return y if problem.bias is None else torch.cat([y, torch.ones_like(y[:, :1])], 1)


def numbers(state):
    """Every tensor and number in a state, as tensors."""
    if isinstance(state, dict):
        return [x for value in state.values() for x in numbers(value)]
    return [torch.as_tensor(state)] if isinstance(state, (torch.Tensor, int, float)) else []


def finite(state):
    """Whether all of a state is finite."""
    return all(x.isfinite().all() for x in numbers(state))


def wait_for(condition, process, patience=120):
    """Waits until a condition holds, which a process that runs on brings about."""
    end = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.05)
