"""RandAugment (Cubuk et al., arXiv 1909.13719): a few of fourteen operations at one magnitude.

Its operations and their ranges are the paper's (table 6 of AutoAugment, arXiv 1805.09501): 0 to 10
spans each range. Made with Pillow on the resized uint8 image, so a pixel does not depend on the
device; what rotation and shear uncover is grey.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from datasets.images.augment import OPERATIONS

GREY = (128, 128, 128)
LARGEST = 10.0  # magnitude


def _affine(image: Image.Image, a: float, b: float, c: float, d: float, e: float) -> Image.Image:
    """Output (x, y) takes the pixel at (a x + b y + c, d x + y + e)."""
    return image.transform(
        image.size,
        Image.Transform.AFFINE,
        (a, b, c, d, 1.0, e),
        Image.Resampling.BILINEAR,
        fillcolor=GREY,
    )


def _enhance(
    kind: Callable[[Image.Image], ImageEnhance._Enhance], image: Image.Image, level: float
) -> Image.Image:
    return kind(image).enhance(1 + 0.9 * level)


# name -> (image, level in -1..1) -> image. Those that know no direction take its size.
_TABLE: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "identity": lambda image, level: image,
    "autocontrast": lambda image, level: ImageOps.autocontrast(image),
    "equalize": lambda image, level: ImageOps.equalize(image),
    "rotate": lambda image, level: image.rotate(
        30 * level, Image.Resampling.BILINEAR, fillcolor=GREY
    ),
    "solarize": lambda image, level: ImageOps.solarize(image, round(256 * (1 - abs(level)))),
    "posterize": lambda image, level: ImageOps.posterize(image, 8 - round(4 * abs(level))),
    "color": partial(_enhance, ImageEnhance.Color),
    "contrast": partial(_enhance, ImageEnhance.Contrast),
    "brightness": partial(_enhance, ImageEnhance.Brightness),
    "sharpness": partial(_enhance, ImageEnhance.Sharpness),
    "shear_x": lambda image, level: _affine(image, 1, 0.3 * level, 0, 0, 0),
    "shear_y": lambda image, level: _affine(image, 1, 0, 0, 0.3 * level, 0),
    # 150 of AutoAugment's 331 pixels.
    "translate_x": lambda image, level: _affine(image, 1, 0, 150 / 331 * level * image.width, 0, 0),
    "translate_y": lambda image, level: _affine(
        image, 1, 0, 0, 0, 150 / 331 * level * image.height
    ),
}
NAMES = tuple(_TABLE)


def rand_augment(image: Tensor, numbers: list[float], *, operations: int, magnitude: float) -> None:
    """Changes uint8 (3, S, S), channels last, by `operations` of the fourteen, drawn from
    `numbers` (two for each: which, and in which direction)."""
    rows = image.permute(1, 2, 0)  # (S, S, 3)
    pixels = Image.fromarray(rows.numpy())
    for i in range(operations):
        which, side = numbers[OPERATIONS + 2 * i : OPERATIONS + 2 * i + 2]
        level = magnitude / LARGEST * (1 if side < 0.5 else -1)
        pixels = _TABLE[NAMES[int(which * len(NAMES))]](pixels, level)
    rows.copy_(torch.from_numpy(np.array(pixels)))
