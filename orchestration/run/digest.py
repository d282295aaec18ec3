"""A digest of a training state, by which two states are compared to the last bit."""

import hashlib
from typing import Any


def state_digest(state: Any) -> str:
    """32 hexadecimal digits of SHA-256 over weights, statistics, optimizer and average (fields
    `model`, `optimizer` and `average`), whatever the tensors' layout in memory or in a file. Equal
    digests mean equal bits."""
    digest = hashlib.sha256()
    for part in (state.model, state.optimizer, state.average):
        _update(digest, part)
    return digest.hexdigest()[:32]


def _update(digest: Any, value: Any) -> None:
    import torch

    if isinstance(value, torch.Tensor):
        tensor = value.detach().cpu().contiguous()
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy())
    elif isinstance(value, dict):
        for key in sorted(value, key=str):
            digest.update(f"{key}:".encode())
            _update(digest, value[key])
    elif isinstance(value, list | tuple):
        for entry in value:
            _update(digest, entry)
    else:
        digest.update(repr(value).encode())
    digest.update(b";")
