"""Where the processes of one machine meet: on its loopback address alone, while torch's own store listens on all."""

import os
import socket
from collections.abc import Mapping
from typing import Any

from lightning.fabric.plugins.environments import (
    LightningEnvironment,
    LSFEnvironment,
    MPIEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from torch.distributed import TCPStore

from locoprop_lightning.errors import UserError

LOOPBACK = "127.0.0.1"
_LAUNCHERS = (SLURMEnvironment, TorchElasticEnvironment, LSFEnvironment, MPIEnvironment)
_ADDRESS = {"MASTER_ADDR", "MASTER_PORT"}
_stores: list[TCPStore] = []  # which serve until the process ends


def serve_on_loopback(port: int = 0) -> int:
    """Starts a store at which the processes of this machine meet, and has torch go there and stay on loopback.

    Args:
        port: Its port; any that is free for 0.

    Returns:
        The port.

    Raises:
        UserError: For a port that is taken.
    """
    with socket.socket() as listener:
        try:
            listener.bind((LOOPBACK, port))
        except OSError as error:
            why = f"MASTER_PORT={port}: cannot be listened at ({error.strerror})"
            raise UserError(f"{why}; leave the variable out, or name a free port.") from error
        listener.listen()
        port = listener.getsockname()[1]
        _stores.append(
            TCPStore(LOOPBACK, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())
        )
    go_to_loopback(port)
    return port


def go_to_loopback(port: int) -> None:
    """Has the process group of this process and of those it starts meet at a store on loopback.

    Args:
        port: Port of the store.
    """
    os.environ |= {"MASTER_ADDR": LOOPBACK, "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    for backend in ("GLOO", "NCCL"):
        os.environ.setdefault(f"{backend}_SOCKET_IFNAME", "lo")


class LoopbackEnvironment(LightningEnvironment):
    """Processes that Lightning starts on one machine, which meet on loopback: ``Trainer(plugins=[...])``.

    An address of one's own (``MASTER_ADDR``), or processes that something else has started, are left to Lightning.
    """

    @property
    def main_port(self) -> int:
        """The port at which they meet."""
        if self._main_port == -1 and not self.creates_processes_externally and self.main_address == LOOPBACK:
            self._main_port = serve_on_loopback(int(os.environ.get("MASTER_PORT", 0)))
        return super().main_port

    def teardown(self) -> None:
        """Lets the next run of this process choose another place."""
        super().teardown()
        for name in ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_USE_AGENT_STORE"):
            os.environ.pop(name, None)


def meeting_place(trainer: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by which a trainer's processes meet on loopback; none where a cluster was asked for.

    Args:
        trainer: The trainer's settings.

    Raises:
        UserError: For several machines that have not been told where to meet.
    """
    nodes, strategy = trainer.get("num_nodes", 1), trainer.get("strategy", "auto")
    launched = trainer.get("plugins") or trainer.get("accelerator") == "tpu" or any(one.detect() for one in _LAUNCHERS)
    if nodes > 1 and not launched and isinstance(strategy, str) and not _ADDRESS <= os.environ.keys():
        raise UserError(
            f"trainer.num_nodes={nodes}: nobody has said where the nodes meet; set {', '.join(sorted(_ADDRESS))} and "
            "NODE_RANK on each, or leave it out for one machine."
        )
    return {} if launched or nodes != 1 else {"plugins": [LoopbackEnvironment()]}
