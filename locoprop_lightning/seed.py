"""The seed of a run."""

import os


def run_seed() -> int:
    """The seed that Lightning's ``seed_everything`` was given, in spawned processes too; 0 before it."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))
