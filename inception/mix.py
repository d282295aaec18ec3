"""Mixup and CutMix on the device: sample i of a group of N is mixed with sample N - 1 - i.

A group is what batch norm takes together: a micro-batch, or a part of it (row_groups.py). The
random draws are keyed by (seed, step, group), so the result does not depend on the number of ranks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from random import Random

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class MixConfig:
    """Alphas of the Beta(alpha, alpha) distribution from which lambda is drawn for each group; 0 is
    off. With both on, each group uses one of them, with equal chances."""

    mixup: float = 0.0  # 1710.09412
    cutmix: float = 0.0  # 1905.04899


def mix_groups(
    images: Tensor, config: MixConfig, keys: Sequence[int]
) -> tuple[Tensor, list[float]]:
    """images: float (N, 3, H, W), group after group. keys: of the groups. -> (mixed images of the
    same shape, lambda of each group)."""
    if len(keys) == 1 or config == MixConfig():
        mixed, lam = mix(images, config, keys[0])
        return mixed, [lam] * len(keys)
    groups = zip(images.chunk(len(keys)), keys, strict=True)
    parts, lams = zip(*(mix(rows, config, key) for rows, key in groups), strict=True)
    return torch.cat(parts), list(lams)


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
