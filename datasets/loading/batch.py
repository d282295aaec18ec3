"""Batches: rows filled in place while they are decoded, and what was skipped on the way."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import get_worker_info

from datasets.errors import DataError, ImageError, LabelError
from datasets.images.augment import COLOURS

FIRST_MESSAGES = 5  # of damaged samples, kept for the log
KINDS = ("shard", "image", "label")  # of damage: its range was lost, its image or its label is bad
NO_COLOUR = (0.0, 1.0, 0.0, 1.0, 0.0)


@dataclass(frozen=True, slots=True, eq=False)
class MicroBatch:
    """Micro-batch `index` of a step's global batch (of an evaluation: its batch number).

    images: uint8 (m, 3, S, S) in channels-last layout, pinned where there is a GPU; targets: int64
    (m,); weights: float32 (m,), zero for padding and for a damaged sample; samples: int64 (m, 2),
    (shard, sample) of each. What the device is to do (device.py): mirrored: bool (m,); colours:
    float32 (m, 5), or None. keys: the samples' names ("" for padding). Where each sample of an
    evaluation has V views, images hold V in a row for each, (m x V, 3, S, S).
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
    """Samples side by side, each decoded right into its row; several micro-batches end to end, or
    the part of them that a loader process makes.

    images as a micro-batch's; the rest are numpy arrays, which take a value ten times faster than
    a tensor does. errors: what was wrong, by row.
    """

    images: Tensor
    targets: NDArray[np.int64]
    weights: NDArray[np.float32]
    samples: NDArray[np.int64]
    mirrored: NDArray[np.bool_]
    colours: NDArray[np.float32] | None
    errors: dict[int, DataError]
    keys: dict[int, str]
    views: int = 1

    def __len__(self) -> int:
        return len(self.targets)

    def put(self, places: NDArray[np.int64], part: "BatchBuffer") -> None:
        """Copies the rows of `part` to these places."""
        self.images[torch.from_numpy(places)] = part.images
        self.targets[places] = part.targets
        self.weights[places] = part.weights
        self.samples[places] = part.samples
        self.mirrored[places] = part.mirrored
        if self.colours is not None and part.colours is not None:
            self.colours[places] = part.colours
        self.keys.update({int(places[row]): key for row, key in part.keys.items()})
        self.errors.update({int(places[row]): error for row, error in part.errors.items()})

    def blank(self, row: int, error: DataError | None = None) -> None:
        """Makes a row black and weightless: a damaged sample, or padding."""
        self.images[row * self.views : (row + 1) * self.views] = 0
        self.weights[row] = 0.0
        if error is not None:
            self.errors[row] = error

    def micro_batches(self, indices: Sequence[int], size: int) -> list[MicroBatch]:
        """The rows as micro-batches of `size`, with these indices; nothing is copied."""
        return [
            MicroBatch(
                index=index,
                images=self.images[begin * self.views : (begin + size) * self.views],
                targets=torch.from_numpy(self.targets[begin : begin + size]),
                weights=torch.from_numpy(self.weights[begin : begin + size]),
                samples=torch.from_numpy(self.samples[begin : begin + size]),
                mirrored=torch.from_numpy(self.mirrored[begin : begin + size]),
                colours=(
                    None
                    if self.colours is None
                    else torch.from_numpy(self.colours[begin : begin + size])
                ),
                keys=tuple(self.keys.get(row, "") for row in range(begin, begin + size))
                if self.keys
                else (),
            )
            for index, begin in zip(indices, range(0, len(self), size), strict=True)
        ]


@dataclass(slots=True)
class Damages:
    """What a loader skipped: how many of each kind (KINDS), and the first messages."""

    counts: Counter[str] = field(default_factory=Counter)
    first: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        return self.counts.total()

    def add(self, error: DataError) -> None:
        kinds = {ImageError: "image", LabelError: "label"}
        self.counts[kinds.get(type(error), "shard")] += 1
        if len(self.first) < FIRST_MESSAGES:
            self.first.append(str(error))


def empty_buffer(
    count: int,
    pixels: int,
    *,
    views: int = 1,
    has_colours: bool = False,
    device: torch.device = torch.device("cpu"),  # noqa: B008 - immutable
) -> BatchBuffer:
    """Rows to be filled; their images hold anything yet. device: where images are decoded."""
    # Not in a loader process: pinning makes a CUDA context, and its rows are copied anyway.
    is_pinned = device.type == "cpu" and get_worker_info() is None and torch.cuda.is_available()
    # An evaluation takes its batches in inference mode, whose tensors other threads cannot fill.
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
        colours=(
            np.tile(np.array(NO_COLOUR, dtype=np.float32), (count, 1)) if has_colours else None
        ),
        errors={},
        keys={},
        views=views,
    )


assert len(NO_COLOUR) == COLOURS
