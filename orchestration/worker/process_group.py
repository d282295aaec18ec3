"""How the ranks of a worker group find each other: torch's process group, over the right interface.

gloo binds to the address that a machine's host name resolves to, and to loopback where it resolves
to nothing (a bare container, a network namespace): ranks on other nodes then fail to connect, and
Ray calls that a controller's error, which no retry covers. The address by which Ray itself reaches
a node is the right one.

Ray's own TorchConfig does the rest of this; but its module, which the driver would import, brings
torch with it: 3 s of CPU of every start.
"""

import contextlib
import os
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

import psutil
import ray
from ray.exceptions import GetTimeoutError
from ray.train import BackendConfig
from ray.train._internal.utils import get_address_and_port
from ray.train.backend import Backend
from ray.train.v2._internal.util import TrainingFramework

from orchestration.cluster import worker_imports

DESTROY_LIMIT_S = 30.0  # of a group whose ranks have left


@dataclass
class GroupConfig(BackendConfig):  # type: ignore[misc]
    """backend: `gloo` or `nccl`. timeout_s: a rank that waits this long for another has lost it."""

    backend: str
    timeout_s: int

    @property
    def backend_cls(self) -> type:
        return _ProcessGroup

    @property
    def train_func_context(self) -> Any:
        return on_rank_device

    @property
    def framework(self) -> TrainingFramework:
        return TrainingFramework.TORCH

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class _ProcessGroup(Backend):  # type: ignore[misc]
    # A rank may open its neighbours' memory (NCCL's peer to peer), so it sees its node's GPUs.
    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: GroupConfig) -> None:
        worker_group.execute(_choose_interface)
        address, port = worker_group.execute_single(0, get_address_and_port)
        joined = [
            worker_group.execute_single_async(
                rank, _join, backend_config.backend, rank, len(worker_group), address, port,
                backend_config.timeout_s,
            )
            for rank in range(len(worker_group))
        ]  # fmt: skip
        ray.get(joined)

    def on_shutdown(self, worker_group: Any, backend_config: GroupConfig) -> None:
        with contextlib.suppress(GetTimeoutError):
            ray.get(worker_group.execute_async(_leave), timeout=DESTROY_LIMIT_S)


def _choose_interface() -> None:
    """Runs in each worker, before all else of ours; what its environment says already stays."""
    worker_imports.wait()
    name = interface_of(ray.util.get_node_ip_address())
    if name is not None:
        for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(variable, name)


def _join(backend: str, rank: int, world_size: int, address: str, port: int, limit_s: int) -> None:
    """Runs in each worker, all at once. The variables are those of torch's own launcher, which
    other libraries read."""
    import torch.distributed as dist

    context = ray.train.get_context()
    if backend == "nccl":  # a collective that hangs ends the rank, and does not wait for ever
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")
    os.environ |= {
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": str(context.get_local_rank()),
        "LOCAL_WORLD_SIZE": str(context.get_local_world_size()),
        "NODE_RANK": str(context.get_node_rank()),
    }
    dist.init_process_group(
        backend, init_method="env://", rank=rank, world_size=world_size,
        timeout=timedelta(seconds=limit_s),
    )  # fmt: skip


def _leave() -> None:
    """Runs in each worker."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


@contextlib.contextmanager
def on_rank_device() -> Iterator[None]:
    """Around what a rank runs: its GPU is torch's present one."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(rank_device())
    yield


def rank_device() -> Any:
    """The rank's torch.device: its GPU, else the CPU."""
    import torch

    # Ray's get_device() names cuda:0 wherever the node claims a GPU, so torch is asked first.
    if not torch.cuda.is_available():
        return torch.device("cpu")
    from ray.train.torch import get_device

    return get_device()


def interface_of(address: str) -> str | None:
    """The network interface that has an IPv4 or IPv6 address, if one has it."""
    for name, addresses in psutil.net_if_addrs().items():
        for one in addresses:
            is_ip = one.family in (socket.AF_INET, socket.AF_INET6)
            if is_ip and one.address.partition("%")[0] == address:
                return str(name)
    return None
