"""Batches for one rank: the samples it works, decoded in threads, in the canonical order."""

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from datasets.augment import Augment, augmented, draw, evaluated
from datasets.decode import decode_image, decode_label, find_image
from datasets.manifest import Manifest
from datasets.order import (
    Order,
    Window,
    eval_batches_of_rank,
    micro_batch_positions,
    micro_batches_of_rank,
)
from datasets.store import Store
from datasets.stream import (
    Sample,
    Samples,
    Ticket,
    build_pipeline,
    fetch_window,
    in_threads,
    stream,
    train_tickets,
)

FETCHES = 4  # windows fetched at once, of one rank
STEPS_AHEAD = 2


@dataclass(frozen=True, slots=True, eq=False)
class MicroBatch:
    """Micro-batch `index` of a step's global batch (of an evaluation: its batch number).

    images: uint8 (m, 3, S, S) in channels-last layout; targets: int64 (m,); weights: float32
    (m,), zero for padding; samples: int64 (m, 2), (shard, sample) of each.
    """

    index: int
    images: Tensor
    targets: Tensor
    weights: Tensor
    samples: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class _View:
    """One decoded sample."""

    image: Tensor
    target: int
    shard: int
    sample: int


class _Loader:
    """The threads of a loader, and their end."""

    def __init__(self, store: Store, manifest: Manifest, *, threads: int) -> None:
        self.manifest = manifest
        self.wait_s = 0.0  # seconds that the consumer waited for data
        self._store = store
        self._fetchers = ThreadPoolExecutor(FETCHES, thread_name_prefix="fetch")
        self._decoders = ThreadPoolExecutor(threads, thread_name_prefix="decode")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends every thread of this loader; what they had begun is dropped."""
        for pool in (self._decoders, self._fetchers):
            pool.shutdown(wait=True, cancel_futures=True)

    def _fetch(self, window: Window) -> "Future[Samples]":
        return self._fetchers.submit(fetch_window, self._store, self.manifest, window)

    def _waited(self, items: Iterator[Any]) -> Iterator[Any]:
        """The items, with the time spent waiting for each counted."""
        while True:
            began = time.monotonic()
            item = next(items, None)
            self.wait_s += time.monotonic() - began
            if item is None:
                return
            yield item

    def _view(self, sample: Sample, image: Tensor) -> _View:
        where = f"{sample['__url__']}:{sample['__key__']}"
        target = decode_label(sample, self.manifest.num_classes, where)
        return _View(image, target, sample["__shard__"], sample["__sample__"])


class TrainLoader(_Loader):
    """Endless training steps: each item is this rank's list of micro-batches of one step.

    start_position: global samples of finished steps, a multiple of the global batch. Iterating
    raises DataError or StoreError at the step that holds the bad sample.
    """

    def __init__(
        self,
        store: Store,
        manifest: Manifest,
        order: Order,
        *,
        rank: int,
        world_size: int,
        global_batch_size: int,
        micro_batch_size: int,
        input_size: int,
        augment: Augment,
        threads: int = 1,
        start_position: int = 0,
    ) -> None:
        super().__init__(store, manifest, threads=threads)
        assert start_position % global_batch_size == 0, "steps begin at whole batches"
        self._order = order
        self._input_size = input_size
        self._augment = augment
        self._global_batch = global_batch_size
        self._micro_batch = micro_batch_size
        self._first_step = start_position // global_batch_size
        self._indices = micro_batches_of_rank(
            rank,
            world_size=world_size,
            num_micro_batches=global_batch_size // micro_batch_size,
        )

    def __iter__(self) -> Iterator[list[MicroBatch]]:
        a_step = self._micro_batch * len(self._indices)
        tickets = train_tickets(self._positions(), self._order, self._fetch)
        return self._waited(
            build_pipeline(
                stream(tickets, lookahead=STEPS_AHEAD * a_step),
                in_threads(self._decode, self._decoders, ahead=STEPS_AHEAD * a_step),
                self._assemble,
            )
        )

    def _step_positions(self, step: int) -> "np.ndarray[Any, np.dtype[np.int64]]":
        """Positions of this rank's micro-batches: int64 (micro-batches, micro_batch_size)."""
        return np.stack(
            [
                micro_batch_positions(
                    step, j, global_batch=self._global_batch, micro_batch=self._micro_batch
                )
                for j in self._indices
            ]
        )

    def _positions(self) -> Iterator[int]:
        """Ascending within a step, so that each lane is walked forwards."""
        for step in count(self._first_step):
            yield from np.sort(self._step_positions(step), axis=None).tolist()

    def _decode(self, sample: Sample) -> _View:
        where = f"{sample['__url__']}:{sample['__key__']}"
        numbers = draw(
            self._order.seed, sample["__epoch__"], sample["__shard__"], sample["__sample__"]
        )
        image = decode_image(find_image(sample, where), where)
        return self._view(
            sample, augmented(image, self._augment, self._input_size, numbers=numbers)
        )

    def _assemble(self, views: Iterator[_View]) -> Iterator[list[MicroBatch]]:
        """A pipeline stage: the sorted views of a step into its micro-batches."""
        for step in count(self._first_step):
            positions = self._step_positions(step)
            batches = [
                _empty(j, self._micro_batch, self._input_size, weight=1.0) for j in self._indices
            ]
            for place in np.argsort(positions, axis=None, kind="stable").tolist():
                row, slot = divmod(place, self._micro_batch)
                _fill(batches[row], slot, next(views))
            yield batches


class EvalLoader(_Loader):
    """One pass over a split: every sample in exactly one batch of one rank, in manifest order.

    crop: share of the shorter side that the central square takes. The last batch is padded with
    weight zero. Ranks may get different numbers of batches: scoring them needs no collective.
    """

    def __init__(
        self,
        store: Store,
        manifest: Manifest,
        *,
        rank: int,
        world_size: int,
        batch_size: int,
        input_size: int,
        crop: float = 0.875,
        threads: int = 1,
    ) -> None:
        super().__init__(store, manifest, threads=threads)
        self._input_size = input_size
        self._crop = crop
        self._batch_size = batch_size
        self._starts = np.concatenate([[0], np.cumsum(manifest.samples_per_shard)])
        self._batches = eval_batches_of_rank(
            rank,
            world_size=world_size,
            num_samples=manifest.num_samples,
            batch_size=batch_size,
        )

    def __iter__(self) -> Iterator[MicroBatch]:
        ahead = STEPS_AHEAD * self._batch_size
        return self._waited(
            build_pipeline(
                stream(self._tickets(), lookahead=ahead),
                in_threads(self._decode, self._decoders, ahead=ahead),
                self._assemble,
            )
        )

    def _tickets(self) -> Iterator[Ticket]:
        for first, size in self._batches:
            positions = np.arange(first, first + size)
            shards = np.searchsorted(self._starts, positions, side="right") - 1
            samples = np.stack([shards, positions - self._starts[shards]], axis=1)
            runs = tuple(
                (int(shard), int(rows[0, 1]), len(rows))
                for shard in np.unique(shards)
                for rows in [samples[shards == shard]]
            )
            future = self._fetch(Window(0, runs, samples))
            for position, (shard, sample) in zip(positions.tolist(), samples.tolist(), strict=True):
                yield Ticket(position, 0, shard, sample, future)

    def _decode(self, sample: Sample) -> _View:
        where = f"{sample['__url__']}:{sample['__key__']}"
        image = decode_image(find_image(sample, where), where)
        return self._view(sample, evaluated(image, self._input_size, fraction=self._crop))

    def _assemble(self, views: Iterator[_View]) -> Iterator[MicroBatch]:
        for number, (_, size) in enumerate(self._batches):
            batch = _empty(number, self._batch_size, self._input_size, weight=0.0)
            for slot in range(size):
                _fill(batch, slot, next(views))
            batch.weights[:size] = 1.0
            yield batch


def _empty(index: int, size: int, pixels: int, *, weight: float) -> MicroBatch:
    images = torch.zeros((size, pixels, pixels, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    return MicroBatch(
        index=index,
        images=images,  # (size, 3, pixels, pixels), channels last
        targets=torch.zeros(size, dtype=torch.int64),
        weights=torch.full((size,), weight),
        samples=torch.full((size, 2), -1, dtype=torch.int64),
    )


def _fill(batch: MicroBatch, slot: int, view: _View) -> None:
    batch.images[slot] = view.image
    batch.targets[slot] = view.target
    batch.samples[slot, 0] = view.shard
    batch.samples[slot, 1] = view.sample
