"""Batches for one rank: the samples it works, in the canonical order.

They are decoded in threads of the rank's own process or, with `workers`, in processes beside it.
Neither their number nor the world size changes what a batch holds.
"""

import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

from datasets.images.augment import Augment
from datasets.images.nvjpeg import GpuDecoder
from datasets.loading.batch import BatchBuffer, Damages, MicroBatch
from datasets.loading.processes import steps_of_processes
from datasets.loading.share import STEPS_AHEAD, Share
from datasets.loading.views import EvalViews, Reader, TrainViews
from datasets.order import Order, eval_batches_of_rank
from datasets.shards.manifest import Manifest
from datasets.storage.store import Store


class _Loader:
    """What both loaders share: waiting is counted, damage is skipped or raised, threads end.

    is_skipping: a damaged sample keeps its place in its batch with weight zero and a black image,
    and is counted in `damages`; otherwise its DataError is raised at its place.
    """

    def __init__(self, *, is_skipping: bool) -> None:
        self.damages = Damages()
        self.wait_s = 0.0  # seconds that the consumer waited for data
        self._is_skipping = is_skipping
        self._open: list[Any] = []  # what close() ends

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
        """Ends every thread and process of this loader; what they had begun is dropped."""
        while self._open:
            self._open.pop().close()

    def _checked(self, rows: BatchBuffer) -> BatchBuffer:
        """Raises the first damaged row's error, or counts them all."""
        for row in sorted(rows.errors):
            if not self._is_skipping:
                raise rows.errors[row]
            self.damages.add(rows.errors[row])
        return rows

    def _waited(self, items: Iterator[Any]) -> Iterator[Any]:
        """The items, with the time spent waiting for each counted."""
        while True:
            began = time.monotonic()
            item = next(items, None)
            self.wait_s += time.monotonic() - began
            if item is None:
                return
            yield item


class TrainLoader(_Loader):
    """Endless training steps: each item is this rank's list of micro-batches of one step.

    workers: loader processes; 0 decodes in `threads` threads of this one, by `decoder` where there
    is one. start_position: global samples of finished steps, a multiple of the global batch.
    Iterating raises DataError, StoreError or LoaderError at the step that holds the bad sample.
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
        workers: int = 0,
        threads: int = 1,
        is_skipping: bool = False,
        start_position: int = 0,
        decoder: GpuDecoder | None = None,
    ) -> None:
        super().__init__(is_skipping=is_skipping)
        assert start_position % global_batch_size == 0, "steps begin at whole batches"
        assert decoder is None or not workers, "a GPU decoder works in its rank's own process"
        self._workers, self._threads = workers, threads
        self._views = TrainViews(
            store=store,
            manifest=manifest,
            order=order,
            share=Share(
                rank=rank,
                world_size=world_size,
                global_batch_size=global_batch_size,
                micro_batch_size=micro_batch_size,
            ),
            augment=augment,
            input_size=input_size,
            first_step=start_position // global_batch_size,
            decoder=decoder,
        )

    def __iter__(self) -> Iterator[list[MicroBatch]]:
        if not self._views.share.indices:  # more ranks than micro-batches
            return iter(lambda: [], None)
        if self._workers:
            made = steps_of_processes(self._views, self._workers, steps_ahead=STEPS_AHEAD)
            self._open.append(made)
        else:
            reader = Reader(self._views.store, self._views.manifest, threads=self._threads)
            self._open.append(reader)
            made = self._views.steps(reader, steps_ahead=STEPS_AHEAD)
        return self._waited(self._cut(made))

    def _cut(self, steps: Iterator[BatchBuffer]) -> Iterator[list[MicroBatch]]:
        share = self._views.share
        for rows in steps:
            yield self._checked(rows).micro_batches(share.indices, share.micro_batch_size)


class EvalLoader(_Loader):
    """One pass over a split: every sample in exactly one batch of one rank, in manifest order.

    crop: share of the shorter side that the central square takes; crops: 1, or 12 or 144 of each
    image, which are then decoded on the CPU. The last batch is padded with
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
        crops: int = 1,
        threads: int = 1,
        is_skipping: bool = False,
        decoder: GpuDecoder | None = None,
    ) -> None:
        super().__init__(is_skipping=is_skipping)
        self._store, self._threads = store, threads
        self._views = EvalViews(
            manifest=manifest,
            batches=eval_batches_of_rank(
                rank,
                world_size=world_size,
                num_samples=manifest.num_samples,
                batch_size=batch_size,
            ),
            batch_size=batch_size,
            input_size=input_size,
            crop=crop,
            crops=crops,
            decoder=decoder if crops == 1 else None,
        )

    def __iter__(self) -> Iterator[MicroBatch]:
        reader = Reader(self._store, self._views.manifest, threads=self._threads)
        self._open.append(reader)
        return self._waited(self._cut(self._views.fill(reader, batches_ahead=STEPS_AHEAD)))

    def _cut(self, batches: Iterator[BatchBuffer]) -> Iterator[MicroBatch]:
        for number, rows in enumerate(batches):
            yield from self._checked(rows).micro_batches([number], self._views.batch_size)
