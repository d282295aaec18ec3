"""Batches, filled row by row as samples are decoded, and what was damaged in them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import get_worker_info

from datasets.errors import DataError, ImageError, LabelError
from datasets.images.augment import NO_COLOUR
from datasets.order import Ints

MAX_MESSAGES = 5  # of damaged samples, for the log
DAMAGE_KINDS = ("shard", "image", "label")  # of damage


@dataclass(frozen=True, slots=True, eq=False)
class MicroBatch:
    """Micro-batch `index` of a step's global batch, or batch `index` of an evaluation.

    images: uint8 (m, 3, S, S) in channels-last layout, pinned if there is a GPU. targets: int64
    (m,). weights: float32 (m,), zero for padding and damaged samples. samples: int64 (m, 2),
    (shard, sample). mirrored: bool (m,), colours: float32 (m, 5) or None: what the device is to do
    (device.py). keys: the samples' names, "" for padding. In an evaluation with V views per sample,
    images are (m x V, 3, S, S), the V of a sample in a row.
    """

    index: int
    images: Tensor
    targets: Tensor
    weights: Tensor
    samples: Tensor
    mirrored: Tensor
    colours: Tensor | None = None
    keys: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class BatchBuffer:
    """A batch under construction: a rank's micro-batches of a step end to end, a loader process's
    part of them, or an evaluation batch. Samples are decoded right into their rows.

    images as a micro-batch's; the rest are numpy arrays, whose items are set ten times faster than
    a tensor's. errors, keys: by row. views: images per row.
    """

    images: Tensor
    targets: Ints
    weights: NDArray[np.float32]
    samples: Ints
    mirrored: NDArray[np.bool_]
    colours: NDArray[np.float32] | None
    errors: dict[int, DataError]
    keys: dict[int, str]
    views: int = 1

    def copy_from(self, part: "BatchBuffer", rows: Ints) -> None:
        """Copies the rows of `part`, a buffer of one view, to these rows."""
        self.images[torch.from_numpy(rows)] = part.images
        self.targets[rows] = part.targets
        self.weights[rows] = part.weights
        self.samples[rows] = part.samples
        self.mirrored[rows] = part.mirrored
        if self.colours is not None and part.colours is not None:
            self.colours[rows] = part.colours
        self.keys.update({int(rows[row]): key for row, key in part.keys.items()})
        self.errors.update({int(rows[row]): error for row, error in part.errors.items()})

    def blank(self, row: int, error: DataError | None = None) -> None:
        """Makes a row black and its weight zero: a damaged sample, or padding."""
        self.images[row * self.views : (row + 1) * self.views] = 0
        self.weights[row] = 0.0
        if error is not None:
            self.errors[row] = error

    def micro_batches(self, indices: Sequence[int], size: int) -> list[MicroBatch]:
        """Micro-batches of `size` rows with these indices, as views: nothing is copied."""
        batches = []
        for index, begin in zip(indices, range(0, len(self.targets), size), strict=True):
            end = begin + size
            colours = None if self.colours is None else torch.from_numpy(self.colours[begin:end])
            batches.append(
                MicroBatch(
                    index=index,
                    images=self.images[begin * self.views : end * self.views],
                    targets=torch.from_numpy(self.targets[begin:end]),
                    weights=torch.from_numpy(self.weights[begin:end]),
                    samples=torch.from_numpy(self.samples[begin:end]),
                    mirrored=torch.from_numpy(self.mirrored[begin:end]),
                    colours=colours,
                    keys=tuple(self.keys.get(row, "") for row in range(begin, end)),
                )
            )
        return batches


@dataclass(slots=True)
class DamageCounts:
    """What a loader skipped: how many samples by kind, and the first messages."""

    counts: Counter[str] = field(default_factory=Counter)
    first: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        return self.counts.total()

    def add(self, error: DataError) -> None:
        kinds = {ImageError: "image", LabelError: "label"}
        self.counts[kinds.get(type(error), "shard")] += 1
        if len(self.first) < MAX_MESSAGES:
            self.first.append(str(error))


def empty_buffer(
    count: int,
    pixels: int,
    *,
    views: int = 1,
    has_colours: bool = False,
    device: torch.device = torch.device("cpu"),  # noqa: B008 - immutable
) -> BatchBuffer:
    """A buffer of `count` rows whose images are uninitialised. device: where images are decoded."""
    # Not in a loader process: pinning makes a CUDA context, and its rows are copied anyway.
    is_pinned = device.type == "cpu" and get_worker_info() is None and torch.cuda.is_available()
    # An evaluation iterates in inference mode; tensors made in it cannot be filled by threads.
    with torch.inference_mode(False):
        images = torch.empty(
            (count * views, pixels, pixels, 3),
            dtype=torch.uint8,
            device=device,
            pin_memory=is_pinned,
        )
    return BatchBuffer(
        images=images.permute(0, 3, 1, 2),  # (count x views, 3, pixels, pixels), channels last
        targets=np.zeros(count, dtype=np.int64),
        weights=np.zeros(count, dtype=np.float32),
        samples=np.full((count, 2), -1, dtype=np.int64),
        mirrored=np.zeros(count, dtype=np.bool_),
        colours=np.array([NO_COLOUR] * count, dtype=np.float32) if has_colours else None,
        errors={},
        keys={},
        views=views,
    )
