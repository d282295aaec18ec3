"""One optimizer step whose result does not depend on the number of ranks.

The gradient of a global batch is the mean over its M micro-batches of a fixed size, wherever they
are worked; batch norm sees one micro-batch at a time; dropout's mask and what is mixed are keyed by
(seed, step, micro-batch). So 1, 2 or 16 ranks walk the same loss curve, up to the rounding of
float sums.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from inception.layers import normalize
from inception.loss import inception_loss
from inception.mix import Mix, mix
from inception.network import InceptionNet
from inception.statistics import StepStatistics

BEGUN, OWN, ALL_REDUCED = "begun", "own gradients", "all-reduced"


class MicroBatch(Protocol):
    """What a loader gives: micro-batch `index` (0..M-1) of the step's global batch."""

    @property
    def index(self) -> int: ...
    @property
    def images(self) -> Tensor: ...  # uint8 (m, 3, H, W), channels last; or floats in -1..1
    @property
    def targets(self) -> Tensor: ...  # int64 (m,)
    @property
    def weights(self) -> Tensor | None: ...  # float32 (m,), zero for a damaged sample


@dataclass(frozen=True, slots=True)
class StepResult:
    """loss: this rank's share of the global batch's mean loss (the sum over ranks is the loss).
    grad_norm: the global gradient's norm before clipping, the same on every rank."""

    loss: Tensor
    grad_norm: Tensor
    # Seconds of this rank until its own gradients are there: what others may wait for.
    own_s: Callable[[], float]
    # Seconds from then on until the all-reduce, which began beside backward, was done.
    all_reduce_s: Callable[[], float]


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    micro_batches: Sequence[MicroBatch],
    *,
    num_micro_batches: int,
    world_size: int,
    seed: int,
    step: int,
    label_smoothing: float = 0.1,
    side_weight: float = 0.4,
    clip_norm: float | None = None,
    how_mixed: Mix = Mix(),  # noqa: B008 - immutable
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> StepResult:
    """Works this rank's micro-batches of step `step` and updates the weights.

    All ranks take part; gradients are all-reduced once, during the last micro-batch's backward.
    DDP averages over ranks, so each micro-batch's loss is scaled by world_size / M. Ranks may
    hold different numbers of micro-batches, or none (M < world_size): such a rank gives a zero
    gradient to the all-reduce.
    """
    device = next(model.parameters()).device
    clock = _Clock(device)
    share = world_size / num_micro_batches
    optimizer.zero_grad(set_to_none=True)
    statistics = StepStatistics(model, share=share, num_local=len(micro_batches))
    total = torch.zeros((), device=device)
    # Backward ends at the first layer that is trained; a step's last one stands.
    first = next(p for p in model.parameters() if p.requires_grad)
    ends = first.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
        lambda _: clock.mark(OWN)
    )
    last = len(micro_batches) - 1
    for i, micro_batch in enumerate(micro_batches):
        defer = isinstance(model, DistributedDataParallel) and i < last
        with model.no_sync() if defer else nullcontext():  # type: ignore[operator]
            statistics.before_forward()
            key = micro_batch_key(seed, step, micro_batch.index)
            torch.manual_seed(key)  # dropout's masks
            images = normalize(micro_batch.images.to(device, non_blocking=True))
            images, own_share = mix(images, how_mixed, key)
            targets = micro_batch.targets.to(device, non_blocking=True)
            weights = micro_batch.weights
            if weights is not None:
                weights = weights.to(device, non_blocking=True)
            with autocast():
                logits, side_logits = model(images)
            loss = inception_loss(
                logits,
                side_logits,
                targets,
                label_smoothing=label_smoothing,
                side_weight=side_weight,
                weights=weights,
                own_share=own_share,
            )
            statistics.after_forward()
            (loss * share).backward()  # type: ignore[no-untyped-call]
            total += loss.detach() / num_micro_batches
    if not micro_batches:
        _join_all_reduce(model, autocast)
    ends.remove()
    clock.mark(ALL_REDUCED)
    statistics.finish()
    # After the all-reduce, so that what is clipped is the global gradient.
    parameters = list(model.parameters())
    grad_norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if clip_norm is not None:
        nn.utils.clip_grads_with_norm_(parameters, clip_norm, grad_norm)
    optimizer.step()
    return StepResult(
        loss=total,
        grad_norm=grad_norm.detach(),
        own_s=lambda: clock.seconds(BEGUN, OWN) if micro_batches else 0.0,
        all_reduce_s=lambda: clock.seconds(OWN, ALL_REDUCED),
    )


class _Clock:
    """Moments of a step on its device, without waiting for it; BEGUN is its making."""

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._times: dict[str, float] = {}
        self._events: dict[str, torch.cuda.Event] = {}
        self.mark(BEGUN)

    def mark(self, moment: str) -> None:
        self._times[moment] = time.perf_counter()
        if self._is_cuda:
            self._events[moment] = _event()
            self._events[moment].record()

    def seconds(self, begin: str, end: str) -> float:
        """Waits for the device."""
        if not self._is_cuda:
            return self._times[end] - self._times[begin]
        self._events[end].synchronize()
        return float(self._events[begin].elapsed_time(self._events[end])) / 1000


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _join_all_reduce(
    model: nn.Module, autocast: Callable[[], AbstractContextManager[object]]
) -> None:
    """Takes part in DDP's all-reduce, which its backward starts, with a gradient of zeros.

    Two grey images, so that batch norm has two values where one cell is left of the grid.
    """
    network = next(module for module in model.modules() if isinstance(module, InceptionNet))
    size = network.architecture.input_size
    grey = torch.zeros(2, 3, size, size, device=next(network.parameters()).device)  # (2, 3, S, S)
    with autocast():
        logits, side_logits = model(grey)
    total = logits.sum() + sum(side.sum() for side in side_logits)
    (0.0 * total).backward()


def micro_batch_key(seed: int, step: int, index: int) -> int:
    """A 63-bit mix of (seed, step, micro-batch): SplitMix64's finalizer over a linear key."""
    mask = 2**64 - 1
    z = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + index * 0x94D049BB133111EB) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return (z ^ (z >> 31)) >> 1
