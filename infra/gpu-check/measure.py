"""Shared by the parts: the device, timing, micro-batches, a network in training."""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from datasets.loading.batch import MicroBatch, empty_buffer
from datasets.loading.device import to_device
from inception.family import build_architecture
from inception.network import build_network
from inception.optim import build_optimizer
from inception.precision import autocast_for, to_device_format
from inception.reduction import StepReduction
from inception.step import StepResult, train_step
from inception.tree_sum import TreeSum

HAS_CUDA = torch.cuda.is_available()
CPU = torch.device("cpu")
DEVICE = torch.device("cuda", 0) if HAS_CUDA else CPU
NUM_CLASSES = 1000


def synchronize() -> None:
    if HAS_CUDA:
        torch.cuda.synchronize()


def median_step_s(step: Callable[[], object], *, warmup: int, steps: int) -> float:
    """Median over blocks of `steps` steps; the device is idle at both ends of a block."""
    for _ in range(warmup):
        step()
    synchronize()
    times = []
    for _ in range(5 if HAS_CUDA else 1):
        start = time.perf_counter()
        for _ in range(steps):
            step()
        synchronize()
        times.append((time.perf_counter() - start) / steps)
    return sorted(times)[len(times) // 2]


def reset_peak_memory() -> None:
    if HAS_CUDA:
        torch.cuda.reset_peak_memory_stats()


def peak_gib() -> float | None:
    return round(torch.cuda.max_memory_allocated() / 2**30, 2) if HAS_CUDA else None


def random_micro_batches(
    count: int,
    size: int,
    pixels: int,
    device: torch.device = DEVICE,
    num_classes: int = NUM_CLASSES,
) -> list[MicroBatch]:
    buffer = empty_buffer(count * size, pixels)
    buffer.images.random_(0, 256)
    buffer.targets[:] = torch.randint(0, num_classes, (count * size,))
    buffer.weights[:] = 1.0
    return [to_device(batch, device) for batch in buffer.micro_batches(range(count), size)]


@contextmanager
def process_group(device: torch.device = DEVICE) -> Iterator[None]:
    """A process group of one rank, which DDP needs."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    with tempfile.TemporaryDirectory() as folder:
        store = dist.FileStore(f"{folder}/store", 1)
        dist.init_process_group(backend, store=store, rank=0, world_size=1)
        try:
            yield
        finally:
            dist.destroy_process_group()


class Training:
    """The network, optimizer and step as in a run. compile_mode: of torch.compile, None without.
    group_size: rows that batch norm takes together."""

    def __init__(
        self,
        pixels: int,
        *,
        width: float = 1.0,
        precision: str = "auto",
        device: torch.device = DEVICE,
        compile_mode: str | None = None,
        group_size: int | None = None,
        num_classes: int = NUM_CLASSES,
    ) -> None:
        architecture = build_architecture(
            "inception_v3", num_classes=num_classes, input_size=pixels, width=width
        )
        self.network = build_network(architecture, seed=0).train()
        self.network.set_group_size(group_size)
        to_device_format(self.network, device)
        self.optimizer = build_optimizer(
            self.network, name="rmsprop_tf", lr=0.045, weight_decay=4e-5
        )
        self.autocast = autocast_for(device, precision)
        self.module = self.network
        if compile_mode is not None:
            self.module = torch.compile(self.module, mode=compile_mode)
        self.step_number = 0
        self.wrap()

    def wrap(self) -> None:
        """In DDP, anew in each process group."""
        self.ddp = DistributedDataParallel(
            self.module, broadcast_buffers=False, gradient_as_bucket_view=True
        )
        self.reduction: StepReduction | None = None

    def step(self, micro_batches: list[MicroBatch]) -> StepResult:
        if self.reduction is None:  # every step has as many micro-batches as the first
            self.reduction = StepReduction(self.ddp, TreeSum.of(len(micro_batches), 1), 0)
        self.step_number += 1
        return train_step(
            self.ddp,
            self.optimizer,
            micro_batches,
            self.reduction,
            seed=0,
            step=self.step_number,
            clip_norm=2.0,
            autocast=self.autocast,
        )
