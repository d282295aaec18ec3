"""Parses accelerator types, and maps their common names to Ray's.

`cluster.accelerators` is `TYPE:COUNT` for one node: `H100:8` is eight ranks on H100s, `CPU:2`
two ranks without a GPU. The names are those of `ray.util.accelerators` (Ray 2.60), which asks NVML
for NVIDIA's: a node reports `A100` whatever its memory, unless it was started with a more precise
type such as `A100-80G`.
"""

import re
from dataclasses import dataclass
from difflib import get_close_matches

from orchestration.errors import JobError

CPU = "CPU"
NVIDIA = (
    "A100", "A100-40G", "A100-80G", "A10G", "B200", "B300", "GB200", "GB300", "H100", "H20", "H200",
    "K80", "L4", "L40S", "P100", "P4", "RTX-PRO-6000", "T4", "V100",
)  # fmt: skip
AMD = (  # torch supports them through ROCm, with the same API
    "AMD-Instinct-MI100", "AMD-Instinct-MI250X", "AMD-Instinct-MI250X-MI250",
    "AMD-Instinct-MI210", "AMD-Instinct-MI300A", "AMD-Instinct-MI300X-OAM",
    "AMD-Instinct-MI300X-HF", "AMD-Instinct-MI308X", "AMD-Instinct-MI325X-OAM",
    "AMD-Instinct-MI350X-OAM", "AMD-Instinct-MI355X-OAM", "AMD-Radeon-R9-200-HD-7900",
    "AMD-Radeon-HD-7900",
)  # fmt: skip
GPU_TYPES = (*NVIDIA, *AMD)
# Ray knows these, but DDP over NCCL or gloo cannot train on them.
UNSUPPORTED = (
    "Intel-GPU-Max-1550", "Intel-GPU-Max-1100", "Intel-GAUDI", "aws-neuron-core", "TPU-V2",
    "TPU-V3", "TPU-V4", "TPU-V5P", "TPU-V5LITEPOD", "TPU-V6E", "TPU-V7X", "Ascend910B",
    "Ascend910B4", "MXC500", "MXC550", "FURIOSA_RNGD", "MOBILINT_ARIES", "MOBILINT_REGULUS", "M1",
    "M1-Pro", "M1-Max", "M1-Ultra", "M2", "M2-Pro", "M2-Max", "M2-Ultra", "M3", "M3-Pro", "M3-Max",
    "Apple-Silicon",
)  # fmt: skip
_ALIASES_BY_TYPE = {
    "A10G": "A10",
    "A100-40G": "A100-40GB A100-SXM4-40GB A100-PCIE-40GB",
    "A100-80G": "A100-80GB A100-SXM4-80GB A100-PCIE-80GB A100-80GB-SXM A100-80GB-PCIE",
    "H100": "H100-80GB H100-80GB-HBM3 H100-SXM H100-SXM5 H100-PCIE H100-MEGA-80GB",
    "H200": "H200-141GB H200-SXM",
    "V100": "V100-16GB V100-32GB",
    "AMD-Instinct-MI210": "MI210",
    "AMD-Instinct-MI250X": "MI250X",
    "AMD-Instinct-MI300X-OAM": "MI300X",
    "AMD-Instinct-MI325X-OAM": "MI325X",
}
ALIASES = {alias: name for name, text in _ALIASES_BY_TYPE.items() for alias in text.split()}
PREFIXES = ("NVIDIA-", "TESLA-", "GEFORCE-")  # in the names of nvidia-smi and of cloud providers
MIG = re.compile(r"\d+g\.\d+gb", re.IGNORECASE)


def _normalize(name: str) -> str:
    return re.sub(r"[\s_]+", "-", name.strip()).upper()


RAY_NAMES = {_normalize(name): name for name in (CPU, *GPU_TYPES, *UNSUPPORTED)} | ALIASES


@dataclass(frozen=True, kw_only=True, slots=True)
class Accelerator:
    """One node's devices: `count` ranks, each on its own device of `type` (or on CPU cores)."""

    type: str
    count: int

    @property
    def is_gpu(self) -> bool:
        return self.type != CPU

    @property
    def ray_resource(self) -> str:
        """The custom resource by which a node advertises this type to Ray."""
        return f"accelerator_type:{self.type}"

    def __str__(self) -> str:
        return f"{self.type}:{self.count}"


def parse_accelerator(text: str, *, field: str = "cluster.accelerators") -> Accelerator:
    """`H100:8` -> Accelerator. The count defaults to 1; case and vendor prefix are ignored.

    field: named in errors. Raises JobError: a type that is unknown (with the nearest name) or that
    DDP cannot use, a MIG profile, a count that is not a whole number of at least 1.
    """
    type_text, _, count = text.strip().partition(":")
    if MIG.search(text) or "mig" in text.lower().split("-"):
        raise JobError(
            f"{field}: got {text!r}, a MIG slice; ranks communicate over NCCL, which supports at "
            "most one slice of a GPU. Write whole GPUs, such as H100:8; `predict` alone can use "
            "MIG."
        )
    key = _normalize(type_text)
    for prefix in PREFIXES:
        key = key.removeprefix(prefix)
    name = RAY_NAMES.get(key)
    if name in UNSUPPORTED:
        raise JobError(
            f"{field}: got {text!r}; Ray knows {name}, but torch's DDP here drives NVIDIA and AMD "
            "GPUs and CPUs. Choose one of those, such as H100:8 or CPU:4."
        )
    if name is None:
        names = {_normalize(known): known for known in (CPU, *GPU_TYPES, *ALIASES)}
        near = get_close_matches(_normalize(type_text), list(names), n=1)
        hint = (
            f"Did you mean {names[near[0]]}?"
            if near
            else f"Choose one of {', '.join((CPU, *NVIDIA))}, or AMD's {', '.join(AMD)}."
        )
        raise JobError(f"{field}: got {text!r}; TYPE:COUNT with a type that Ray knows. {hint}")
    if re.fullmatch(r"\s*\d*\.\d+\s*", count):
        raise JobError(
            f"{field}: got {text!r}; each rank needs its own device: two ranks of one group on one "
            f"GPU hang in NCCL. Write a whole number, such as {name}:1."
        )
    if count and (not count.strip().isdigit() or int(count) < 1):
        raise JobError(
            f"{field}: got {text!r}; the count after ':' is a whole number of devices per node, "
            f"at least 1. Write {name}:1, or {name}:8 for eight."
        )
    return Accelerator(type=name, count=int(count) if count else 1)
