"""Batch-norm statistics that do not depend on how micro-batches are spread over ranks.

A step's running statistics are (1 - a) r0 + a x mean over all M micro-batches of their batch
statistics. The update is linear, so that is the mean of what each micro-batch alone makes of r0.
"""

import torch
from torch import Tensor, nn


class StepStatistics:
    """The running statistics of the trained batch norms; those of frozen stages do not change. In
    each step, every micro-batch begins with those from before the step."""

    def __init__(self, model: nn.Module) -> None:
        """model: with its frozen stages."""
        batch_norms = [
            module
            for module in model.modules()
            if isinstance(module, nn.BatchNorm2d) and module.weight.requires_grad
        ]
        names = ("running_mean", "running_var")
        self._running = [bn.get_buffer(name) for bn in batch_norms for name in names]
        self._counts = [bn.get_buffer("num_batches_tracked") for bn in batch_norms]
        self._before = [r.clone() for r in self._running]
        self._counts_before = [count.clone() for count in self._counts]

    def begin(self) -> None:
        """Begins a step."""
        if self._running:
            torch._foreach_copy_(self._before, self._running)
            torch._foreach_copy_(self._counts_before, self._counts)

    def before_forward(self) -> None:
        """Restores the statistics from before the step."""
        if self._running:
            torch._foreach_copy_(self._running, self._before)

    def values(self, loss: Tensor) -> Tensor:
        """(n,): the loss, and the statistics as they are now."""
        return torch.cat([loss.reshape(1), *(r.to(loss.dtype) for r in self._running)])

    def finish(self, mean: Tensor) -> Tensor:
        """mean: of the values of all micro-batches. Sets the statistics; the count of batches grows
        by one per step. -> the mean loss."""
        sizes = [1, *(len(r) for r in self._running)]
        loss, *running = torch.split(mean, sizes)
        if self._running:
            torch._foreach_copy_(self._running, running)
            torch._foreach_copy_(self._counts, self._counts_before)
            torch._foreach_add_(self._counts, 1)
        return loss.reshape(())
