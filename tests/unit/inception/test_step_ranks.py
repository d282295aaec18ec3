"""1, 2, 3 and 4 ranks have the same losses and reach the same weights."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.inception.ranks import Training, train

MICRO_BATCHES = 4
Train = Callable[[int, int], dict[str, Any]]
# On one pytest worker, so that each number of ranks is trained once.
pytestmark = pytest.mark.xdist_group("step ranks")


def train_on(world_size: int, steps: int, folder: Path) -> dict[str, Any]:
    shares = tuple(tuple(range(rank, MICRO_BATCHES, world_size)) for rank in range(world_size))
    training = Training(steps=steps, size=8, lr=0.005, is_damaged=False, has_run_layout=True)
    return train(training, shares, folder)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Train:
    """Trains on (world_size, steps) once, and caches the result."""
    return cache(
        lambda world_size, steps: train_on(world_size, steps, tmp_path_factory.mktemp("trained"))
    )


def world_sizes(exhaustive: list[int], steps: int) -> list[Any]:
    """Three ranks with few steps; the exhaustive cases with `steps`."""
    return [pytest.param(3, 6, id="3-few")] + [
        pytest.param(n, steps, marks=pytest.mark.exhaustive, id=str(n)) for n in exhaustive
    ]


# Three ranks have 2, 1 and 1 of the four micro-batches: uneven shares are exact too.
@pytest.mark.parametrize(("world_size", "steps"), world_sizes([2, 3, 4], 30))
def test_same_curve_on_any_number_of_ranks(trained: Train, world_size: int, steps: int) -> None:
    alone, other = trained(1, steps), trained(world_size, steps)
    losses = torch.tensor(other["losses"], dtype=torch.float64)
    assert torch.allclose(losses, torch.tensor(alone["losses"], dtype=torch.float64), rtol=1e-6)
    for part in ("model", "average"):
        for name, tensor in alone[part].items():
            other_tensor = other[part][name]
            if "num_batches_tracked" in name:
                assert int(other_tensor) == int(tensor) == steps
            else:
                assert torch.allclose(other_tensor, tensor, rtol=1e-6, atol=1e-6), name


@pytest.mark.parametrize(("world_size", "steps"), world_sizes([1, 3], 30))
def test_same_number_of_ranks_is_bitwise(
    trained: Train, world_size: int, steps: int, tmp_path: Path
) -> None:
    first, again = trained(world_size, steps), train_on(world_size, steps, tmp_path)
    assert again["losses"] == first["losses"]
    for name, tensor in first["model"].items():
        assert torch.equal(again["model"][name], tensor), name
