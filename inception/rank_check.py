"""Whether all ranks have the same bits: they compute the same sums, so a rank that differs runs on
a broken machine."""

from collections import Counter
from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of an element


def checksum(tensors: Iterable[Tensor]) -> int:
    """A number that any one changed bit changes, at the price of a sum on their device. (Changes
    that cancel each other out in the sum are not seen.)"""
    total: Tensor | int = 0
    for tensor in tensors:
        words = tensor.detach().view(WORDS[tensor.element_size()])
        total = total * 31 + words.sum(dtype=torch.int64)  # modulo 2**64
    return int(total)


def find_differing(own: int, name: str) -> list[str]:
    """own: this rank's checksum. name: what to call it. All ranks take part; -> on all of them, the
    names of the ranks that differ from most, or of all, if there is no majority."""
    gathered: list[tuple[int, str]] = [(own, name)] * dist.get_world_size()
    dist.all_gather_object(gathered, (own, name))
    return [gathered[rank][1] for rank in differing_ranks([value for value, _ in gathered])]


def copy_from_first(tensors: Iterable[Tensor], device: torch.device) -> None:
    """Gives all ranks rank 0's values of the tensors on `device`. All ranks take part."""
    for tensor in tensors:
        if tensor.device == device:
            values = tensor.contiguous()  # the weights are channels last
            dist.broadcast(values, src=0)
            tensor.copy_(values)


def differing_ranks(values: Sequence[int]) -> list[int]:
    """Those whose value is not that of more than half of all; all, if more than half have none."""
    most, count = Counter(values).most_common(1)[0]
    if 2 * count <= len(values):
        return list(range(len(values)))
    return [rank for rank, value in enumerate(values) if value != most]
