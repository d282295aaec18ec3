"""The promise of the step: 1, 2, 3 and 4 ranks walk the same losses and reach the same weights."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[3]
STEPS, MICRO_BATCHES, SIZE = 30, 4, 8

RANK = """
import os, sys, torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel as DDP
from inception.family import build_architecture
from inception.network import build_network
from inception.optim import build_optimizer
from inception.ema import WeightAverage
from inception.statistics import average_bn_statistics
from inception.step import train_step

rank, world_size, port, out, M, size, steps = map(int, sys.argv[1:4] + ["0"] + sys.argv[5:8])
out = sys.argv[4]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank,
                        world_size=world_size)

class Batch:
    def __init__(self, index, step):
        generator = torch.Generator().manual_seed(1000 * step + index)
        self.index = index
        self.images = torch.randint(0, 256, (size, 3, 75, 75), generator=generator,
                                    dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
        self.targets = torch.randint(0, 5, (size,), generator=generator)
        self.weights = torch.ones(size, dtype=torch.float64)

class Double(torch.nn.Module):
    # float64 throughout, and a batch norm that does not magnify: the curves of a network this
    # narrow part at up to a hundredfold a step, so that rounding would hide a real error in how
    # ranks share a step
    def __init__(self):
        super().__init__()
        self.network = build_network(build_architecture("inception_v3", num_classes=5,
                                                        input_size=75, width=0.1,
                                                        bn_eps=0.1)).double()

    def forward(self, images):
        return self.network(images.double())

model = Double().to(memory_format=torch.channels_last)
optimizer = build_optimizer(model, name="rmsprop_tf", lr=0.005, weight_decay=4e-5)
average = WeightAverage(model)
ddp = DDP(model, broadcast_buffers=False, gradient_as_bucket_view=True)
losses = []
torch.manual_seed(rank)  # a process's own generator must not matter
for step in range(steps):
    mine = [Batch(j, step) for j in range(rank, M, world_size)]
    result = train_step(ddp, optimizer, mine, num_micro_batches=M, world_size=world_size, seed=5,
                        step=step, clip_norm=2.0)
    average.update()
    loss = result.loss.clone()
    dist.all_reduce(loss)
    losses.append((float(loss), float(result.grad_norm)))
average_bn_statistics(model)
average.average_statistics()
if rank == 0:
    torch.save({"losses": losses, "model": model.state_dict(),
                "average": average.state_dict()["tensors"]}, out)
# Nothing is left to do, and gloo's threads may still hold tensors: taking the interpreter down
# under them now and then aborts ("terminate called without an active exception", pytorch #190489).
os._exit(0)
"""


def train(world_size: int, out: Path) -> dict[str, object]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), str(world_size), str(port), str(out),
             str(MICRO_BATCHES), str(SIZE), str(STEPS)],
            cwd=ROOT, env=environment,
        )
        for rank in range(world_size)
    ]  # fmt: skip
    try:
        assert [rank.wait(120) for rank in ranks] == [0] * world_size
    finally:
        for rank in ranks:
            rank.kill()
    found: dict[str, object] = torch.load(out, weights_only=True)
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    return train(1, tmp_path_factory.mktemp("alone") / "out.pt")


# Three ranks hold 2, 1 and 1 of the four micro-batches: uneven shares are exact too.
@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_same_curve_on_any_number_of_ranks(
    alone: dict[str, object], world_size: int, tmp_path: Path
) -> None:
    other = train(world_size, tmp_path / "out.pt")
    losses = torch.tensor(other["losses"], dtype=torch.float64)
    assert torch.allclose(losses, torch.tensor(alone["losses"], dtype=torch.float64), rtol=1e-6)
    for part in ("model", "average"):
        for name, tensor in alone[part].items():  # type: ignore[attr-defined]
            found = other[part][name]  # type: ignore[index]
            if "num_batches_tracked" in name:
                assert int(found) == int(tensor) == STEPS
            else:
                assert torch.allclose(found, tensor, rtol=1e-6, atol=1e-6), name


@pytest.mark.parametrize("world_size", [1, 3])
def test_same_number_of_ranks_is_bitwise(world_size: int, tmp_path: Path) -> None:
    first, again = (train(world_size, tmp_path / name) for name in ("first.pt", "again.pt"))
    assert again["losses"] == first["losses"]
    for name, tensor in first["model"].items():  # type: ignore[attr-defined]
        assert torch.equal(again["model"][name], tensor), name  # type: ignore[index]
