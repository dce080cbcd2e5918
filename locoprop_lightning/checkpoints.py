"""What of local training is in a checkpoint, and what earlier versions had there instead."""

from collections.abc import Mapping
from typing import Any

LOCAL_LAYERS = "local_layers"  # {"solver": class, "oracle": class, "layers": {name: LocalLayer.state_dict()}}

_OF_PRECONDITIONER = ("inverse", "n", "age", "steps", "settings", "shape")


def local_layers(checkpoint: Mapping[str, Any], solver: str) -> dict[str, Any]:
    """What a checkpoint holds of local layers, in today's form; of no layer, if it has none.

    In earlier ones solver and oracle had a dictionary of all layers each, in which an average's parts
    and what else is kept stood side by side.

    Args:
        checkpoint: The checkpoint.
        solver: Name of the solver's class.
    """
    if LOCAL_LAYERS in checkpoint:
        found: dict[str, Any] = checkpoint[LOCAL_LAYERS]
        return found
    callback = checkpoint.get("callbacks", {}).get(solver, {})
    solvers, counts = callback.get("state", {}), callback.get("counts", {})
    oracles = checkpoint.get("oracle_state", {})
    names = [*dict.fromkeys([*solvers, *oracles, *counts])]
    layers = {
        name: {
            "solver": _nested(solvers.get(name, {})),
            "oracle": _nested(oracles.get(name, {})),
            "counts": counts.get(name, {}),
        }
        for name in names
    }
    return {"solver": solver, "oracle": None, "layers": layers}


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """An earlier state, in which all averages shared one weight, with its averages and preconditioner apart."""
    state = dict(flat)
    weight = state.pop("weight", None)
    kept = {key: state.pop(key) for key in _OF_PRECONDITIONER if key in state}
    if "mean" in state:
        kept["average"] = {"value": state.pop("mean"), "weight": weight}
    if "square" in state:
        state["square"] = {"value": state["square"], "weight": weight}
    return state | ({"preconditioner": kept} if kept else {})
