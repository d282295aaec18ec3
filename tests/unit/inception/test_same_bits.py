"""Any number of ranks computes the same bits."""

from pathlib import Path

import pytest
import torch

from tests.unit.inception.ranks import Training, train

TRAINING = Training(
    steps=6, size=4, lr=0.005, is_damaged=True, has_run_layout=True, is_float32=True
)


@pytest.mark.parametrize("num_micro_batches", [1, 2, 3, 8, 12])
def test_same_bits(num_micro_batches: int, tmp_path: Path) -> None:
    results = []
    for world_size in (1, 2, 3, 4, 6, 8):
        shares = tuple(
            tuple(range(rank, num_micro_batches, world_size)) for rank in range(world_size)
        )
        folder = tmp_path / str(world_size)
        folder.mkdir()
        results.append(train(TRAINING, shares, folder))
    alone = results[0]
    for result in results[1:]:
        assert result["losses"] == alone["losses"]
        for part in ("model", "average"):
            for name, tensor in alone[part].items():
                assert torch.equal(result[part][name], tensor), name
