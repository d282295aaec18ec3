"""RandAugment (Cubuk et al., arXiv 1909.13719): a few of fourteen operations at one magnitude.

The operations and their ranges are those of AutoAugment's table 6 (arXiv 1805.09501); magnitudes
0 to 10 span each range. Pillow applies them to the resized uint8 image, so that pixels do not
depend on the device. What a rotation, shear or translation uncovers is grey.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from datasets.images.augment import OPERATIONS_AT

GREY = (128, 128, 128)
MAX_MAGNITUDE = 10.0


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


# name -> (image, level in -1..1) -> image. An operation without a direction takes |level|.
_OPERATIONS: dict[str, Callable[[Image.Image, float], Image.Image]] = {
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
NAMES = tuple(_OPERATIONS)


def rand_augment(image: Tensor, numbers: list[float], *, operations: int, magnitude: float) -> None:
    """Applies `operations` of the fourteen to uint8 (3, S, S) in channels-last layout, in place.

    numbers: augment.draw's; each operation takes two, for its name and its direction.
    """
    pixels = image.permute(1, 2, 0)  # (S, S, 3)
    picture = Image.fromarray(pixels.numpy())
    for i in range(operations):
        which, direction = numbers[OPERATIONS_AT + 2 * i : OPERATIONS_AT + 2 * i + 2]
        level = magnitude / MAX_MAGNITUDE * (1 if direction < 0.5 else -1)
        picture = _OPERATIONS[NAMES[int(which * len(NAMES))]](picture, level)
    pixels.copy_(torch.from_numpy(np.array(picture)))
