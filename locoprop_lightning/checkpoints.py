"""What of local training is in a checkpoint, and what earlier versions had there instead."""

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from locoprop_lightning.errors import UserError

FORMAT = 2  # 1, which said no number, had states of solvers and oracles in places of their own
STAMP = "locoprop_lightning"  # key of a checkpoint: {"format": FORMAT, "version": that of the package}
CONFIGURATION = "configuration"  # YAML of what module and data were made of
OPTIMIZERS = "optimizers"  # names of the optimizers
LOCAL_LAYERS = "local_layers"  # {"solver": class, "oracle": class, "layers": {name: LocalLayer.state_dict()}}

_OF_PRECONDITIONER = ("inverse", "n", "age", "steps", "settings", "shape")


def stamp(checkpoint: dict[str, Any], optimizers: list[str], configuration: str | None = None) -> None:
    """Notes in a checkpoint its format, the version that writes it, its optimizers' names, and what it was made of."""
    try:
        package = version("locoprop-lightning")
    except PackageNotFoundError:  # run from its sources
        package = "of sources that are not installed"
    checkpoint[STAMP] = {"format": FORMAT, "version": package}
    checkpoint[OPTIMIZERS] = optimizers
    if configuration is not None:
        checkpoint[CONFIGURATION] = configuration


def stamped(checkpoint: Mapping[str, Any]) -> list[str] | None:
    """The names of a checkpoint's optimizers, None where it has none.

    Raises:
        UserError: For a checkpoint of a format that is not known yet.
    """
    written = checkpoint.get(STAMP, {})
    if written.get("format", 1) > FORMAT:
        raise UserError(
            f"ckpt_path: the checkpoint has format {written['format']}, written by version {written['version']}; this "
            f"version reads formats up to {FORMAT}: update locoprop-lightning."
        )
    names: list[str] | None = checkpoint.get(OPTIMIZERS)
    return names


def local_layers(checkpoint: Mapping[str, Any], solver: str, state_key: str, preconditions: bool) -> dict[str, Any]:
    """What a checkpoint holds of local layers, in today's form; of no layer, if it has none.

    In earlier ones solver and oracle had a dictionary of all layers each, in which an average's parts
    and what else is kept stood side by side.

    Args:
        checkpoint: The checkpoint.
        solver: Path of the solver's class.
        state_key: Key of the solver among the states of callbacks.
        preconditions: Whether the solver keeps a preconditioner.
    """
    if LOCAL_LAYERS in checkpoint:
        found: dict[str, Any] = checkpoint[LOCAL_LAYERS]
        return found
    callback = checkpoint.get("callbacks", {}).get(state_key, {})
    solvers, counts = callback.get("state", {}), callback.get("counts", {})
    oracles = checkpoint.get("oracle_state", {})
    names = [*dict.fromkeys([*solvers, *oracles, *counts])]
    layers = {
        name: {
            "solver": _nested(solvers.get(name, {}), preconditions),
            "oracle": _nested(oracles.get(name, {}), {"usual", "shrink"} <= oracles.get(name, {}).keys()),
            "counts": counts.get(name, {}),
        }
        for name in names
    }
    return {"solver": solver, "oracle": None, "layers": layers}


def _nested(flat: Mapping[str, Any], preconditions: bool) -> dict[str, Any]:
    """A state in which an average and its weight stood beside the rest, with average and preconditioner apart.

    Args:
        flat: The state. One that is not of this package's classes stays as it is.
        preconditions: Whether it is of a class of this package that keeps a preconditioner.
    """
    state = dict(flat)
    if state.keys() == {"square", "weight"}:
        return {"square": {"value": state["square"], "weight": state["weight"]}}
    if not preconditions:
        return state
    kept = {key: state.pop(key) for key in _OF_PRECONDITIONER if key in state}
    if "mean" in state:
        kept["average"] = {"value": state.pop("mean"), "weight": state.pop("weight")}
    return state | {"preconditioner": kept}


def at_next_epoch(loops: dict[str, Any]) -> dict[str, Any]:
    """Where the loops of a fit are at the end of an epoch, told as the beginning of the next one.

    With ``max_steps`` Lightning (2.6) takes every checkpoint for one within an epoch, and trains on one batch more of
    an epoch that has ended. What it takes up rightly is the end of a batch, so this is the end of a batch that
    the next epoch has not had.

    Args:
        loops: State of the fit's loops; what is within an epoch is given back as it is.
    """
    epochs, batches = loops["epoch_progress"], loops["epoch_loop.batch_progress"]
    if epochs["current"]["processed"] != epochs["current"]["started"]:
        return loops
    own = loops["epoch_loop.state_dict"]
    for part in ("total", "current"):
        done = epochs[part]["processed"]
        loops["epoch_progress"] = loops["epoch_progress"] | {
            part: {"ready": done + 1, "started": done + 1, "processed": done, "completed": done}
        }
    before = {"ready": 0, "started": 0, "processed": 0, "completed": -1}
    total = batches["total"] | {"completed": batches["total"]["processed"] - 1}
    loops["epoch_loop.batch_progress"] = batches | {"total": total, "current": before, "is_last_batch": False}
    loops["epoch_loop.state_dict"] = own | {"_batches_that_stepped": own["_batches_that_stepped"] - 1}
    return loops
