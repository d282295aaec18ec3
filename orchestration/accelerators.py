"""GPU types as people write them, and what Ray calls them.

`cluster.accelerators` is `TYPE:COUNT` for one node: `H100:8` is eight ranks on H100s, `CPU:2`
two ranks without a GPU. The names are NVIDIA's among `ray.util.accelerators` (Ray 2.60), which
takes them from NVML: a node announces itself as `A100`, whichever memory it has.
"""

from dataclasses import dataclass
from difflib import get_close_matches

from orchestration.errors import JobError

CPU = "CPU"
GPU_TYPES = [
    "A100",
    "A100-40G",
    "A100-80G",
    "A10G",
    "B200",
    "B300",
    "GB200",
    "GB300",
    "H100",
    "H20",
    "H200",
    "K80",
    "L4",
    "L40S",
    "P100",
    "P4",
    "RTX-PRO-6000",
    "T4",
    "V100",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Accelerator:
    """What one node gives: `count` ranks, each on its own device of `type` (or on CPU cores)."""

    type: str
    count: int

    @property
    def is_gpu(self) -> bool:
        return self.type != CPU


def parse_accelerator(text: str, *, field: str = "cluster.accelerators") -> Accelerator:
    """`H100:8` -> Accelerator. A missing count is 1; case does not matter.

    Raises JobError for an unknown type (with the nearest name) or a count below 1.
    """
    name, _, count = text.strip().partition(":")
    name = name.strip().upper()
    known = [CPU, *GPU_TYPES]
    if name not in known:
        near = get_close_matches(name, known, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"Choose one of {', '.join(known)}."
        raise JobError(f"{field}: got {text!r}; TYPE:COUNT with a type that Ray knows. {hint}")
    if (count and not count.strip().isdigit()) or (count and int(count) < 1):
        raise JobError(
            f"{field}: got {text!r}; the count after ':' is a whole number of devices a node, "
            f"at least 1. Write {name}:1, or {name}:8 for eight."
        )
    return Accelerator(type=name, count=int(count) if count else 1)
