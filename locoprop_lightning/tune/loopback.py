"""Where the workers of a trial meet when all are on one machine: on its loopback address."""

from typing import Any

import ray
from ray.train.torch import TorchConfig
from ray.train.torch import config as torch_backend

from locoprop_lightning.distributed.loopback import LOOPBACK, go_to_loopback, serve_on_loopback


def meeting_place() -> TorchConfig:
    """Ray Train's settings of the process group: on loopback, unless the cluster has other machines."""
    return TorchConfig() if len(ray.nodes()) > 1 else _LoopbackConfig()


class _LoopbackConfig(TorchConfig):
    @property
    def backend_cls(self) -> type[torch_backend._TorchBackend]:
        return _LoopbackBackend


class _LoopbackBackend(torch_backend._TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Ray's own, but for the address that it asks the first worker for."""
        worker_group.execute(go_to_loopback, 0)  # the port follows
        asked = torch_backend.get_address_and_port
        torch_backend.get_address_and_port = _served
        try:
            super().on_start(worker_group, backend_config)
        finally:
            torch_backend.get_address_and_port = asked


def _served() -> tuple[str, int]:
    return LOOPBACK, serve_on_loopback()
