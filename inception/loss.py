"""The training loss: label smoothing on all heads, the side heads' weighted."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def inception_loss(
    logits: Tensor,
    side_logits: Sequence[Tensor],
    targets: Tensor,
    *,
    label_smoothing: float = 0.1,
    side_weight: float = 0.4,
    weights: Tensor | None = None,
    own_share: float = 1.0,
) -> Tensor:
    """Mean over the N samples of cross-entropy(main) + side_weight x each cross-entropy(side).

    logits, each of side_logits: (N, C); targets: int64 (N,); weights: float (N,), zero for a
    damaged sample, whose place in the mean stays. Label smoothing is the paper's section 7
    (epsilon 0.1: 1 - epsilon on the truth plus epsilon / C on every class), on all heads as
    TensorFlow has it. own_share: of mixed images (mix.py); the rest is the opposite sample's.
    """

    def of_head(head: Tensor) -> Tensor:
        own = _cross_entropy(head, targets, label_smoothing, weights)
        if own_share == 1.0:
            return own
        theirs = None if weights is None else weights.flip(0)
        partner = _cross_entropy(head, targets.flip(0), label_smoothing, theirs)
        return own_share * own + (1 - own_share) * partner

    loss = of_head(logits)
    for side in side_logits:
        loss = loss + side_weight * of_head(side)
    return loss


def _cross_entropy(
    logits: Tensor, targets: Tensor, label_smoothing: float, weights: Tensor | None
) -> Tensor:
    # Half precision is widened; float64 (the tests' exact arithmetic) stays.
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    losses = F.cross_entropy(
        wide, targets, label_smoothing=label_smoothing, reduction="none"
    )  # (N,)
    return losses.mean() if weights is None else (losses * weights).sum() / len(losses)
