"""The Ray cluster of a sweep or a study: joined or started, and left again."""

import argparse
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import ray
import torch

from locoprop_lightning.errors import TERMINATED, UserError
from locoprop_lightning.shipped import PACKAGE, ROOT


@contextmanager
def joined(address: str | None) -> Iterator[None]:
    """Joins a cluster, or starts one on this machine, on loopback alone; leaves it again.

    Args:
        address: Address of the cluster, None to start one.

    Raises:
        UserError: If no cluster lets this process in there.
    """
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"  # a trial's own TensorBoard run has it all
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # its tables have neither the metric nor the settings
    os.environ["TUNE_GLOBAL_CHECKPOINT_S"] = "1"  # what a killed driver can lose
    checkout = [] if ROOT == PACKAGE else [str(ROOT)]  # an installed package is found without
    paths = os.pathsep.join([*checkout, str(Path.cwd()), *filter(None, [os.environ.get("PYTHONPATH")])])
    variables = {
        "PYTHONPATH": paths,
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        "PYTHONWARNINGS": "ignore",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",  # workers' reports wait for it
    }
    shared: dict[str, Any] = {
        "runtime_env": {"env_vars": variables},
        "log_to_driver": False,
        "logging_level": "ERROR",
    }
    if address:
        _check_address(address)
        try:
            ray.init(address=address, **shared)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UserError(
                f"--address {address}: no Ray cluster lets this command in there; one with RAY_AUTH_MODE=token "
                "needs that here too, and its token in ~/.ray/auth_token."
            ) from error
    else:
        ray.init(address="local", include_dashboard=False, **shared)  # whatever else runs on this machine
    terminated = threading.Event()

    def terminate(number: int, frame: Any) -> NoReturn:
        terminated.set()
        raise SystemExit(TERMINATED)

    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, terminate) if main else None  # over Ray's, which shows a stack of its own
    try:
        yield
    finally:
        ray.shutdown()
        if main:
            signal.signal(signal.SIGTERM, before)
        if terminated.is_set():  # whatever Tune has made of it
            print(
                "locoprop-tune: terminated; a sweep goes on with --resume, a study with the same command.",
                file=sys.stderr,
            )
            raise SystemExit(TERMINATED)


def _check_address(address: str) -> None:
    """Refuses an address where nothing listens, which Ray would ask for minutes.

    Raises:
        UserError: Names the address.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if address == "auto":
        return
    if not colon or not port.isdecimal():
        raise UserError(f"--address {address}: must be HOST:PORT, ray://HOST:PORT, or 'auto' for one of this machine.")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"--address {address}: nothing answers there ({error}); start one, or leave it out.") from error


def check_room(options: argparse.Namespace, here: Mapping[str, float]) -> None:
    """Refuses trials for which a cluster of this machine has no room, and would wait for ever.

    Another cluster may grow, so that there it is only said.

    Args:
        options: Options of the command.
        here: What there is, as Ray counts it.

    Raises:
        UserError: Names the option.
    """
    for name, kind in (("cpus", "CPU"), ("gpus", "GPU")):
        asked, there = getattr(options, f"{name}_per_trial"), here.get(kind, 0)
        if asked > there:
            text = f"--{name}-per-trial {asked:g}: there are {there:g} {kind}s"
            if not options.address:
                raise UserError(f"{text}; give at most that.")
            print(f"locoprop-tune: {text} in the cluster; waits until it has more.", file=sys.stderr)


def here() -> dict[str, float]:
    """What a cluster of this machine has at most, before one is started."""
    return {"CPU": os.cpu_count() or 1, "GPU": torch.cuda.device_count()}
