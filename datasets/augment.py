"""Crops and flips as pure functions of the sample's identity.

Random numbers are keyed by (seed, epoch, shard, sample): no process, thread or rank can change
what an image looks like. Resizing is torch's antialiased bilinear on uint8 in channels-last
layout, the fastest exact one measured.
"""

from dataclasses import dataclass
from math import exp, log, sqrt

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from datasets.order import AUGMENT, random_words

TRIES = 10
Box = tuple[int, int, int, int]  # top, left, height, width


@dataclass(frozen=True, kw_only=True, slots=True)
class Augment:
    """Random-resized crop (share of the area, width/height ratio) and mirror probability."""

    area: tuple[float, float] = (0.08, 1.0)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5


def draw(seed: int, epoch: int, shard: int, sample: int) -> list[float]:
    """The sample's random numbers in [0, 1): four for each try of a crop, then the flip's."""
    words = random_words(seed, AUGMENT, epoch, shard, sample, 4 * TRIES + 1)
    return [float(unit) for unit in (words >> np.uint64(11)).astype(np.float64) * 2.0**-53]


def crop_box(numbers: list[float], height: int, width: int, augment: Augment) -> Box:
    """A crop with uniform area and log-uniform aspect (as Inception's own preprocessing draws
    them), the first of ten tries that fits; else the largest centred crop of an allowed aspect."""
    low, high = log(augment.aspect[0]), log(augment.aspect[1])
    for i in range(TRIES):
        a, b, c, d = numbers[4 * i : 4 * i + 4]
        area = height * width * (augment.area[0] + a * (augment.area[1] - augment.area[0]))
        ratio = exp(low + b * (high - low))
        w, h = round(sqrt(area * ratio)), round(sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(c * (height - h + 1)), int(d * (width - w + 1)), h, w
    ratio = min(max(width / height, augment.aspect[0]), augment.aspect[1])
    w = min(width, max(1, round(height * ratio)))
    h = min(height, max(1, round(width / ratio)))
    return (height - h) // 2, (width - w) // 2, h, w


def center_box(height: int, width: int, fraction: float) -> Box:
    """The central square whose side is `fraction` of the shorter side."""
    side = max(1, round(min(height, width) * fraction))
    return (height - side) // 2, (width - side) // 2, side, side


def crop_resized(image: NDArray[np.uint8], box: Box, size: int, *, is_mirrored: bool) -> Tensor:
    """The crop of uint8 (H, W, 3), resized to uint8 (3, size, size) in channels-last layout."""
    top, left, height, width = box
    # The crop as a view with the strides of a channels-last batch of one: torch then resizes it
    # where it lies. Permuting and adding an axis gives the same pixels after a copy.
    row = 3 * image.shape[1]
    batch = torch.as_strided(
        torch.from_numpy(image),
        (1, 3, height, width),
        (row * image.shape[0], 1, row, 3),
        top * row + 3 * left,
    )  # (1, 3, h, w), channels last
    resized = F.interpolate(
        batch, size=(size, size), mode="bilinear", antialias=True, align_corners=False
    )  # (1, 3, size, size)
    return (resized.flip(-1) if is_mirrored else resized)[0]


def augmented(
    image: NDArray[np.uint8], augment: Augment, size: int, *, numbers: list[float]
) -> Tensor:
    """A training view of uint8 (H, W, 3): uint8 (3, size, size)."""
    box = crop_box(numbers, image.shape[0], image.shape[1], augment)
    return crop_resized(image, box, size, is_mirrored=numbers[-1] < augment.flip)


def evaluated(image: NDArray[np.uint8], size: int, *, fraction: float) -> Tensor:
    """The evaluation view of uint8 (H, W, 3): uint8 (3, size, size)."""
    box = center_box(image.shape[0], image.shape[1], fraction)
    return crop_resized(image, box, size, is_mirrored=False)
