"""Batch-norm statistics that do not depend on how micro-batches are spread over ranks.

A step's running statistics are (1 - a) r0 + a x mean over all M micro-batches of their batch
statistics. Each rank applies the part of its own micro-batches, scaled so that the mean over ranks
is exactly that. Because the update is linear, ranks average only when the statistics are needed
(evaluation, checkpoint), not every step.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn


def trained_batch_norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    """In module order. Frozen ones are left out: their statistics do not change."""
    return [
        module
        for module in model.modules()
        if isinstance(module, nn.BatchNorm2d) and module.weight.requires_grad
    ]


def running_statistics(batch_norms: list[nn.BatchNorm2d]) -> list[Tensor]:
    """Running means and variances, float32."""
    names = ("running_mean", "running_var")
    return [bn.get_buffer(name) for bn in batch_norms for name in names]


class StepStatistics:
    """Collects how one step's micro-batches change this rank's running statistics."""

    def __init__(self, model: nn.Module, *, share: float, num_local: int) -> None:
        """share: world_size / M, the weight of one micro-batch in this rank's part; num_local:
        micro-batches of this rank, possibly none."""
        # With one micro-batch on each rank, the common case, the forward pass is the update.
        # (Walking a network's modules costs 2 ms, 1 % of a step of a small one on a CPU.)
        self._is_plain = share == 1.0 and num_local == 1
        if self._is_plain:
            return
        batch_norms = trained_batch_norms(model)
        if not batch_norms:  # none in the network, or all of them frozen
            self._is_plain = True
            return
        self._momentum = batch_norms[0].momentum or 0.0
        self._running = running_statistics(batch_norms)
        self._counts = [bn.get_buffer("num_batches_tracked") for bn in batch_norms]
        self._share = share
        self._before = [r.clone() for r in self._running]
        self._counts_before = [count.clone() for count in self._counts]
        self._sum = [torch.zeros_like(r) for r in self._running]

    def before_forward(self) -> None:
        """Restores the statistics from before the step."""
        if not self._is_plain:
            torch._foreach_copy_(self._running, self._before)

    def after_forward(self) -> None:
        """Adds this micro-batch's batch statistics, a x s = r - (1 - a) r0, to the sum."""
        if not self._is_plain:
            torch._foreach_add_(self._sum, self._running)
            torch._foreach_sub_(self._sum, self._before, alpha=1 - self._momentum)

    def finish(self) -> None:
        """(1 - a) r0 + share x sum of a x s; the count of batches grows by one per step."""
        if self._is_plain:
            return
        torch._foreach_mul_(self._before, 1 - self._momentum)
        torch._foreach_add_(self._before, self._sum, alpha=self._share)
        torch._foreach_copy_(self._running, self._before)
        torch._foreach_add_(self._counts_before, 1)
        torch._foreach_copy_(self._counts, self._counts_before)


def average_over_ranks(tensors: list[Tensor]) -> None:
    """Replaces the tensors by their mean over ranks. All ranks take part: one all-reduce."""
    if not tensors or not dist.is_initialized() or dist.get_world_size() == 1:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    means = [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]
    torch._foreach_copy_(tensors, means)


def average_bn_statistics(model: nn.Module) -> None:
    """Averages the running statistics over ranks. All ranks take part."""
    average_over_ranks(running_statistics(trained_batch_norms(model)))
