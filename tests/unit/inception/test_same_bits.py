"""Any number of ranks computes the same bits."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from inception.family import MODEL_NAMES
from inception.mix import MixConfig
from orchestration.run.digest import state_digest
from tests.unit.inception.ranks import Training, train

TRAINING = Training(
    steps=6, size=4, lr=0.005, is_damaged=True, has_run_layout=True, network="inception_v3"
)
WORLD_SIZES = (1, 2, 3, 4, 6, 8)
MICRO_BATCHES = (1, 2, 3, 8, 12)


def train_on(world_size: int, num_micro_batches: int, training: Training, path: Path) -> Any:
    shares = tuple(tuple(range(rank, num_micro_batches, world_size)) for rank in range(world_size))
    folder = path / str(world_size)
    folder.mkdir()
    return train(training, shares, folder)


def assert_same_bits(
    training: Training, num_micro_batches: int, path: Path, world_sizes: Sequence[int] = WORLD_SIZES
) -> None:
    alone, *others = (train_on(size, num_micro_batches, training, path) for size in world_sizes)
    for result in others:
        assert result["losses"] == alone["losses"]
        for name, tensor in alone["model"].items():
            assert torch.equal(result["model"][name], tensor), name
        assert state_digest(SimpleNamespace(**result)) == state_digest(SimpleNamespace(**alone))


def trainings(training: Training) -> list[Any]:
    return [
        *(pytest.param(replace(training, network=name), id=name) for name in MODEL_NAMES),
        pytest.param(
            replace(training, mix_config=MixConfig(mixup=0.2, cutmix=1.0), group_size=2),
            id="mixed, in groups",
        ),
        pytest.param(replace(training, frozen_until="Mixed_6a"), id="frozen stages"),
    ]


@pytest.mark.parametrize("num_micro_batches", MICRO_BATCHES)
def test_any_number_of_ranks_computes_the_same_bits(num_micro_batches: int, tmp_path: Path) -> None:
    assert_same_bits(TRAINING, num_micro_batches, tmp_path)


@pytest.mark.exhaustive
@pytest.mark.parametrize("training", trainings(TRAINING))
def test_every_network_computes_the_same_bits(training: Training, tmp_path: Path) -> None:
    assert_same_bits(training, 5, tmp_path, (1, 2, 3, 4))


@pytest.mark.grid
@pytest.mark.parametrize("num_micro_batches", MICRO_BATCHES)
@pytest.mark.parametrize("training", trainings(replace(TRAINING, steps=30)))
def test_every_case_computes_the_same_bits(
    training: Training, num_micro_batches: int, tmp_path: Path
) -> None:
    assert_same_bits(training, num_micro_batches, tmp_path)


def test_a_fast_sum_is_the_same_up_to_rounding(tmp_path: Path) -> None:
    """In float64, so that other bits are not other numbers."""
    training = replace(TRAINING, network=None)
    fast = replace(training, is_exact=False)
    alone, shared = train_on(1, 5, training, tmp_path), train_on(3, 5, fast, tmp_path)
    losses = torch.tensor(alone["losses"])
    assert torch.allclose(torch.tensor(shared["losses"]), losses, rtol=1e-5)
    for name, tensor in alone["model"].items():
        assert torch.allclose(shared["model"][name], tensor, rtol=1e-7, atol=1e-8), name
    assert not torch.equal(shared["model"]["fc.weight"], alone["model"]["fc.weight"])
