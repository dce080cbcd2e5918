"""What may be another setting when a fit goes on from a checkpoint, and what may not."""

import re
from collections.abc import Mapping
from typing import Any

from locoprop_lightning.errors import UserError
from locoprop_lightning.results.settings import NEUTRAL

_FIXED = (  # settings that a checkpoint has decided, and why; the first that matches
    (r"model$|model\.network(\.|$)|model\.task$", "its weights are of that network and task"),
    (r"model\.(rest_)?optimizer(\.|$)", "an optimizer goes on with the settings that it was saved with"),
    (r"model\.lr_scheduler(\.|$)", "a schedule goes on with the settings that it was saved with"),
)
_FORGETS = r"model\.(solver|oracle)$"
_HELD = "LinearDecay"  # a schedule whose settings, and the rates that it begins at, are not saved


def edited(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What is to be told of settings that differ from those of the run that wrote a checkpoint, a sentence each.

    Args:
        saved: Settings of that run by dotted name.
        now: Those of this one.

    Raises:
        UserError: For one that would have no effect, or a wrong one.
    """
    told = []
    for name in dict.fromkeys([*saved, *now]):
        before, after = saved.get(name), now.get(name)
        if before == after or NEUTRAL.match(name):
            continue
        reason = next((reason for pattern, reason in _FIXED if re.match(pattern, name)), None)
        if reason is not None and not _holds(name, now):
            raise UserError(
                f"{name}={_shown(after)}: the checkpoint's run had {_shown(before)}, and {reason}; resume with that, "
                "or start a run of its own."
            )
        effect = "what the former one had learnt is forgotten" if re.match(_FORGETS, name) else "holds from here on"
        told.append(f"{name}: {_shown(before)} before, now {_shown(after)}; {effect}")
    return told


def _holds(name: str, now: Mapping[str, Any]) -> bool:
    """Whether an edited rate or schedule holds, since the schedule makes the rates anew."""
    kept = str(now.get("model.lr_scheduler", "")).endswith(_HELD)
    return kept and (name.endswith(".lr") or name.startswith("model.lr_scheduler."))


def _shown(value: Any) -> str:
    return "nothing" if value is None else str(value)
