"""A rank whose bits differ is found, and named."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inception.rank_check import checksum, differing_ranks
from tests.forks import run_ranks
from tests.unit.inception.ranks import differ_rank


@settings(deadline=None)
@given(
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8]),
    st.integers(0, 23), st.integers(0, 63),
)  # fmt: skip
def test_any_bit_changes_the_checksum(dtype: torch.dtype, element: int, bit: int) -> None:
    tensor = (
        torch.arange(24).reshape(2, 3, 2, 2).to(dtype).contiguous(memory_format=torch.channels_last)
    )
    changed = tensor.clone()
    flat = changed.permute(0, 2, 3, 1).reshape(-1)  # a view of the memory
    byte = element * tensor.element_size() + bit // 8 % tensor.element_size()
    flat.view(torch.uint8)[byte] ^= 1 << bit % 8
    assert checksum([tensor, tensor]) != checksum([tensor, changed])
    assert checksum([tensor]) == checksum([tensor.contiguous()])


def test_the_rank_that_differs_from_most_is_named() -> None:
    assert differing_ranks([5, 5, 7, 5]) == [2]
    assert differing_ranks([7, 5, 5]) == [0]
    assert differing_ranks([5, 5, 5]) == differing_ranks([5]) == []


@pytest.mark.parametrize("values", [[5, 7], [5, 5, 7, 7], [1, 2, 3]])
def test_without_a_majority_any_may_be_broken(values: list[int]) -> None:
    assert differing_ranks(values) == list(range(len(values)))


def test_all_ranks_learn_it_and_can_take_over_the_first_ones_bits(tmp_path: Path) -> None:
    run_ranks(differ_rank, 3, str(tmp_path), limit_s=60)
    for rank in range(3):
        assert (tmp_path / f"found-{rank}").read_text() == "rank 2, then equal: True"
