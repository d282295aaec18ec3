"""A small exact network that ranks train together, in processes of their own; what rank 0 wrote."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from inception.ema import WeightAverage
from inception.family import build_architecture
from inception.network import InceptionNet, build_network
from inception.optim import build_optimizer
from inception.statistics import average_bn_statistics
from inception.step import train_step
from tests.forks import run_ranks

SEED = 5
Shares = tuple[tuple[int, ...], ...]  # the micro-batches of each rank


@dataclass(frozen=True, slots=True)
class Batch:
    """A micro-batch as a loader gives it."""

    index: int
    images: Tensor
    targets: Tensor
    weights: Tensor | None


@dataclass(frozen=True, slots=True)
class Training:
    """is_damaged: the first sample of every second micro-batch has no weight. is_as_in_a_run:
    weights are channels last and gradients views of their buckets."""

    steps: int
    size: int  # samples of a micro-batch
    lr: float
    is_damaged: bool
    is_as_in_a_run: bool


def batch(index: int, step: int, *, size: int = 4, is_damaged: bool = True) -> Batch:
    generator = torch.Generator().manual_seed(1000 * step + index)
    images = torch.randint(0, 256, (size, 3, 75, 75), generator=generator, dtype=torch.uint8)
    targets = torch.randint(0, 5, (size,), generator=generator)
    weights = torch.ones(size, dtype=torch.float64)
    if is_damaged:
        weights[0] = index % 2
    return Batch(index, images.contiguous(memory_format=torch.channels_last), targets, weights)


def exact_network() -> InceptionNet:
    """float64, and a batch norm that does not magnify: what differs is an error, not rounding.

    With eps 1e-3 and four values a channel, a difference of 1e-16 grows a hundredfold a step.
    """
    network = build_network(
        build_architecture("inception_v3", num_classes=5, input_size=75, width=0.1, bn_eps=0.1)
    ).double()
    network.register_forward_pre_hook(lambda _, inputs: (inputs[0].double(),))
    return network


def work_rank(rank: int, training: Training, shares: Shares, folder: str) -> None:
    """One rank's steps; rank 0 writes what came out."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    world_size = len(shares)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world_size
    )
    network = exact_network()
    if training.is_as_in_a_run:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = build_optimizer(network, name="rmsprop_tf", lr=training.lr, weight_decay=4e-5)
    average = WeightAverage(network)
    model = DistributedDataParallel(
        network,
        broadcast_buffers=False,
        gradient_as_bucket_view=training.is_as_in_a_run,
    )
    torch.manual_seed(rank)  # a process's own generator must not matter
    losses = []
    for step in range(training.steps):
        result = train_step(
            model,
            optimizer,
            [
                batch(j, step, size=training.size, is_damaged=training.is_damaged)
                for j in shares[rank]
            ],
            num_micro_batches=sum(map(len, shares)),
            world_size=world_size,
            seed=SEED,
            step=step,
            clip_norm=2.0,
        )
        average.update()
        loss = result.loss.clone()
        dist.all_reduce(loss)
        losses.append((float(loss), float(result.grad_norm)))
    average_bn_statistics(network)
    average.average_statistics()
    if rank == 0:
        found = {
            "losses": losses,
            "model": network.state_dict(),
            "average": average.state_dict()["tensors"],
        }
        torch.save(found, f"{folder}/out.pt")
    dist.barrier()
    # At once: gloo's threads now and then abort an interpreter that takes its time to end
    # ("terminate called without an active exception", pytorch #190489).
    os._exit(0)


def train(training: Training, shares: Shares, folder: Path) -> dict[str, Any]:
    run_ranks(work_rank, len(shares), training, shares, str(folder), limit_s=120)
    found: dict[str, Any] = torch.load(folder / "out.pt", weights_only=True)
    return found
