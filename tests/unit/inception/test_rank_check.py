"""A rank whose bits differ is found, and named."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inception.rank_check import checksum, differing_ranks


@settings(deadline=None)
@given(
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8]),
    st.integers(0, 23), st.integers(0, 7),
)  # fmt: skip
def test_any_bit_changes_the_checksum(dtype: torch.dtype, element: int, bit: int) -> None:
    tensor = (
        torch.arange(24).reshape(2, 3, 2, 2).to(dtype).contiguous(memory_format=torch.channels_last)
    )
    changed = tensor.clone()
    flat = changed.permute(0, 2, 3, 1).reshape(-1)  # a view of the memory
    flat.view(torch.uint8)[element * tensor.element_size()] ^= 1 << bit
    assert checksum([tensor, tensor]) != checksum([tensor, changed])
    assert checksum([tensor]) == checksum([tensor.contiguous()])


def test_the_rank_that_differs_from_most_is_named() -> None:
    assert differing_ranks([5, 5, 7, 5]) == [2]
    assert differing_ranks([5, 7]) == [1]
    assert differing_ranks([5, 5, 5]) == []
