"""GPU types as people write them, and what Ray calls them.

`cluster.accelerators` is `TYPE:COUNT` for one node: `H100:8` is eight ranks on H100s, `CPU:2`
two ranks without a GPU. The names are those of `ray.util.accelerators` (Ray 2.60), which takes
NVIDIA's from NVML: a node announces itself as `A100`, whichever memory it has, unless it was
started with a type such as `A100-80G`.
"""

import re
from dataclasses import dataclass
from difflib import get_close_matches

from orchestration.errors import JobError

CPU = "CPU"
NVIDIA = (
    *("A100", "A100-40G", "A100-80G", "A10G", "B200", "B300", "GB200", "GB300", "H100", "H20"),
    *("H200", "K80", "L4", "L40S", "P100", "P4", "RTX-PRO-6000", "T4", "V100"),
)
AMD = (  # torch drives them as it drives NVIDIA's (ROCm)
    *("AMD-Instinct-MI100", "AMD-Instinct-MI250X", "AMD-Instinct-MI250X-MI250"),
    *("AMD-Instinct-MI210", "AMD-Instinct-MI300A", "AMD-Instinct-MI300X-OAM"),
    *("AMD-Instinct-MI300X-HF", "AMD-Instinct-MI308X", "AMD-Instinct-MI325X-OAM"),
    *("AMD-Instinct-MI350X-OAM", "AMD-Instinct-MI355X-OAM"),
    *("AMD-Radeon-R9-200-HD-7900", "AMD-Radeon-HD-7900"),
)
GPU_TYPES = (*NVIDIA, *AMD)
# What Ray knows besides, and torch's DDP over NCCL or gloo has no device for.
NOT_TRAINED_ON = (
    *("Intel-GPU-Max-1550", "Intel-GPU-Max-1100", "Intel-GAUDI", "aws-neuron-core", "TPU-V2"),
    *("TPU-V3", "TPU-V4", "TPU-V5P", "TPU-V5LITEPOD", "TPU-V6E", "TPU-V7X", "Ascend910B"),
    *(
        "Ascend910B4",
        "MXC500",
        "MXC550",
        "FURIOSA_RNGD",
        "MOBILINT_ARIES",
        "MOBILINT_REGULUS",
        "M1",
        "M1-Pro",
        "M1-Max",
        "M1-Ultra",
    ),
    *("M2", "M2-Pro", "M2-Max", "M2-Ultra", "M3", "M3-Pro", "M3-Max", "Apple-Silicon"),
)
ALIASES = {
    "A10": "A10G",
    "A100-40GB": "A100-40G",
    "A100-80GB": "A100-80G",
    "A100-SXM4-40GB": "A100-40G",
    "A100-SXM4-80GB": "A100-80G",
    "A100-PCIE-40GB": "A100-40G",
    "A100-PCIE-80GB": "A100-80G",
    "A100-80GB-SXM": "A100-80G",
    "A100-80GB-PCIE": "A100-80G",
    "H100-80GB": "H100",
    "H100-80GB-HBM3": "H100",
    "H100-SXM": "H100",
    "H100-SXM5": "H100",
    "H100-PCIE": "H100",
    "H100-MEGA-80GB": "H100",
    "H200-141GB": "H200",
    "H200-SXM": "H200",
    "MI210": "AMD-Instinct-MI210",
    "MI250X": "AMD-Instinct-MI250X",
    "MI300X": "AMD-Instinct-MI300X-OAM",
    "MI325X": "AMD-Instinct-MI325X-OAM",
    "V100-32GB": "V100",
    "V100-16GB": "V100",
}
PREFIXES = ("NVIDIA-", "TESLA-", "GEFORCE-")  # as nvidia-smi and the clouds' pages have them
MIG = re.compile(r"\d+g\.\d+gb", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Accelerator:
    """What one node gives: `count` ranks, each on its own device of `type` (or on CPU cores)."""

    type: str
    count: int

    @property
    def is_gpu(self) -> bool:
        return self.type != CPU

    @property
    def marker(self) -> str:
        """The resource by which a node says that it has this type."""
        return f"accelerator_type:{self.type}"

    def __str__(self) -> str:
        return f"{self.type}:{self.count}"


def parse_accelerator(text: str, *, field: str = "cluster.accelerators") -> Accelerator:
    """`H100:8` -> Accelerator. A missing count is 1; neither case nor the maker's name matters.

    Raises JobError: an unknown type (with the nearest name), one that DDP cannot use, a MIG
    profile, a fraction or a count below 1.
    """
    written, _, count = text.strip().partition(":")
    if MIG.search(text) or "mig" in text.lower().split("-"):
        raise JobError(
            f"{field}: got {text!r}, a MIG slice; ranks talk over NCCL, which takes one slice of "
            "a GPU at most. Write whole GPUs, such as H100:8, or use MIG for `predict` alone."
        )
    name = _canonical(written)
    if name in NOT_TRAINED_ON:
        raise JobError(
            f"{field}: got {text!r}; Ray knows {name}, but torch's DDP here drives NVIDIA and AMD "
            "GPUs and CPUs. Choose one of those, such as H100:8 or CPU:4."
        )
    if name not in (CPU, *GPU_TYPES):
        by_key = {_key(one): one for one in (CPU, *GPU_TYPES, *ALIASES)}
        near = get_close_matches(_key(written), list(by_key), n=1)
        hint = (
            f"Did you mean {by_key[near[0]]}?"
            if near
            else f"Choose one of {', '.join((CPU, *NVIDIA))}, or AMD's {', '.join(AMD)}."
        )
        raise JobError(f"{field}: got {text!r}; TYPE:COUNT with a type that Ray knows. {hint}")
    if re.fullmatch(r"\s*\d*\.\d+\s*", count):
        raise JobError(
            f"{field}: got {text!r}; each rank has a device of its own: two ranks of one group on "
            f"one GPU hang in NCCL. Write whole ones, such as {name}:1."
        )
    if (count and not count.strip().isdigit()) or (count and int(count) < 1):
        raise JobError(
            f"{field}: got {text!r}; the count after ':' is a whole number of devices a node, "
            f"at least 1. Write {name}:1, or {name}:8 for eight."
        )
    return Accelerator(type=name, count=int(count) if count else 1)


def _key(written: str) -> str:
    return re.sub(r"[\s_]+", "-", written.strip()).upper()


def _canonical(written: str) -> str:
    """Ray's name of what was written, or the writing itself."""
    key = _key(written)
    for prefix in PREFIXES:
        key = key.removeprefix(prefix)
    if key in ALIASES:
        return ALIASES[key]
    return {_key(name): name for name in (CPU, *GPU_TYPES, *NOT_TRAINED_ON)}.get(key, key)
