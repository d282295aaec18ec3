"""One optimizer step whose result does not depend on the number of ranks, to the last bit.

The gradient of a global batch is the mean over its M micro-batches of a fixed size, whichever rank
computes them, and so are the loss and the batch-norm statistics; each sum has one order (tree_sum).
Batch norm sees one micro-batch at a time, or groups of its rows (row_groups.py); dropout masks and
mixing are keyed by (seed, step, group). So 1, 2 or 16 ranks of one kind of device have the same
bits.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from inception.layers import normalize
from inception.loss import inception_loss
from inception.mix import MixConfig, mix_groups
from inception.network import InceptionNet
from inception.reduction import StepReduction
from inception.row_groups import count_groups, keyed_masks, sort_by_group

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

    reduction: of the model. The keywords are a job's loss and optimizer fields and the step's place
    in the run. All ranks take part: gradients, statistics and loss are exchanged once, during the
    last micro-batch's backward pass. Ranks may have different numbers of micro-batches, or none.
    """
    network, statistics = reduction.network, reduction.statistics
    num_micro_batches, parameters = reduction.num_micro_batches, reduction.parameters
    weight = parameters[0]
    clock = _Clock(weight.device)
    optimizer.zero_grad(set_to_none=True)
    statistics.begin()
    # The backward pass ends at the first trained parameter; the last mark of a step counts.
    hook = weight.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
        lambda _: clock.mark(GRADIENTS)
    )
    by_index = {micro_batch.index: micro_batch for micro_batch in micro_batches}
    for index in reduction.order:
        micro_batch = by_index[index]
        is_last = index == reduction.order[-1]
        defers_exchange = reduction.is_ddp and not is_last
        with model.no_sync() if defers_exchange else nullcontext():  # type: ignore[operator]
            statistics.before_forward()
            num_groups = count_groups(len(micro_batch.targets), network.group_size)
            loss = _forward(
                model,
                network,
                micro_batch,
                group_keys(seed, step, index, num_groups, num_micro_batches),
                label_smoothing=label_smoothing,
                aux_weight=aux_weight,
                mix_config=mix_config,
                autocast=autocast,
            )
            small = statistics.values(loss.detach().to(weight.dtype))
            reduction.add_small(index, small)
            if is_last:
                reduction.exchange_small(torch.empty_like(small))
            reduction.backward(loss / num_micro_batches)
        if defers_exchange or not reduction.is_ddp:
            reduction.add_gradients(index)
    if not reduction.is_ddp:
        reduction.set_gradients()
    elif not reduction.order:
        nothing = _forward_nothing(model, network, autocast)
        reduction.exchange_small(statistics.values(weight.new_zeros(())))
        reduction.backward(nothing)
    hook.remove()
    total_loss = statistics.finish(reduction.finish() / num_micro_batches)
    clock.mark(ALL_REDUCE)
    # After the exchange, so that the global gradient is clipped.
    grad_norm = _norm([p.grad for p in parameters if p.grad is not None])
    if clip_norm is not None:
        nn.utils.clip_grads_with_norm_(parameters, clip_norm, grad_norm)
    optimizer.step()
    return StepResult(
        loss=total_loss,
        grad_norm=grad_norm,
        compute_s=lambda: clock.seconds(START, GRADIENTS) if reduction.order else 0.0,
        all_reduce_s=lambda: clock.seconds(GRADIENTS, ALL_REDUCE),
    )


def _norm(gradients: list[Tensor]) -> Tensor:
    """Of all of them together."""
    if gradients[0].is_cuda:
        # CUDA adds in another order where memory is not aligned, as a gradient may lie in a bucket,
        # whose layout changes after a process's first step. New tensors are aligned.
        gradients = list(torch._foreach_mul(gradients, 1.0))
    return nn.utils.get_total_norm(gradients)


def _forward(
    model: nn.Module,
    network: InceptionNet,
    micro_batch: MicroBatch,
    keys: Sequence[int],
    *,
    label_smoothing: float,
    aux_weight: float,
    mix_config: MixConfig,
    autocast: Callable[[], AbstractContextManager[object]],
) -> Tensor:
    """The loss of a micro-batch, the mean over its groups of rows. keys: of the groups. The
    keywords are train_step's."""
    device = next(network.parameters()).device
    images, targets, weights = (
        sort_by_group(rows.to(device, non_blocking=True), len(keys))
        for rows in (micro_batch.images, micro_batch.targets, micro_batch.weights)
    )
    images, lams = mix_groups(normalize(images), mix_config, keys)
    with keyed_masks(network.dropouts, keys, device), autocast():
        logits, aux_logits = model(images)
    losses = [
        inception_loss(
            logits,
            aux_logits,
            targets,
            label_smoothing=label_smoothing,
            aux_weight=aux_weight,
            weights=weights,
            lam=lam,
        )
        for lam, (logits, targets, weights, *aux_logits) in zip(
            lams, _by_group((logits, targets, weights, *aux_logits), len(keys)), strict=True
        )
    ]
    return losses[0] if len(losses) == 1 else torch.stack(losses).mean()


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


def _forward_nothing(
    model: nn.Module,
    network: InceptionNet,
    autocast: Callable[[], AbstractContextManager[object]],
) -> Tensor:
    """A loss without gradients, of a rank without micro-batches: only a backward pass starts the
    exchange of gradients.

    Of two images, because batch norm needs two values per channel, even on a grid of one cell.
    """
    size = network.architecture.input_size
    images = torch.zeros(2, 3, size, size, device=next(network.parameters()).device)
    with autocast():
        logits, aux_logits = model(images)
    total = logits.sum() + sum(aux.sum() for aux in aux_logits)
    loss: Tensor = 0.0 * total
    return loss


def _by_group(tensors: Sequence[Tensor], num_groups: int) -> Iterable[tuple[Tensor, ...]]:
    """tensors: (N, ...) each. -> of each group, its rows of all of them."""
    if num_groups == 1:
        return [tuple(tensors)]
    return zip(*(rows.chunk(num_groups) for rows in tensors), strict=True)


def group_keys(
    seed: int, step: int, index: int, num_groups: int, num_micro_batches: int
) -> list[int]:
    """Of the groups of micro-batch `index`, which are every M-th of the step's."""
    groups = range(index, num_groups * num_micro_batches, num_micro_batches)
    return [micro_batch_key(seed, step, group) for group in groups]


def micro_batch_key(seed: int, step: int, index: int) -> int:
    """A 63-bit hash of (seed, step, micro-batch): SplitMix64's finalizer over a linear key."""
    mask = 2**64 - 1
    z = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + index * 0x94D049BB133111EB) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return (z ^ (z >> 31)) >> 1
