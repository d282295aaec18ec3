"""torch's process group for a worker group, over the network interface that Ray uses.

gloo binds to the address that a machine's host name resolves to, or to loopback if it resolves to
nothing (a bare container, a network namespace): ranks on other nodes then fail to connect, and Ray
reports that as an error of its controller, which no retry covers. So the ranks use the interface
with the address by which Ray reaches their node.

Ray's TorchConfig would do the rest, but the driver would import torch with its module: 3 s of CPU
at every start.
"""

import contextlib
import os
import platform
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.exceptions import GetTimeoutError
from ray.train import BackendConfig
from ray.train._internal.utils import get_address_and_port
from ray.train.backend import Backend
from ray.train.v2._internal.util import TrainingFramework

from orchestration.cluster import worker_imports

DESTROY_LIMIT_S = 30.0


@dataclass
class GroupConfig(BackendConfig):  # type: ignore[misc]
    """backend: `gloo` or `nccl`. timeout_s: of a collective: after it, another rank is lost."""

    backend: str
    timeout_s: int

    @property
    def backend_cls(self) -> type:
        return _ProcessGroup

    @property
    def framework(self) -> TrainingFramework:
        return TrainingFramework.TORCH

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class _ProcessGroup(Backend):  # type: ignore[misc]
    # NCCL's peer to peer opens the memory of other ranks' GPUs, so a rank sees all of its node.
    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: GroupConfig) -> None:
        worker_group.execute(_choose_interface)
        address, port = worker_group.execute_single(0, get_address_and_port)
        worker_group.execute(_init_group, backend_config, address, port)

    def on_shutdown(self, worker_group: Any, backend_config: GroupConfig) -> None:
        with contextlib.suppress(GetTimeoutError):
            ray.get(worker_group.execute_async(_destroy_group), timeout=DESTROY_LIMIT_S)


def _choose_interface() -> None:
    """Runs in each worker, before all other code of ours. Variables that are set already stay."""
    worker_imports.wait()
    node_address = ray.util.get_node_ip_address()
    for name, entries in psutil.net_if_addrs().items():
        if node_address in (entry.address.partition("%")[0] for entry in entries):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
            os.environ.setdefault("NCCL_SOCKET_IFNAME", name)
            return


def _init_group(config: GroupConfig, address: str, port: int) -> None:
    """Runs in all workers at once. Sets the variables of torchrun, which other libraries read."""
    import torch.distributed as dist

    context = ray.train.get_context()
    if config.backend == "nccl":  # a collective that times out ends the rank
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")
    os.environ |= {
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
        "RANK": str(context.get_world_rank()),
        "WORLD_SIZE": str(context.get_world_size()),
        "LOCAL_RANK": str(context.get_local_rank()),
        "LOCAL_WORLD_SIZE": str(context.get_local_world_size()),
        "NODE_RANK": str(context.get_node_rank()),
    }
    dist.init_process_group(config.backend, timeout=timedelta(seconds=config.timeout_s))


def _destroy_group() -> None:
    """Runs in each worker."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def device_kinds(device: Any) -> list[str]:
    """What the bits of a step depend on, of each rank: its GPU's type, or its CPU and number of
    threads; each once, in order. All ranks take part."""
    import torch
    import torch.distributed as dist

    if device.type == "cuda":
        own = torch.cuda.get_device_name(device)
    else:
        threads = torch.get_num_threads()
        own = f"{cpu_model()} ({torch.backends.cpu.get_cpu_capability()}, {threads} threads)"
    kinds = [own] * dist.get_world_size()
    dist.all_gather_object(kinds, own)
    return sorted(set(kinds))


def cpu_model() -> str:
    """As the kernel names it; the architecture where it names none, as on ARM."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.machine()


def use_rank_device(*, threads: int, is_deterministic: bool) -> Any:
    """The rank's torch.device: its GPU, now torch's current one in this thread, else the CPU, with
    so many compute threads, on whose number the bits depend (measured)."""
    import torch

    # Ray's get_device() returns cuda:0 if the node declares a GPU, so torch is asked first.
    if not torch.cuda.is_available():
        torch.set_num_threads(threads)  # whatever OMP_NUM_THREADS is on this node
        return torch.device("cpu")
    from ray.train.torch import get_device

    from inception.precision import choose_kernels

    device = get_device()
    torch.cuda.set_device(device)
    choose_kernels(is_deterministic=is_deterministic)
    return device
