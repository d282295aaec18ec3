"""Batches for one rank: the samples it works, decoded in threads, in the canonical order."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from datasets.augment import Augment, augmented, draw, evaluated
from datasets.batch import Damages, MicroBatch, View, empty_batch, fill_slot
from datasets.decode import decode_image, find_image
from datasets.errors import DataError
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


class _Loader:
    """The threads of a loader, and their end.

    is_skipping: a damaged sample keeps its place in its batch with weight zero and a black image,
    and is counted in `damages`; otherwise its DataError is raised at its place.
    """

    def __init__(
        self,
        store: Store,
        manifest: Manifest,
        *,
        threads: int,
        is_skipping: bool,
        see: Callable[[NDArray[np.uint8], Sample], Tensor],
    ) -> None:
        self.manifest = manifest
        self.damages = Damages()
        self._is_skipping = is_skipping
        self._see = see  # uint8 (H, W, 3) of a sample -> the view the network gets
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

    def _decode(self, sample: Sample) -> View:
        """A pipeline stage's work on one sample, in a decoding thread."""
        shard, number = sample["__shard__"], sample["__sample__"]
        where = f"{self.manifest.shard_url(shard)}:{sample['__key__']}"
        try:
            if "__damage__" in sample:
                raise sample["__damage__"]
            image = decode_image(find_image(sample, where), where)
            target = self.manifest.class_of(sample, where)
        except DataError as error:
            if not self._is_skipping:
                raise
            self.damages.add(error)
            return View(None, 0, shard, number)
        return View(self._see(image, sample), target, shard, number)


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
        is_skipping: bool = False,
        start_position: int = 0,
    ) -> None:
        super().__init__(
            store, manifest, threads=threads, is_skipping=is_skipping, see=self._augmented
        )
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

    def _augmented(self, image: NDArray[np.uint8], sample: Sample) -> Tensor:
        numbers = draw(
            self._order.seed, sample["__epoch__"], sample["__shard__"], sample["__sample__"]
        )
        return augmented(image, self._augment, self._input_size, numbers=numbers)

    def _assemble(self, views: Iterator[View]) -> Iterator[list[MicroBatch]]:
        """A pipeline stage: the sorted views of a step into its micro-batches."""
        for step in count(self._first_step):
            positions = self._step_positions(step)
            batches = [empty_batch(j, self._micro_batch, self._input_size) for j in self._indices]
            for place in np.argsort(positions, axis=None, kind="stable").tolist():
                row, slot = divmod(place, self._micro_batch)
                fill_slot(batches[row], slot, next(views))
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
        is_skipping: bool = False,
    ) -> None:
        super().__init__(
            store, manifest, threads=threads, is_skipping=is_skipping, see=self._centred
        )
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

    def _centred(self, image: NDArray[np.uint8], sample: Sample) -> Tensor:
        return evaluated(image, self._input_size, fraction=self._crop)

    def _assemble(self, views: Iterator[View]) -> Iterator[MicroBatch]:
        for number, (_, size) in enumerate(self._batches):
            batch = empty_batch(number, self._batch_size, self._input_size)
            for slot in range(size):
                fill_slot(batch, slot, next(views))
            yield batch
