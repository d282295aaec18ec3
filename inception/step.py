"""One optimizer step whose result does not depend on the number of ranks.

The gradient of a global batch is the mean over its M micro-batches of a fixed size, whichever rank
computes them. Batch norm sees one micro-batch at a time; dropout masks and mixing are keyed by
(seed, step, micro-batch). So 1, 2 or 16 ranks have the same loss curve, up to the rounding of float
sums.
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
from inception.mix import MixConfig, mix
from inception.network import InceptionNet
from inception.statistics import StepStatistics

START, GRADIENTS, ALL_REDUCE = "start", "local gradients", "all-reduce"


class MicroBatch(Protocol):
    """Micro-batch `index` (0..M-1) of the step's global batch."""

    @property
    def index(self) -> int: ...
    @property
    def images(self) -> Tensor: ...  # uint8 (m, 3, H, W), channels last; or floats in -1..1
    @property
    def targets(self) -> Tensor: ...  # int64 (m,)
    @property
    def weights(self) -> Tensor: ...  # float32 (m,), zero for a damaged sample


@dataclass(frozen=True, slots=True)
class StepResult:
    """loss: this rank's part of the global batch's mean loss, which is the sum over ranks.
    grad_norm: norm of the global gradient before clipping, the same on every rank."""

    loss: Tensor
    grad_norm: Tensor
    # Seconds until this rank's own gradients were ready: what other ranks may wait for.
    compute_s: Callable[[], float]
    # Seconds from then until the all-reduce, which overlaps the backward pass, was done.
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
    aux_weight: float = 0.4,
    clip_norm: float | None = None,
    mix_config: MixConfig = MixConfig(),  # noqa: B008 - immutable
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> StepResult:
    """Trains on this rank's micro-batches of step `step` and updates the weights.

    The keywords are a job's loss and optimizer fields and the step's place in the run. All ranks
    take part: gradients are all-reduced once, during the last micro-batch's backward pass. DDP
    averages over ranks, so each micro-batch's loss is scaled by world_size / M. Ranks may have
    different numbers of micro-batches, or none (M < world_size): those contribute zero gradients.
    """
    device = next(model.parameters()).device
    clock = _Clock(device)
    share = world_size / num_micro_batches
    optimizer.zero_grad(set_to_none=True)
    statistics = StepStatistics(model, share=share, num_local=len(micro_batches))
    total_loss = torch.zeros((), device=device)
    # The backward pass ends at the first trained parameter; the last mark of a step counts.
    first = next(p for p in model.parameters() if p.requires_grad)
    hook = first.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
        lambda _: clock.mark(GRADIENTS)
    )
    last = len(micro_batches) - 1
    for i, micro_batch in enumerate(micro_batches):
        defers_all_reduce = isinstance(model, DistributedDataParallel) and i < last
        with model.no_sync() if defers_all_reduce else nullcontext():  # type: ignore[operator]
            statistics.before_forward()
            key = micro_batch_key(seed, step, micro_batch.index)
            torch.manual_seed(key)  # dropout masks
            images = normalize(micro_batch.images.to(device, non_blocking=True))
            images, lam = mix(images, mix_config, key)
            with autocast():
                logits, aux_logits = model(images)
            loss = inception_loss(
                logits,
                aux_logits,
                micro_batch.targets.to(device, non_blocking=True),
                label_smoothing=label_smoothing,
                aux_weight=aux_weight,
                weights=micro_batch.weights.to(device, non_blocking=True),
                lam=lam,
            )
            statistics.after_forward()
            (loss * share).backward()  # type: ignore[no-untyped-call]
            total_loss += loss.detach() / num_micro_batches
    if not micro_batches:
        _join_all_reduce(model, autocast)
    hook.remove()
    clock.mark(ALL_REDUCE)
    statistics.finish()
    # After the all-reduce, so that the global gradient is clipped.
    parameters = list(model.parameters())
    grad_norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if clip_norm is not None:
        nn.utils.clip_grads_with_norm_(parameters, clip_norm, grad_norm)
    optimizer.step()
    return StepResult(
        loss=total_loss,
        grad_norm=grad_norm.detach(),
        compute_s=lambda: clock.seconds(START, GRADIENTS) if micro_batches else 0.0,
        all_reduce_s=lambda: clock.seconds(GRADIENTS, ALL_REDUCE),
    )


class _Clock:
    """Marks times of a step on its device without synchronising; the first mark is START."""

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._times: dict[str, float] = {}
        self._events: dict[str, torch.cuda.Event] = {}
        self.mark(START)

    def mark(self, name: str) -> None:
        self._times[name] = time.perf_counter()
        if self._is_cuda:
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record()
            self._events[name] = event

    def seconds(self, start: str, end: str) -> float:
        """Waits for the device."""
        if not self._is_cuda:
            return self._times[end] - self._times[start]
        self._events[end].synchronize()
        return float(self._events[start].elapsed_time(self._events[end])) / 1000


def _join_all_reduce(
    model: nn.Module, autocast: Callable[[], AbstractContextManager[object]]
) -> None:
    """Takes part in DDP's all-reduce, which only a backward pass starts, with zero gradients.

    Of two images, because batch norm needs two values per channel, even on a grid of one cell.
    """
    network = next(module for module in model.modules() if isinstance(module, InceptionNet))
    size = network.architecture.input_size
    images = torch.zeros(2, 3, size, size, device=next(network.parameters()).device)
    with autocast():
        logits, aux_logits = model(images)
    total = logits.sum() + sum(aux.sum() for aux in aux_logits)
    (0.0 * total).backward()


def micro_batch_key(seed: int, step: int, index: int) -> int:
    """A 63-bit hash of (seed, step, micro-batch): SplitMix64's finalizer over a linear key."""
    mask = 2**64 - 1
    z = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + index * 0x94D049BB133111EB) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return (z ^ (z >> 31)) >> 1
