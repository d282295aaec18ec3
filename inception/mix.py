"""Mixup and CutMix on the device: sample i of a micro-batch of N is mixed with sample N - 1 - i.

The random draws are keyed by (seed, step, micro-batch), and partners are in the same micro-batch,
so that the result does not depend on the number of ranks.
"""

from dataclasses import dataclass
from math import sqrt
from random import Random

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class MixConfig:
    """Alphas of the Beta(alpha, alpha) distribution from which lambda is drawn for each
    micro-batch; 0 is off. With both on, each micro-batch uses one of them, with equal chances."""

    mixup: float = 0.0  # 1710.09412
    cutmix: float = 0.0  # 1905.04899


def mix(images: Tensor, config: MixConfig, key: int) -> tuple[Tensor, float]:
    """images: float (N, 3, H, W) -> (mixed images of the same shape, lambda, the share of each
    sample's own label)."""
    random = Random(key)
    is_cutmix = config.cutmix > 0 and (config.mixup == 0 or random.random() < 0.5)
    alpha = config.cutmix if is_cutmix else config.mixup
    if alpha == 0:
        return images, 1.0
    lam = random.betavariate(alpha, alpha)
    partners = images.flip(0)  # (N, 3, H, W)
    if not is_cutmix:
        return torch.lerp(partners, images, lam), lam
    height, width = images.shape[2:]
    ratio = sqrt(1 - lam)
    box_height, box_width = round(height * ratio), round(width * ratio)
    # The box is centred anywhere in the image and clipped to it.
    top = random.randrange(height) - box_height // 2
    left = random.randrange(width) - box_width // 2
    rows = slice(max(0, top), min(height, top + box_height))
    columns = slice(max(0, left), min(width, left + box_width))
    mixed = images.clone()
    mixed[:, :, rows, columns] = partners[:, :, rows, columns]
    cut = max(0, rows.stop - rows.start) * max(0, columns.stop - columns.start)
    return mixed, 1 - cut / (height * width)
