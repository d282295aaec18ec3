"""A micro-batch, filled in place, and what was skipped on the way to it."""

from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor

from datasets.augment import COLOURS
from datasets.errors import DataError

FIRST_MESSAGES = 5  # of damaged samples, kept for the log


@dataclass(frozen=True, slots=True, eq=False)
class MicroBatch:
    """Micro-batch `index` of a step's global batch (of an evaluation: its batch number).

    images: uint8 (m, 3, S, S) in channels-last layout, pinned where there is a GPU; targets: int64
    (m,); weights: float32 (m,), zero for padding and for a damaged sample; samples: int64 (m, 2),
    (shard, sample) of each. What the device is to do (device.py): mirrored: bool (m,); colours:
    float32 (m, 5), or None.
    """

    index: int
    images: Tensor
    targets: Tensor
    weights: Tensor
    samples: Tensor
    mirrored: Tensor
    colours: Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """One decoded sample: uint8 (3, S, S), or the error that it is without one."""

    shard: int
    sample: int
    image: Tensor | None = None
    target: int = 0
    is_mirrored: bool = False
    colour: tuple[float, ...] | None = None
    error: DataError | None = None


@dataclass(slots=True)
class Damages:
    """What a loader skipped: how many of each kind (the error's class), and the first messages."""

    counts: Counter[str] = field(default_factory=Counter)
    first: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        return self.counts.total()

    def add(self, error: DataError) -> None:
        self.counts[type(error).__name__] += 1
        if len(self.first) < FIRST_MESSAGES:
            self.first.append(str(error))


def empty_batch(index: int, size: int, pixels: int, *, has_colours: bool = False) -> MicroBatch:
    """A micro-batch to be filled; its images hold anything yet."""
    is_pinned = torch.cuda.is_available()
    images = torch.empty((size, pixels, pixels, 3), dtype=torch.uint8, pin_memory=is_pinned)
    colours = torch.tensor([[0.0, 1.0, 0.0, 1.0, 0.0]]).repeat(size, 1) if has_colours else None
    assert colours is None or colours.shape == (size, COLOURS)
    return MicroBatch(
        index=index,
        images=images.permute(0, 3, 1, 2),  # (size, 3, pixels, pixels), channels last
        targets=torch.zeros(size, dtype=torch.int64),
        weights=torch.zeros(size),
        samples=torch.full((size, 2), -1, dtype=torch.int64),
        mirrored=torch.zeros(size, dtype=torch.bool),
        colours=colours,
    )


def fill_slot(batch: MicroBatch, slot: int, view: View | None) -> None:
    """Writes a sample to its place; a damaged one, or padding, is black and weighs nothing."""
    if view is None or view.image is None:
        batch.images[slot] = 0
    else:
        batch.images[slot] = view.image
        batch.targets[slot] = view.target
        batch.weights[slot] = 1.0
        if view.is_mirrored:
            batch.mirrored[slot] = True
        if batch.colours is not None and view.colour is not None:
            batch.colours[slot] = torch.tensor(view.colour)
    if view is not None:
        batch.samples[slot, 0] = view.shard
        batch.samples[slot, 1] = view.sample
