"""A step's result with unusual shares: ranks without a micro-batch, one rank with all of them."""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from inception.evaluate import evaluate
from inception.family import build_architecture
from inception.layers import normalize
from inception.network import InceptionNet, build_network
from inception.optim import build_optimizer
from inception.precision import autocast_for, to_device_format
from inception.statistics import average_bn_statistics
from inception.step import train_step

STEPS, SIZE, SEED, DEADLINE_S = 6, 4, 5, 90.0
Shares = tuple[tuple[int, ...], ...]  # the micro-batches of each rank


@dataclass(frozen=True, slots=True)
class Batch:
    """A micro-batch as a loader gives it."""

    index: int
    images: Tensor
    targets: Tensor
    weights: Tensor | None


def batch(index: int, step: int) -> Batch:
    generator = torch.Generator().manual_seed(1000 * step + index)
    images = torch.randint(0, 256, (SIZE, 3, 75, 75), generator=generator, dtype=torch.uint8)
    targets = torch.randint(0, 5, (SIZE,), generator=generator)
    weights = torch.ones(SIZE, dtype=torch.float64)
    weights[0] = index % 2  # a damaged sample in every second micro-batch
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


def work_rank(rank: int, shares: Shares, folder: str) -> None:
    """One rank's steps; rank 0 writes what came out."""
    torch.set_num_threads(1)
    world_size = len(shares)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world_size
    )
    network = exact_network()
    optimizer = build_optimizer(network, name="rmsprop_tf", lr=0.02, weight_decay=4e-5)
    model = DistributedDataParallel(network, broadcast_buffers=False)
    torch.manual_seed(rank)  # a process's own generator must not matter
    losses = []
    for step in range(STEPS):
        result = train_step(
            model,
            optimizer,
            [batch(j, step) for j in shares[rank]],
            num_micro_batches=sum(map(len, shares)),
            world_size=world_size,
            seed=SEED,
            step=step,
            clip_norm=2.0,
        )
        loss = result.loss.clone()
        dist.all_reduce(loss)
        losses.append((float(loss), float(result.grad_norm)))
    average_bn_statistics(network)
    if rank == 0:
        torch.save({"losses": losses, "model": network.state_dict()}, f"{folder}/out.pt")
    dist.barrier()
    # At once: gloo's threads now and then abort an interpreter that takes its time to end
    # ("terminate called without an active exception", pytorch #190489).
    os._exit(0)


def train(shares: Shares, folder: Path) -> dict[str, Any]:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    context = mp.spawn(work_rank, (shares, str(folder)), nprocs=len(shares), join=False)  # type: ignore[attr-defined, no-untyped-call]
    end = time.monotonic() + DEADLINE_S
    while not context.join(timeout=1.0):
        if time.monotonic() > end:
            for process in context.processes:
                process.kill()
            pytest.fail(f"{len(shares)} ranks were not done after {DEADLINE_S} s")
    found: dict[str, Any] = torch.load(folder / "out.pt", weights_only=True)
    return found


@pytest.mark.parametrize(
    ("alone", "shared"),
    [
        pytest.param(((0, 1),), ((0,), (1,), ()), id="a rank without one"),
        pytest.param(((0,),), ((), (0,)), id="rank 0 without one"),
        pytest.param(((0, 1),), ((0, 1), ()), id="as many as ranks, all on one"),
        pytest.param(((0, 1, 2),), ((2, 0), (1,)), id="uneven, in another order"),
    ],
)
def test_result_does_not_depend_on_the_shares(
    alone: Shares, shared: Shares, tmp_path: Path
) -> None:
    (tmp_path / "alone").mkdir()
    (tmp_path / "shared").mkdir()
    one, other = train(alone, tmp_path / "alone"), train(shared, tmp_path / "shared")
    # The loss is summed in float32; the weights are exact to float64.
    assert torch.allclose(torch.tensor(other["losses"]), torch.tensor(one["losses"]), rtol=1e-5)
    assert one["losses"][0][1] > 2.0, "the gradient should be clipped, or clipping is not tested"
    for name, tensor in one["model"].items():
        if name.endswith("num_batches_tracked"):
            assert int(other["model"][name]) == int(tensor) == STEPS, name
        else:
            assert torch.allclose(other["model"][name], tensor, rtol=1e-7, atol=1e-8), name


def one_step(micro_batches: list[Batch], clip_norm: float | None) -> tuple[InceptionNet, float]:
    network = exact_network()
    optimizer = build_optimizer(network, name="sgd", lr=1.0, weight_decay=0.0, momentum=0.0)
    result = train_step(
        network,
        optimizer,
        micro_batches,
        num_micro_batches=len(micro_batches),
        world_size=1,
        seed=SEED,
        step=0,
        clip_norm=clip_norm,
    )
    return network, float(result.grad_norm)


def gradient_norm(network: InceptionNet) -> float:
    return float(torch.stack([p.grad.norm() for p in network.parameters()]).norm())  # type: ignore[union-attr]


def test_norm_is_the_one_before_clipping() -> None:
    free, norm = one_step([batch(1, 0)], None)
    assert gradient_norm(free) == pytest.approx(norm, rel=1e-9)
    clipped, same = one_step([batch(1, 0)], norm / 4)
    assert same == norm
    assert gradient_norm(clipped) == pytest.approx(norm / 4, rel=1e-5)


def test_floats_and_absent_weights_are_the_plain_case() -> None:
    plain = batch(1, 0)
    scaled = Batch(1, normalize(plain.images), plain.targets, None)
    first, _ = one_step([plain], None)
    second, _ = one_step([scaled], None)
    for (name, a), b in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    cpu = torch.device("cpu")
    assert evaluate(first, [plain], cpu).result() == evaluate(first, [scaled], cpu).result()


def test_a_damaged_sample_gives_no_gradient_through_its_target() -> None:
    sample = batch(0, 0)
    assert sample.weights is not None
    assert sample.weights[0] == 0
    targets = sample.targets.clone()
    targets[0] = (targets[0] + 1) % 5
    first, _ = one_step([sample], None)
    second, _ = one_step([Batch(0, sample.images, targets, sample.weights)], None)
    assert torch.equal(first.state_dict()["fc.weight"], second.state_dict()["fc.weight"])


def test_normalize_maps_bytes_to_one_around_zero_and_keeps_the_layout() -> None:
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).repeat(2, 1)[:, :, None, None]
    wide = images.expand(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    scaled = normalize(wide)
    assert scaled.is_contiguous(memory_format=torch.channels_last)
    assert scaled[0, :, 0, 0].tolist() == pytest.approx([-1.0, -0.6, 1.0])
    assert normalize(scaled) is scaled


def test_cpu_computes_in_float32_unless_told() -> None:
    cpu = torch.device("cpu")
    a = torch.ones(2, 2)
    for precision, dtype in (
        ("auto", torch.float32),
        ("fp32", torch.float32),
        ("bf16", torch.bfloat16),
    ):
        with autocast_for(cpu, precision)():
            assert (a @ a).dtype == dtype
    with pytest.raises(ValueError, match=r"model\.precision: got 'fp3'; .* Did you mean fp32\?"):
        autocast_for(cpu, "fp3")


def test_device_format_is_channels_last() -> None:
    model = torch.nn.Conv2d(3, 4, 3)
    to_device_format(model, torch.device("cpu"))
    assert model.weight.is_contiguous(memory_format=torch.channels_last)
