"""A micro-batch, filled in place, and what was skipped on the way to it."""

from collections import Counter
from dataclasses import dataclass, field
from threading import Lock

import torch
from torch import Tensor

from datasets.errors import DataError

FIRST_MESSAGES = 5  # of damaged samples, kept for the log


@dataclass(frozen=True, slots=True, eq=False)
class MicroBatch:
    """Micro-batch `index` of a step's global batch (of an evaluation: its batch number).

    images: uint8 (m, 3, S, S) in channels-last layout; targets: int64 (m,); weights: float32
    (m,), zero for padding and for a damaged sample; samples: int64 (m, 2), (shard, sample) of each.
    """

    index: int
    images: Tensor
    targets: Tensor
    weights: Tensor
    samples: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """One decoded sample; without image and with weight zero where it is damaged and skipped."""

    image: Tensor | None
    target: int
    shard: int
    sample: int


@dataclass(slots=True)
class Damages:
    """What a loader skipped: how many of each kind (the error's class), and the first messages."""

    counts: Counter[str] = field(default_factory=Counter)
    first: list[str] = field(default_factory=list)
    _lock: Lock = field(default_factory=Lock, repr=False)  # decoding threads add to it

    @property
    def total(self) -> int:
        return self.counts.total()

    def add(self, error: DataError) -> None:
        with self._lock:
            self.counts[type(error).__name__] += 1
            if len(self.first) < FIRST_MESSAGES:
                self.first.append(str(error))


def empty_batch(index: int, size: int, pixels: int) -> MicroBatch:
    images = torch.zeros((size, pixels, pixels, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    return MicroBatch(
        index=index,
        images=images,  # (size, 3, pixels, pixels), channels last
        targets=torch.zeros(size, dtype=torch.int64),
        weights=torch.zeros(size),
        samples=torch.full((size, 2), -1, dtype=torch.int64),
    )


def fill_slot(batch: MicroBatch, slot: int, view: View) -> None:
    if view.image is not None:
        batch.images[slot] = view.image
        batch.targets[slot] = view.target
        batch.weights[slot] = 1.0
    batch.samples[slot, 0] = view.shard
    batch.samples[slot, 1] = view.sample
