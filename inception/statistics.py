"""Batch-norm statistics that do not depend on how micro-batches are spread over ranks.

A step's running statistics are (1 - a) r0 + a x mean over all M micro-batches of their batch
statistics. Each rank keeps the part that its own micro-batches give, scaled so that the mean over
ranks is exactly that; because the update is linear, ranks need to average only where the
statistics are used (evaluation, checkpoint), not every step.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn


def batch_norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    """Every batch norm of the model that is trained, in module order; a frozen one's statistics
    stay as they are."""
    return [
        module
        for module in model.modules()
        if isinstance(module, nn.BatchNorm2d) and module.weight.requires_grad
    ]


def running_statistics(model: nn.Module) -> list[Tensor]:
    """Running means and variances, float32, in module order."""
    return _running(batch_norms(model))


def _running(norms: list[nn.BatchNorm2d]) -> list[Tensor]:
    found: list[Tensor] = []
    for bn in norms:
        assert bn.running_mean is not None
        assert bn.running_var is not None
        found += [bn.running_mean, bn.running_var]
    return found


class StepStatistics:
    """Collects what one step's micro-batches do to this rank's running statistics."""

    def __init__(self, model: nn.Module, *, share: float, num_local: int) -> None:
        """share: world_size / M, the weight of one micro-batch in this rank's part; num_local:
        how many micro-batches this rank works, which may be none."""
        # One micro-batch on each rank, the common case, needs nothing: its forward is the update.
        # (To walk a network's modules costs 2 ms, 1 % of a step of a small one on a CPU.)
        self._is_plain = share == 1.0 and num_local == 1
        if self._is_plain:
            return
        norms = batch_norms(model)
        self._momentum = norms[0].momentum or 0.0 if norms else 0.0
        self._running = _running(norms)
        self._counts = [
            bn.num_batches_tracked for bn in norms if bn.num_batches_tracked is not None
        ]
        self._share = share
        self._before = [r.clone() for r in self._running]
        self._counts_before = [count.clone() for count in self._counts]
        self._sum = [torch.zeros_like(r) for r in self._running]

    @torch.no_grad()
    def before_forward(self) -> None:
        """Puts back the statistics from before the step."""
        if not self._is_plain:
            torch._foreach_copy_(self._running, self._before)

    @torch.no_grad()
    def after_forward(self) -> None:
        """Adds this micro-batch's batch statistics, a x s = r - (1 - a) r0, to the sum."""
        if not self._is_plain:
            torch._foreach_add_(self._sum, self._running)
            torch._foreach_sub_(self._sum, self._before, alpha=1 - self._momentum)

    @torch.no_grad()
    def finish(self) -> None:
        """(1 - a) r0 + share x sum of a x s; the count of batches grows by one a step."""
        if self._is_plain:
            return
        torch._foreach_mul_(self._before, 1 - self._momentum)
        torch._foreach_add_(self._before, self._sum, alpha=self._share)
        torch._foreach_copy_(self._running, self._before)
        torch._foreach_add_(self._counts_before, 1)
        torch._foreach_copy_(self._counts, self._counts_before)


@torch.no_grad()
def average_over_ranks(tensors: list[Tensor]) -> None:
    """Replaces the tensors by their mean over ranks. All ranks take part: one all-reduce."""
    if not tensors or not dist.is_initialized() or dist.get_world_size() == 1:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    views = [part.view_as(t) for part, t in zip(parts, tensors, strict=True)]
    torch._foreach_copy_(tensors, views)


def average_bn_statistics(model: nn.Module) -> None:
    """Averages the running statistics over ranks, before they are used. All ranks take part."""
    average_over_ranks(running_statistics(model))
