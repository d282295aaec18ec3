"""Whether all ranks have the same bits: they compute the same sums, so a rank that differs runs on
a broken machine."""

from collections import Counter
from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of an element


def checksum(tensors: Iterable[Tensor]) -> int:
    """A number that any changed bit changes, at the price of a sum; computed on their device."""
    total: Tensor | int = 0
    for tensor in tensors:
        words = tensor.detach().view(WORDS[tensor.element_size()])
        total = total * 31 + words.sum(dtype=torch.int64)  # modulo 2**64
    return int(total)


def find_differing(own: int, name: str) -> list[str]:
    """own: this rank's checksum. name: what to call it. All ranks take part; -> on all of them, the
    names of the ranks that differ from most."""
    gathered: list[tuple[int, str]] = [(own, name)] * dist.get_world_size()
    dist.all_gather_object(gathered, (own, name))
    return [gathered[rank][1] for rank in differing_ranks([value for value, _ in gathered])]


def differing_ranks(values: Sequence[int]) -> list[int]:
    """Those whose value is not the most frequent one; of two equally frequent, the lowest rank's
    counts as right."""
    most = Counter(values).most_common(1)[0][0] if values else 0
    return [rank for rank, value in enumerate(values) if value != most]
