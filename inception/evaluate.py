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

LOSS_STEPS = 2.0**24


def evaluate(
    model: nn.Module,
    batches: Iterable[MicroBatch],
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
    on_batch: Callable[[Any, Tensor], object] = lambda batch, logits: None,
) -> dict[str, float]:
    """count, and the means over all ranks' samples: loss, top1 and top5 in 0..1; samples of weight
    zero (padding, damage) are left out. All ranks take part.

    The model is in evaluation mode meanwhile. on_batch: called with each batch and its logits
    (N, C).
    """
    sums = torch.zeros(4, dtype=torch.float64, device=device)  # count, loss, top1, top5
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for batch in batches:
                images = normalize(batch.images.to(device, non_blocking=True))
                with autocast():
                    logits = model(images)
                sums += _scores(logits.float(), batch.targets.to(device), batch.weights.to(device))
                on_batch(batch, logits)
    finally:
        model.train(was_training)
    if dist.is_initialized():
        dist.all_reduce(sums)
    count, loss, top1, top5 = sums.tolist()
    n = max(count, 1.0)
    return {"count": count, "loss": loss / n, "top1": top1 / n, "top5": top5 / n}


def _scores(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """logits: (N, C); targets: int64 (N,); weights: float (N,), 0 or 1 -> float64 (4,), sums.

    Losses are rounded to multiples of 2**-24: float64 sums of such numbers are exact up to 2**29,
    so neither the order nor the distribution over ranks matters.
    """
    losses = F.cross_entropy(logits, targets, reduction="none").double()  # (N,)
    losses = (losses * LOSS_STEPS).round() / LOSS_STEPS
    top5 = logits.topk(min(5, logits.shape[1]), dim=1).indices  # (N, 5)
    hits = top5 == targets[:, None]  # (N, 5)
    values = [torch.ones_like(losses), losses, hits[:, 0].double(), hits.any(1).double()]
    # Selected, not multiplied by the weight: padding may hold NaN.
    return torch.where(weights > 0, torch.stack(values), 0.0).sum(1)
