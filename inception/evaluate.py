"""Top-1, top-5 and loss over every sample once, on any number of ranks."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from inception.layers import normalize
from inception.step import MicroBatch


class Scores:
    """Sums of one evaluation; samples of weight zero (padding, damage) are left out."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(4, dtype=torch.float64, device=device)  # count, loss, top1, top5

    def update(self, logits: Tensor, targets: Tensor, weights: Tensor) -> None:
        """logits: (N, C); targets: int64 (N,); weights: float (N,), 0 or 1."""
        logits = logits.float()
        losses = F.cross_entropy(logits, targets, reduction="none")  # (N,)
        top5 = logits.topk(min(5, logits.shape[1]), dim=1).indices  # (N, 5)
        hits = top5 == targets[:, None]  # (N, 5)
        values = torch.stack(
            [torch.ones_like(losses), losses, hits[:, 0].float(), hits.any(1).float()]
        )  # (4, N)
        # Selected, not multiplied by the weight: padding may hold NaN.
        self._sums += torch.where(weights > 0, values, 0.0).double().sum(1)

    def all_reduce(self) -> None:
        """Sums over ranks. All ranks take part."""
        dist.all_reduce(self._sums)

    def result(self) -> dict[str, float]:
        """count, and the means: loss, top1 and top5 in 0..1."""
        count, loss, top1, top5 = self._sums.tolist()
        n = max(count, 1.0)
        return {"count": count, "loss": loss / n, "top1": top1 / n, "top5": top5 / n}


def evaluate(
    model: nn.Module,
    batches: Iterable[MicroBatch],
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
    on_batch: Callable[[Any, Tensor], object] = lambda batch, logits: None,
) -> Scores:
    """Scores this rank's batches in evaluation mode, then restores the model's mode.
    on_batch: called with each batch and its logits (N, C)."""
    was_training = model.training
    scores = Scores(device)
    model.eval()
    try:
        with torch.inference_mode():
            for batch in batches:
                images = normalize(batch.images.to(device, non_blocking=True))
                with autocast():
                    logits = model(images)
                scores.update(logits, batch.targets.to(device), batch.weights.to(device))
                on_batch(batch, logits)
    finally:
        model.train(was_training)
    return scores
