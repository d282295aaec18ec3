"""Groups of rows: what batch norm takes together, where a pass has more rows than that.

A micro-batch is what a device computes at once. Its G groups are those that G smaller micro-batches
would be: group g of micro-batch j has the rows g, g + G, g + 2G ..., which the canonical order
gives to micro-batch j + g M of a step with G times as many. So the result is, up to rounding, that
of small passes, at the speed of a large one.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def count_groups(num_rows: int, group_size: int | None) -> int:
    """Groups of a pass: one, if it is no larger than a group. Raises ValueError if they do not go
    up."""
    if group_size is None or num_rows <= group_size:
        return 1
    if num_rows % group_size:
        raise ValueError(f"{num_rows} rows are not whole groups of {group_size}")
    return num_rows // group_size


def sort_by_group(rows: Tensor, num_groups: int) -> Tensor:
    """rows: (N, ...), in the order of the micro-batch. -> the same, group after group."""
    if num_groups == 1:
        return rows
    order = torch.arange(len(rows), device=rows.device).view(-1, num_groups).t().flatten()  # (N,)
    return rows[order]


class GroupedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm which in training takes `group_size` consecutive rows together; None: all.

    The running statistics become the mean of what each group alone makes of them, as those of a
    step become the mean over its micro-batches (statistics.py).
    """

    group_size: int | None = None

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape and memory layout."""
        num_groups = count_groups(len(input), self.group_size) if self.training else 1
        if num_groups == 1:
            return super().forward(input)
        running = [
            self.get_buffer(name).repeat(num_groups, 1) for name in ("running_mean", "running_var")
        ]  # (G, C) each: every group begins with those from before the pass
        output: Tensor = _NormalizeGroups.apply(  # type: ignore[no-untyped-call]
            input, self.weight, self.bias, *running, self.momentum, self.eps
        )
        self.get_buffer("running_mean").copy_(running[0].mean(0))
        self.get_buffer("running_var").copy_(running[1].mean(0))
        self.get_buffer("num_batches_tracked").add_(1)
        return output


class GroupedDropout(nn.Dropout):
    """Dropout whose masks are drawn for each group from a generator of its own (`keyed_masks`); in
    training without one, from torch's."""

    generators: Sequence[torch.Generator] = ()

    def forward(self, input: Tensor) -> Tensor:
        """(N, ...) -> the same shape."""
        if not self.training or not self.generators:
            return super().forward(input)
        # In bfloat16, the factor 1 / (1 - p) itself would be rounded: all values by the same share.
        mask = torch.empty_like(input, dtype=torch.promote_types(input.dtype, torch.float32))
        for rows, generator in zip(mask.chunk(len(self.generators)), self.generators, strict=True):
            rows.bernoulli_(1 - self.p, generator=generator)
        return (input * mask.div_(1 - self.p)).to(input.dtype)


@contextmanager
def keyed_masks(
    dropouts: Iterable[GroupedDropout], keys: Sequence[int], device: torch.device
) -> Iterator[None]:
    """Within the block, one pass's masks follow from the keys of its groups."""
    generators = [torch.Generator(device).manual_seed(key) for key in keys]
    for dropout in dropouts:
        dropout.generators = generators
    try:
        yield
    finally:
        for dropout in dropouts:
            dropout.generators = ()


class _NormalizeGroups(torch.autograd.Function):
    """torch's own kernels on each group, whose results lie in one tensor: nothing is
    concatenated."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, running_mean: Tensor,
        running_var: Tensor, momentum: float, eps: float,
    ) -> Tensor:  # fmt: skip
        """running_mean, running_var: (G, C), which are updated."""
        num_groups = len(running_mean)
        y = torch.empty_like(x)
        mean, inverse_std = torch.empty_like(running_mean), torch.empty_like(running_mean)
        for i, (rows, out) in enumerate(zip(x.chunk(num_groups), y.chunk(num_groups), strict=True)):
            torch.ops.aten.native_batch_norm.out(
                rows, weight, bias, running_mean[i], running_var[i], True, momentum, eps,
                out=out, save_mean=mean[i], save_invstd=inverse_std[i],
            )  # fmt: skip
        ctx.save_for_backward(x, weight, mean, inverse_std)
        ctx.eps = eps
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse_std = ctx.saved_tensors
        num_groups = len(mean)
        needed = [*ctx.needs_input_grad[:3]]
        grad_x = torch.empty_like(x) if needed[0] else None
        sums: list[Tensor] | None = None
        for i, (rows, grad) in enumerate(
            zip(x.chunk(num_groups), grad_y.chunk(num_groups), strict=True)
        ):
            grad_rows, *of_parameters = torch.ops.aten.native_batch_norm_backward(
                grad, rows, weight, None, None, mean[i], inverse_std[i], True, ctx.eps, needed
            )
            if grad_x is not None:
                grad_x.chunk(num_groups)[i].copy_(grad_rows)
            if sums is None:
                sums = of_parameters
            else:
                sums = [a if a is None else a + b for a, b in zip(sums, of_parameters, strict=True)]
        assert sums is not None
        return grad_x, *sums, None, None, None, None
