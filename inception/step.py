"""One optimizer step whose result does not depend on the number of ranks, to the last bit.

The gradient of a global batch is the mean over its M micro-batches of a fixed size, whichever rank
computes them, and so are the loss and the batch-norm statistics; each sum has one order (tree_sum).
Batch norm sees one micro-batch at a time; dropout masks and mixing are keyed by (seed, step,
micro-batch). So 1, 2 or 16 ranks of one kind of device have the same bits.
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
from inception.reduction import StepReduction
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
    """loss: mean loss of the global batch. grad_norm: norm of the global gradient before clipping.
    Both are the same on every rank."""

    loss: Tensor
    grad_norm: Tensor
    # Seconds until this rank's own gradients were ready: what other ranks may wait for.
    compute_s: Callable[[], float]
    # Seconds from then until the sums, whose exchange overlaps the backward pass, were there.
    all_reduce_s: Callable[[], float]


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    micro_batches: Sequence[MicroBatch],
    reduction: StepReduction,
    *,
    seed: int,
    step: int,
    label_smoothing: float = 0.1,
    aux_weight: float = 0.4,
    clip_norm: float | None = None,
    mix_config: MixConfig = MixConfig(),  # noqa: B008 - immutable
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> StepResult:
    """Trains on this rank's micro-batches of step `step` and updates the weights.

    reduction: attached to the model, if that is DDP's. The keywords are a job's loss and optimizer
    fields and the step's place in the run. All ranks take part: gradients are exchanged once,
    during the last micro-batch's backward pass, statistics and loss after it. Ranks may have
    different numbers of micro-batches, or none.
    """
    weight = next(model.parameters())
    device = weight.device
    clock = _Clock(device)
    num_micro_batches = reduction.num_micro_batches
    optimizer.zero_grad(set_to_none=True)
    statistics = StepStatistics(model)
    small = statistics.values(weight.new_zeros(()))
    # The backward pass ends at the first trained parameter; the last mark of a step counts.
    first = next(p for p in model.parameters() if p.requires_grad)
    hook = first.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
        lambda _: clock.mark(GRADIENTS)
    )
    by_index = {micro_batch.index: micro_batch for micro_batch in micro_batches}
    is_ddp = isinstance(model, DistributedDataParallel)
    for index in reduction.order:
        micro_batch = by_index[index]
        is_joined_by_ddp = is_ddp and index == reduction.order[-1]
        defers_exchange = is_ddp and not is_joined_by_ddp
        with model.no_sync() if defers_exchange else nullcontext():  # type: ignore[operator]
            statistics.before_forward()
            key = micro_batch_key(seed, step, index)
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
            reduction.add_small(index, statistics.values(loss.detach().to(weight.dtype)))
            (loss / num_micro_batches).backward()  # type: ignore[no-untyped-call]
        if not is_joined_by_ddp:
            reduction.add_gradients(index, model.parameters())
    if not is_ddp:
        reduction.set_gradients()
    elif not reduction.order:
        _join_exchange(model, autocast)
    hook.remove()
    total_loss = statistics.finish(reduction.sum_small(small) / num_micro_batches)
    reduction.finish()
    clock.mark(ALL_REDUCE)
    # After the exchange, so that the global gradient is clipped.
    parameters = list(model.parameters())
    grad_norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if clip_norm is not None:
        nn.utils.clip_grads_with_norm_(parameters, clip_norm, grad_norm)
    optimizer.step()
    return StepResult(
        loss=total_loss,
        grad_norm=grad_norm.detach(),
        compute_s=lambda: clock.seconds(START, GRADIENTS) if reduction.order else 0.0,
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


def _join_exchange(
    model: nn.Module, autocast: Callable[[], AbstractContextManager[object]]
) -> None:
    """Takes part in the exchange of gradients, which only a backward pass starts, without any.

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
