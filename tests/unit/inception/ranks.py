"""A small exact network that several ranks, each a process, train together."""

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
from inception.mix import MixConfig
from inception.network import InceptionNet, build_network
from inception.optim import build_optimizer
from inception.predictions import gather_predictions, make_predictions
from inception.rank_check import checksum, copy_from_first, find_differing
from inception.reduction import StepReduction
from inception.step import train_step
from inception.tree_sum import TreeSum
from tests.forks import run_ranks

SEED = 5
Shares = tuple[tuple[int, ...], ...]  # indices of each rank's micro-batches


@dataclass(frozen=True, slots=True)
class Batch:
    """A MicroBatch of the loader."""

    index: int
    images: Tensor
    targets: Tensor
    weights: Tensor


@dataclass(frozen=True, slots=True)
class Training:
    """is_damaged: the first sample of every second micro-batch has weight zero. has_run_layout:
    weights are channels last and gradients are views of their buckets, as in a run. network: in
    float32, as in a run; None: the exact one."""

    steps: int
    size: int  # samples of a micro-batch
    lr: float
    is_damaged: bool
    has_run_layout: bool
    network: str | None = None
    frozen_until: str | None = None
    group_size: int | None = None
    mix_config: MixConfig = MixConfig()  # noqa: RUF009 - immutable
    is_exact: bool = True


def batch(
    index: int,
    step: int,
    *,
    size: int = 4,
    is_damaged: bool = True,
    dtype: torch.dtype = torch.float64,
) -> Batch:
    generator = torch.Generator().manual_seed(1000 * step + index)
    images = torch.randint(0, 256, (size, 3, 75, 75), generator=generator, dtype=torch.uint8)
    targets = torch.randint(0, 5, (size,), generator=generator)
    weights = torch.ones(size, dtype=dtype)
    if is_damaged:
        weights[0] = index % 2
    return Batch(index, images.contiguous(memory_format=torch.channels_last), targets, weights)


def exact_network(*, name: str = "inception_v3", **architecture: Any) -> InceptionNet:
    """In float64, with a batch-norm eps that does not amplify rounding, so that a difference is an
    error.

    With eps 1e-3 and four values per channel, a difference of 1e-16 grows a hundredfold per step.
    """
    network = build_network(
        build_architecture(
            name, num_classes=5, input_size=75, width=0.1, bn_eps=0.1, **architecture
        )
    ).double()
    network.register_forward_pre_hook(lambda _, inputs: (inputs[0].double(),))
    return network


def one_step(
    micro_batches: list[Batch],
    clip_norm: float | None,
    *,
    group_size: int | None = None,
    mix_config: MixConfig = MixConfig(),  # noqa: B008 - immutable
    **architecture: Any,
) -> tuple[InceptionNet, float]:
    """-> (the exact network after a step of one rank, the gradient's norm before clipping)."""
    network = exact_network(**architecture)
    network.set_group_size(group_size)
    optimizer = build_optimizer(network, name="sgd", lr=1.0, weight_decay=0.0, momentum=0.0)
    result = train_step(
        network,
        optimizer,
        micro_batches,
        StepReduction(network, TreeSum.of(len(micro_batches), 1), 0),
        seed=SEED,
        step=0,
        clip_norm=clip_norm,
        mix_config=mix_config,
    )
    return network, float(result.grad_norm)


def train_rank(rank: int, training: Training, shares: Shares, folder: str) -> None:
    """Trains one rank; rank 0 writes the result."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    world_size = len(shares)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size
    )
    if training.network is None:
        network = exact_network()
    else:
        network = build_network(
            build_architecture(training.network, num_classes=5, input_size=75, width=0.1)
        )
    if training.frozen_until is not None:
        network.freeze_until(training.frozen_until)
    network.set_group_size(training.group_size)
    if training.has_run_layout:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = build_optimizer(network, name="rmsprop_tf", lr=training.lr, weight_decay=4e-5)
    average = WeightAverage(network)
    model = DistributedDataParallel(
        network,
        broadcast_buffers=False,
        gradient_as_bucket_view=training.has_run_layout,
    )
    owners = {index: rank for rank, indices in enumerate(shares) for index in indices}
    tree = TreeSum(tuple(owners[index] for index in range(len(owners))), world_size)
    reduction = StepReduction(model, tree, rank, is_exact=training.is_exact)
    torch.manual_seed(rank)  # a process's global generator must not matter
    losses = []
    for step in range(training.steps):
        step_result = train_step(
            model,
            optimizer,
            [
                batch(
                    j,
                    step,
                    size=training.size,
                    is_damaged=training.is_damaged,
                    dtype=torch.float64 if training.network is None else torch.float32,
                )
                for j in shares[rank]
            ],
            reduction,
            seed=SEED,
            step=step,
            clip_norm=2.0,
            mix_config=training.mix_config,
        )
        average.update()
        losses.append((float(step_result.loss), float(step_result.grad_norm)))
    if rank == 0:
        result = {
            "losses": losses,
            "model": network.state_dict(),
            "optimizer": optimizer.state_dict(),
            "average": average.state_dict()["tensors"],
        }
        torch.save(result, f"{folder}/out.pt")
    dist.barrier()
    # Exits without cleanup: gloo's threads sometimes abort an interpreter that shuts down normally
    # ("terminate called without an active exception", pytorch #190489).
    os._exit(0)


def train(training: Training, shares: Shares, folder: Path) -> dict[str, Any]:
    run_ranks(train_rank, len(shares), training, shares, str(folder), limit_s=120)
    result: dict[str, Any] = torch.load(folder / "out.pt", weights_only=True)
    return result


def differ_rank(rank: int, folder: str) -> None:
    """One of three ranks, the last of which has one other bit; each writes whom it finds, and
    whether rank 0's values are its own then."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=3
    )
    network = exact_network().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    tensors = list(network.state_dict().values())
    expected = checksum(tensors)
    if rank == 2:
        weight = tensors[0].permute(0, 2, 3, 1)  # its memory
        weight.view(torch.int64).flatten()[5] ^= 1 << 13
    found = find_differing(checksum(tensors), f"rank {rank}")
    copy_from_first(tensors, torch.device("cpu"))
    is_equal = checksum(tensors) == expected
    Path(folder, f"found-{rank}").write_text(f"{' '.join(found)}, then equal: {is_equal}")
    dist.barrier()
    os._exit(0)


def gather_rank(rank: int, folder: str) -> None:
    """One of two ranks, of which only the second has predictions; the first writes what it gets."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    p = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
    samples, targets = torch.tensor([[0, 0], [0, 1]]), torch.tensor([0, 1])
    parts = [make_predictions(p, targets, torch.ones(2), samples, ["a", "b"])] if rank else []
    gathered = gather_predictions(parts)
    if gathered is not None:
        Path(folder, "keys").write_text(" ".join(gathered.keys))
    dist.barrier()
    os._exit(0)
