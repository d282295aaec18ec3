"""Batches moved to the training device, and mirrored and colour-distorted there.

To mirror single samples costs the CPU a tenth of a decode; on the device it costs nothing. The
random numbers were drawn when the sample was decoded (augment.py), so the result does not depend on
the device, up to the rounding of its floats.
"""

from dataclasses import replace

import torch
from torch import Tensor

from datasets.loading.batch import MicroBatch

# TF-slim's four orders of (brightness 0, saturation 1, hue 2, contrast 3).
ORDERS = ((0, 1, 2, 3), (1, 0, 3, 2), (3, 2, 0, 1), (2, 1, 3, 0))


def to_device(batch: MicroBatch, device: torch.device) -> MicroBatch:
    """The batch on `device`, its samples mirrored and distorted as drawn. With colours, images
    become float32 in -1..1, else they stay uint8. Does not wait for the device."""
    images = batch.images.to(device, non_blocking=True)  # (m, 3, S, S)
    if batch.mirrored.any():  # on the host
        mirrored = batch.mirrored.to(device, non_blocking=True)
        images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
    if batch.colours is not None:
        images = distort_colours(images, batch.colours)
    return replace(
        batch,
        images=images,
        targets=batch.targets.to(device, non_blocking=True),
        weights=batch.weights.to(device, non_blocking=True),
    )


def distort_colours(images: Tensor, colours: Tensor) -> Tensor:
    """uint8 (m, 3, S, S) -> float32 in -1..1 after each sample's colour distortion.

    colours: float32 (m, 5) on the host, rows of augment.colour_of.
    """
    result = images.to(torch.float32).div_(255)  # (m, 3, S, S)
    orders = colours[:, 4].to(torch.int64)
    for number, order in enumerate(ORDERS):
        rows = torch.nonzero(orders == number)[:, 0]
        if len(rows) == 0:
            continue
        values = colours[rows].to(images.device, non_blocking=True)
        values = values[:, :, None, None]  # (n, 5, 1, 1)
        rows = rows.to(images.device, non_blocking=True)
        part = result[rows]  # (n, 3, S, S)
        for step in order:
            part = _STEPS[step](part, values)
        result[rows] = part
    return result.clamp_(0, 1).mul_(2).sub_(1)


def _brightness(images: Tensor, values: Tensor) -> Tensor:
    return images + values[:, 0:1]


def _saturation(images: Tensor, values: Tensor) -> Tensor:
    hue, saturation, value = _to_hsv(images)
    return _to_rgb(hue, (saturation * values[:, 1]).clamp(0, 1), value)


def _hue(images: Tensor, values: Tensor) -> Tensor:
    hue, saturation, value = _to_hsv(images)
    return _to_rgb((hue + values[:, 2]) % 1.0, saturation, value)


def _contrast(images: Tensor, values: Tensor) -> Tensor:
    mean = images.mean((2, 3), keepdim=True)  # (n, 3, 1, 1)
    return (images - mean) * values[:, 3:4] + mean


_STEPS = (_brightness, _saturation, _hue, _contrast)


def _to_hsv(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """RGB (n, 3, S, S) -> hue in turns, saturation, value, each (n, S, S)."""
    red, green, blue = images.unbind(1)
    value, smallest = images.amax(1), images.amin(1)
    spread = value - smallest
    safe = torch.where(spread > 0, spread, 1.0)
    hue = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    saturation = torch.where(value > 0, spread / torch.where(value > 0, value, 1.0), 0.0)
    return torch.where(spread > 0, hue / 6, 0.0) % 1.0, saturation, value


def _to_rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Each (n, S, S) -> RGB (n, 3, S, S): channel k is v - v s max(0, min(q, 4 - q, 1)) with
    q = (k + 6 h) mod 6 and k = 5, 3, 1 (the closed form of the HSV hexagon)."""
    channels = []
    for k in (5, 3, 1):
        q = (k + 6 * hue) % 6
        channels.append(value - value * saturation * torch.minimum(q, 4 - q).clamp(0, 1))
    return torch.stack(channels, 1)  # (n, 3, S, S)
