"""A trained network's predictions for each image, and the metrics computed from them.

Predictions are gathered per image and sorted into the order of the split before metrics are
computed, so that the metrics do not depend on the number of workers.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from inception.layers import normalize

TOP_K = 5
CALIBRATION_BINS = 15  # 1706.04599
TENSORS = ("samples", "targets", "best", "best_p", "target_p")


@dataclass(frozen=True, kw_only=True, slots=True)
class Predictions:
    """Of N images: samples int64 (N, 2), (shard, sample); keys: their names; targets int64 (N,);
    best int64 (N, 5), the most likely classes in descending order, and their probabilities best_p
    float32 (N, 5), with fewer columns for fewer classes; target_p float32 (N,), the probability of
    the target."""

    samples: Tensor
    keys: tuple[str, ...]
    targets: Tensor
    best: Tensor
    best_p: Tensor
    target_p: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, rows: Tensor) -> "Predictions":
        """The rows with these indices (int64), in this order."""
        keys = tuple(self.keys[row] for row in rows.tolist())
        return Predictions(keys=keys, **{name: getattr(self, name)[rows] for name in TENSORS})


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """top1, top5 and calibration_error in 0..1; loss: mean negative log-likelihood of the target;
    confusion: int64 (C, C), [target, predicted]; calibration: (images, mean confidence, accuracy)
    of each bin that has images."""

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
    """Softmax averaged over networks, views and mirror images (1409.4842, section 7): float32
    (N, C).

    images: uint8 (N x views, 3, S, S), or floats in -1..1; computed `chunk` at a time.
    """
    device = next(networks[0].parameters()).device
    chunks = []
    with torch.inference_mode():
        for part in torch.split(images, chunk):
            x = normalize(part.to(device, non_blocking=True))  # (n, 3, S, S)
            inputs = (x, x.flip(3)) if is_mirrored else (x,)
            with autocast():
                logits = [network(images) for network in networks for images in inputs]
            chunks.append(torch.stack(logits).float().softmax(2).mean(0))  # (n, C)
    p = torch.cat(chunks)  # (N x views, C)
    return p.view(-1, views, p.shape[1]).mean(1)  # (N, C)


def make_predictions(
    probabilities: Tensor, targets: Tensor, weights: Tensor, samples: Tensor, keys: Sequence[str]
) -> Predictions:
    """probabilities: float (N, C). Rows of weight zero (padding, damaged samples) are left out."""
    rows = (weights > 0).nonzero()[:, 0]
    p = probabilities.cpu()[rows]  # (n, C)
    best = p.topk(min(TOP_K, p.shape[1]), dim=1)
    targets = targets[rows]
    return Predictions(
        samples=samples[rows],
        keys=tuple(keys[row] for row in rows.tolist()),
        targets=targets,
        best=best.indices,
        best_p=best.values,
        target_p=p.gather(1, targets[:, None])[:, 0],
    )


def merge_predictions(parts: Sequence[Predictions]) -> Predictions:
    """All parts' predictions, in the order of the split."""
    tensors = {name: torch.cat([getattr(part, name) for part in parts]) for name in TENSORS}
    keys = tuple(key for part in parts for key in part.keys)
    samples = tensors["samples"].tolist()
    order = sorted(range(len(samples)), key=samples.__getitem__)
    return Predictions(keys=keys, **tensors).take(torch.tensor(order, dtype=torch.int64))


def gather_predictions(parts: Sequence[Predictions]) -> Predictions | None:
    """The parts of all ranks, merged, on rank 0; None on the others. All ranks take part; one may
    have no part."""
    gathered: list[Sequence[Predictions]] = [()] * dist.get_world_size()
    dist.all_gather_object(gathered, parts)
    if dist.get_rank() != 0:
        return None
    return merge_predictions([part for of_rank in gathered for part in of_rank])


def evaluate_predictions(predictions: Predictions, num_classes: int) -> Evaluation:
    """Computes the metrics. Calibration error: the mean distance between confidence and accuracy
    over 15 equal bins of confidence, weighted by their images (1706.04599)."""
    n = len(predictions)
    hits = predictions.best == predictions.targets[:, None]  # (N, 5)
    is_correct = hits[:, 0].double()
    confidence = predictions.best_p[:, 0].double()
    bins = (confidence * CALIBRATION_BINS).ceil().long().clamp(1, CALIBRATION_BINS) - 1
    calibration = []
    calibration_error = 0.0
    for number in range(CALIBRATION_BINS):
        in_bin = bins == number
        count = int(in_bin.sum())
        if count:
            mean = float(confidence[in_bin].mean())
            accuracy = float(is_correct[in_bin].mean())
            calibration.append((count, mean, accuracy))
            calibration_error += count / n * abs(mean - accuracy)
    cells = predictions.targets * num_classes + predictions.best[:, 0]
    return Evaluation(
        count=n,
        top1=float(is_correct.mean()) if n else 0.0,
        top5=float(hits.any(1).double().mean()) if n else 0.0,
        # A probability that underflowed counts as the smallest float, or the loss is infinite.
        loss=float(-predictions.target_p.double().clamp_min(1e-45).log().mean()) if n else 0.0,
        calibration_error=calibration_error,
        calibration=tuple(calibration),
        confusion=torch.bincount(cells, minlength=num_classes**2).view(num_classes, num_classes),
    )
