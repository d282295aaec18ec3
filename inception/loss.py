"""The training loss: cross-entropy with label smoothing, on the main and auxiliary heads."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def inception_loss(
    logits: Tensor,
    aux_logits: Sequence[Tensor],
    targets: Tensor,
    *,
    label_smoothing: float = 0.1,
    aux_weight: float = 0.4,
    weights: Tensor,
    lam: float = 1.0,
) -> Tensor:
    """Mean over the N samples of cross-entropy(logits) + aux_weight x each cross-entropy(aux).

    One keyword per term of the loss. logits, each of aux_logits: (N, C); targets: int64 (N,);
    weights: float (N,), zero for a damaged sample, which the mean still counts. Label smoothing
    (1512.00567, section 7: the truth gets 1 - epsilon, every class epsilon / C) applies to all
    heads, as in TensorFlow. lam: the share of each sample's own label in mixed images (mix.py); the
    label of sample N - 1 - i has the rest.
    """

    def head_loss(head_logits: Tensor) -> Tensor:
        loss = _cross_entropy(head_logits, targets, label_smoothing, weights)
        if lam == 1.0:
            return loss
        partner = _cross_entropy(head_logits, targets.flip(0), label_smoothing, weights.flip(0))
        return lam * loss + (1 - lam) * partner

    loss = head_loss(logits)
    for head_logits in aux_logits:
        loss = loss + aux_weight * head_loss(head_logits)
    return loss


def _cross_entropy(
    logits: Tensor, targets: Tensor, label_smoothing: float, weights: Tensor
) -> Tensor:
    # Half precision is computed in float32; float64 (for exact tests) stays.
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    losses = F.cross_entropy(
        logits, targets, label_smoothing=label_smoothing, reduction="none"
    )  # (N,)
    return (losses * weights).sum() / len(losses)
