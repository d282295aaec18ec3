"""Mixup and CutMix, on the device: each sample of a micro-batch with the one opposite.

What is drawn is keyed by (seed, step, micro-batch), and partners are of the same micro-batch, so
the result does not depend on the number of ranks.
"""

from dataclasses import dataclass
from math import sqrt
from random import Random

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Mix:
    """Alphas of the Beta(alpha, alpha) that a micro-batch's share is drawn from; 0 is off. Where
    both are on, each micro-batch takes one of them, with equal chances."""

    mixup: float = 0.0  # 1710.09412
    cutmix: float = 0.0  # 1905.04899


def mix(images: Tensor, how: Mix, key: int) -> tuple[Tensor, float]:
    """images: float (N, 3, H, W) -> (the same shape, the share of each sample's own label).

    Sample i is mixed with sample N - 1 - i, whose label has the rest.
    """
    random = Random(key)
    is_cut = how.cutmix > 0 and (how.mixup == 0 or random.random() < 0.5)
    alpha = how.cutmix if is_cut else how.mixup
    if alpha == 0:
        return images, 1.0
    share = random.betavariate(alpha, alpha)
    partners = images.flip(0)  # (N, 3, H, W)
    if not is_cut:
        return torch.lerp(partners, images, share), share
    height, width = images.shape[2:]
    side = sqrt(1 - share)
    rows, columns = round(height * side), round(width * side)
    # The box's centre is uniform over the image; what stands out of it is cut off.
    top, left = random.randrange(height) - rows // 2, random.randrange(width) - columns // 2
    down = slice(max(0, top), min(height, top + rows))
    across = slice(max(0, left), min(width, left + columns))
    mixed = images.clone()
    mixed[:, :, down, across] = partners[:, :, down, across]
    cut = max(0, down.stop - down.start) * max(0, across.stop - across.start)
    return mixed, 1 - cut / (height * width)
