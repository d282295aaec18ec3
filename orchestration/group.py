"""How the ranks of a worker group find each other: Ray Train's set-up, over the right interface.

gloo binds to the address that a machine's host name resolves to, and to loopback where it resolves
to nothing (a bare container, a network namespace): ranks on other nodes then fail to connect, and
Ray calls that a controller's error, which no retry covers. The address by which Ray itself reaches
a node is the right one.
"""

import os
import socket
from dataclasses import dataclass
from typing import Any

import psutil
import ray
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend


@dataclass
class GroupConfig(TorchConfig):  # type: ignore[misc]
    """TorchConfig whose ranks talk over the interface of their node's address."""

    @property
    def backend_cls(self) -> type:
        return _OverNodeAddress


class _OverNodeAddress(_TorchBackend):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        worker_group.execute(_choose_interface)
        super().on_start(worker_group, backend_config)


def _choose_interface() -> None:
    """Runs in each worker; what its environment says already stays."""
    name = interface_of(ray.util.get_node_ip_address())
    if name is not None:
        for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(variable, name)


def interface_of(address: str) -> str | None:
    """The network interface that has an IPv4 or IPv6 address, if one has it."""
    for name, addresses in psutil.net_if_addrs().items():
        for one in addresses:
            is_ip = one.family in (socket.AF_INET, socket.AF_INET6)
            if is_ip and one.address.partition("%")[0] == address:
                return str(name)
    return None
