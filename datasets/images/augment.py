"""Random crops, mirroring and colour distortion of training images; the crops of evaluations.

Random numbers are keyed by (seed, epoch, shard, sample), so that no process, thread or rank can
change them. The crop and RandAugment are applied here, where the image is decoded; the mirror and
the colour distortion are only drawn here and applied on the device (device.py). Resizing is torch's
antialiased bilinear on uint8 in channels-last layout, the fastest exact one measured.
"""

from dataclasses import dataclass
from math import ceil, exp, log, sqrt

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datasets.images.region import Box
from datasets.order import AUGMENT, random_floats

CROP_TRIES = 10
SCALES_OF_224 = (256, 288, 320, 352)  # GoogLeNet's shorter sides
NO_COLOUR = (0.0, 1.0, 0.0, 1.0, 0.0)  # brightness, saturation, hue, contrast, order
# Where each purpose's random numbers begin. New ones go to the end, so that the others stay.
FLIP_AT = 4 * CROP_TRIES
COLOUR_AT = FLIP_AT + 1
OPERATIONS_AT = COLOUR_AT + len(NO_COLOUR)


@dataclass(frozen=True, kw_only=True, slots=True)
class Augment:
    """area, aspect: ranges of a random crop's share of the image and of its width / height. flip:
    probability of a mirror. colour: strength of the distortion, 1 is Inception's. operations,
    magnitude: RandAugment's."""

    area: tuple[float, float] = (0.08, 1.0)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    colour: float = 0.0
    operations: int = 0
    magnitude: float = 9.0


def draw(seed: int, epoch: int, shard: int, sample: int, augment: Augment) -> list[float]:
    """The sample's random numbers in [0, 1): four for each try of a crop, one for the mirror and,
    if they are used, five for the colour and two for each RandAugment operation."""
    count = COLOUR_AT
    if augment.colour or augment.operations:
        count = OPERATIONS_AT + 2 * augment.operations
    return random_floats(seed, AUGMENT, epoch, shard, sample, count)


def crop_box(numbers: list[float], height: int, width: int, augment: Augment) -> Box:
    """A crop of uniform area and log-uniform aspect (as in Inception's own preprocessing): the
    first of ten tries that fits, else the largest centred crop of an allowed aspect."""
    low, high = log(augment.aspect[0]), log(augment.aspect[1])
    for i in range(CROP_TRIES):
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


def evaluation_boxes(
    height: int, width: int, *, crops: int, fraction: float, input_size: int
) -> list[Box]:
    """The crops of an evaluation, each to be resized to input_size; mirrors are the device's.

    1: the central square, `fraction` of the shorter side. 12 and 144 are GoogLeNet's (1409.4842,
    section 7), half of them mirrors: of a square, its corners and centre at input size and the
    whole. 144 takes four scales (shorter side 256, 288, 320, 352 for 224 px; for another input in
    proportion and rounded up, as the papers print none) by three squares along the longer side;
    12 takes the first scale's central square.
    """
    if crops == 1:
        return [center_box(height, width, fraction)]
    shorter = min(height, width)
    rest = max(height, width) - shorter
    scales = SCALES_OF_224 if crops == 144 else SCALES_OF_224[:1]
    starts = (0, rest // 2, rest) if crops == 144 else (rest // 2,)
    boxes = []
    for scale in scales:
        side = max(1, round(shorter * input_size / ceil(input_size * scale / 224)))
        last = shorter - side
        for start in starts:
            top, left = (start, 0) if height > width else (0, start)
            offsets = [(0, 0), (0, last), (last, 0), (last, last), (last // 2, last // 2)]
            boxes += [(top + down, left + right, side, side) for down, right in offsets]
            boxes.append((top, left, shorter, shorter))
    return boxes


def count_views(crops: int) -> int:
    """Images cut from a sample for 1, 12 or 144 crops: mirrors are not counted."""
    return max(1, crops // 2)


def resize_views(target: Tensor, image: NDArray[np.uint8], *, crops: int, fraction: float) -> None:
    """Resizes each evaluation crop of uint8 (H, W, 3) into its row of `target`, uint8
    (views, 3, S, S) in channels-last layout."""
    boxes = evaluation_boxes(
        image.shape[0], image.shape[1], crops=crops, fraction=fraction, input_size=target.shape[-1]
    )
    for number, box in enumerate(boxes):
        resize_into(target[number : number + 1], image, box)


def is_mirrored(numbers: list[float], augment: Augment) -> bool:
    return numbers[FLIP_AT] < augment.flip


def colour_of(numbers: list[float], augment: Augment) -> tuple[float, ...]:
    """(brightness to add, saturation factor, hue to add in turns, contrast factor, order of the
    four): the ranges of TF-slim's inception_preprocessing.distort_color times the strength."""
    strength = augment.colour
    a, b, c, d, order = numbers[COLOUR_AT:OPERATIONS_AT]
    return (
        strength * (32 / 255) * (2 * a - 1),
        1 + strength * 0.5 * (2 * b - 1),
        strength * 0.2 * (2 * c - 1),
        1 + strength * 0.5 * (2 * d - 1),
        float(int(4 * order)),
    )


def resize_into(target: Tensor, image: NDArray[np.uint8], box: Box) -> None:
    """Resizes the crop of uint8 (H, W, 3) into `target`, uint8 (1, 3, S, S) in channels-last
    layout."""
    top, left, height, width = box
    # A view of the crop with the strides of a channels-last batch of one is resized where it lies,
    # straight into the batch. Permuting and adding an axis would give the same pixels after a
    # copy, and so would F.interpolate, whose result has to be copied to its row.
    row = image.strides[0]
    batch = torch.as_strided(
        torch.from_numpy(image),
        (1, 3, height, width),
        (row * image.shape[0], 1, row, 3),
        top * row + 3 * left,
    )  # (1, 3, h, w), channels last
    torch.ops.aten._upsample_bilinear2d_aa.out(
        batch, target.shape[2:], False, None, None, out=target
    )
