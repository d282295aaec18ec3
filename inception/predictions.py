"""A trained network's word on each image, and what all of them come to.

Predictions are gathered image by image and judged once, in the order of the split, so that the
result is the same on however many workers they were made.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from inception.layers import normalize

BEST = 5
CALIBRATION_BINS = 15  # 1706.04599


@dataclass(frozen=True, kw_only=True, slots=True)
class Predictions:
    """Of N images: samples int64 (N, 2), (shard, sample); keys: their names; targets int64 (N,);
    best int64 (N, 5) classes, the likeliest first, and their probabilities best_p float32 (N, 5);
    target_p float32 (N,), the probability of the truth. Fewer classes than 5: as many columns."""

    samples: Tensor
    keys: tuple[str, ...]
    targets: Tensor
    best: Tensor
    best_p: Tensor
    target_p: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, rows: Tensor) -> "Predictions":
        """The rows of these numbers (int64), in this order."""
        return Predictions(
            samples=self.samples[rows],
            keys=tuple(self.keys[row] for row in rows.tolist()),
            targets=self.targets[rows],
            best=self.best[rows],
            best_p=self.best_p[rows],
            target_p=self.target_p[rows],
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Assessment:
    """top1, top5 and calibration_error in 0..1; loss: mean negative log-probability of the truth;
    confusion: int64 (C, C), [truth, predicted]; calibration: (images, mean confidence, share that
    is right) of each bin that has any."""

    count: int
    top1: float
    top5: float
    loss: float
    calibration_error: float
    calibration: tuple[tuple[int, float, float], ...]
    confusion: Tensor


def average_probabilities(
    networks: Sequence[nn.Module],
    images: Tensor,
    *,
    views: int = 1,
    is_mirrored: bool = False,
    chunk: int = 32,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Tensor:
    """Softmax averaged over networks, views and mirrors (1409.4842, section 7): float32 (N, C).

    images: uint8 (N x views, 3, S, S), or floats in -1..1; worked `chunk` at a time.
    """
    device = next(networks[0].parameters()).device
    sums = []
    with torch.inference_mode():
        for part in torch.split(images, chunk):
            x = normalize(part.to(device, non_blocking=True))  # (n, 3, S, S)
            sides = (x, x.flip(3)) if is_mirrored else (x,)
            with autocast():
                logits = [network(side) for network in networks for side in sides]
            sums.append(torch.stack(logits).float().softmax(2).mean(0))  # (n, C)
    every = torch.cat(sums)  # (N x views, C)
    return every.view(-1, views, every.shape[1]).mean(1)  # (N, C)


def predict(
    probabilities: Tensor, targets: Tensor, weights: Tensor, samples: Tensor, keys: Sequence[str]
) -> Predictions:
    """probabilities: float (N, C). Rows of weight zero (padding, damaged samples) are left out."""
    kept = (weights > 0).nonzero()[:, 0]
    p = probabilities.cpu()[kept]  # (n, C)
    best = p.topk(min(BEST, p.shape[1]), dim=1)
    truth = targets[kept]
    return Predictions(
        samples=samples[kept],
        keys=tuple(keys[row] for row in kept.tolist()),
        targets=truth,
        best=best.indices,
        best_p=best.values,
        target_p=p.gather(1, truth[:, None])[:, 0],
    )


def gather(parts: Sequence[Predictions]) -> Predictions:
    """All of them, in the order of the split."""
    samples = torch.cat([part.samples for part in parts])
    whole = Predictions(
        samples=samples,
        keys=tuple(key for part in parts for key in part.keys),
        targets=torch.cat([part.targets for part in parts]),
        best=torch.cat([part.best for part in parts]),
        best_p=torch.cat([part.best_p for part in parts]),
        target_p=torch.cat([part.target_p for part in parts]),
    )
    order = sorted(range(len(samples)), key=samples.tolist().__getitem__)
    return whole.take(torch.tensor(order, dtype=torch.int64))


def assess(predictions: Predictions, num_classes: int) -> Assessment:
    """What the predictions come to. Calibration error: the mean distance between confidence and
    accuracy over 15 equal bins of confidence, weighted by their images (1706.04599)."""
    n = len(predictions)
    hits = predictions.best == predictions.targets[:, None]  # (N, 5)
    right = hits[:, 0].double()
    confidence = predictions.best_p[:, 0].double()
    bins = (confidence * CALIBRATION_BINS).ceil().long().clamp(1, CALIBRATION_BINS) - 1
    calibration = []
    error = 0.0
    for number in range(CALIBRATION_BINS):
        inside = bins == number
        count = int(inside.sum())
        if count:
            mean, share = float(confidence[inside].mean()), float(right[inside].mean())
            calibration.append((count, mean, share))
            error += count / n * abs(mean - share)
    cells = predictions.targets * num_classes + predictions.best[:, 0]
    return Assessment(
        count=n,
        top1=float(right.mean()) if n else 0.0,
        top5=float(hits.any(1).double().mean()) if n else 0.0,
        # A probability that underflowed is the smallest float, not infinite surprise.
        loss=float(-predictions.target_p.double().clamp_min(1e-45).log().mean()) if n else 0.0,
        calibration_error=error,
        calibration=tuple(calibration),
        confusion=torch.bincount(cells, minlength=num_classes**2).view(num_classes, num_classes),
    )
