"""Number and memory formats by device, and CUDA's kernels."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import nn

from inception.errors import unknown_name
from inception.recipes import PRECISIONS


def autocast_for(
    device: torch.device, precision: str
) -> Callable[[], AbstractContextManager[object]]:
    """Makes the context in which the forward pass runs.

    `auto` is bfloat16 on GPUs that compute it natively and float32 elsewhere: on a CPU without
    AVX-512 or AMX, bfloat16 was 8.7 times slower (measured). Raises ModelError for a name that is
    not in PRECISIONS.
    """
    if precision not in PRECISIONS:
        raise unknown_name("model.precision", precision, PRECISIONS)
    is_native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "bf16" or (precision == "auto" and is_native):
        return partial(torch.autocast, device.type, dtype=torch.bfloat16)
    return nullcontext


def choose_kernels(*, is_deterministic: bool) -> None:
    """Sets which of CUDA's kernels this process uses, before it uses any: those that compute the
    same bits each time, or those that are fastest for its shapes.

    TF32 stays as torch has it: it rounds more, but always the same. An operation without a
    deterministic kernel is named in a warning.
    """
    torch.backends.cudnn.benchmark = not is_deterministic
    if is_deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
    torch.use_deterministic_algorithms(is_deterministic, warn_only=True)
    # Nothing here reads uninitialized memory.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def to_device_format(model: nn.Module, device: torch.device) -> None:
    """Moves the model in place to the device and to channels last, the faster layout on CPU and
    GPU. To be called before an optimizer or average is built: buffers become new tensors."""
    model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
