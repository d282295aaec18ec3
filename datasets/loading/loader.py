"""A rank's batches: its micro-batches of each training step, or its share of an evaluation.

Samples are decoded in threads of the rank's process or, with `workers`, in processes beside it.
Neither their number nor the world size changes what a micro-batch holds.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import Any, Self

import numpy as np

from datasets.images.augment import Augment
from datasets.images.decode import CpuDecoder
from datasets.images.nvjpeg import GpuDecoder
from datasets.loading.batch import BatchBuffer, DamageCounts, MicroBatch
from datasets.loading.positions import BatchPlan
from datasets.loading.processes import batches_of_processes
from datasets.loading.share import STEPS_AHEAD, Share
from datasets.loading.views import EvalDecoder, Reader, TrainDecoder
from datasets.order import Order, eval_batches_of_rank
from datasets.shards.manifest import Manifest
from datasets.storage.store import Store


class _Loader:
    """What both loaders share: wait times, damaged samples, the end of threads and processes.

    is_skipping: a damaged sample keeps its row, with weight zero and a black image, and is counted
    in `damages`; otherwise its DataError is raised when its batch is due.
    """

    def __init__(self, *, is_skipping: bool) -> None:
        self.damages = DamageCounts()
        self.wait_s = 0.0  # seconds that the consumer waited for data
        self._is_skipping = is_skipping
        self._resources = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends every thread and process of this loader and drops what they have not finished."""
        self._resources.close()

    def _check(self, buffer: BatchBuffer) -> BatchBuffer:
        """Raises the first damaged row's error, or counts all of them."""
        for row in sorted(buffer.errors):
            if not self._is_skipping:
                raise buffer.errors[row]
            self.damages.add(buffer.errors[row])
        return buffer

    def _timed(self, items: Iterator[Any]) -> Iterator[Any]:
        """The items; adds the time spent waiting for each to wait_s."""
        while True:
            start = time.monotonic()
            item = next(items, None)
            self.wait_s += time.monotonic() - start
            if item is None:
                return
            yield item


class TrainLoader(_Loader):
    """Endless training steps: each item is this rank's list of micro-batches of one step.

    workers: loader processes; with 0, `threads` threads of this one decode, on the CPU or with
    `decoder`. first_step: the number of finished steps. The other parameters are fields of the job,
    too. Iterating raises DataError, StoreError or LoaderError at the step that it concerns.
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
        first_step: int = 0,
        decoder: GpuDecoder | None = None,
    ) -> None:
        super().__init__(is_skipping=is_skipping)
        assert decoder is None or not workers, "a GPU decoder works in its rank's own process"
        self._workers, self._threads = workers, threads
        self._decoder = TrainDecoder(
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
            first_step=first_step,
            image_decoder=decoder or CpuDecoder(),
        )

    def __iter__(self) -> Iterator[list[MicroBatch]]:
        decoder, share = self._decoder, self._decoder.share
        if not share.indices:  # more ranks than micro-batches
            return iter(lambda: [], None)
        buffers: Iterator[BatchBuffer]
        if self._workers:
            buffers = self._resources.enter_context(
                closing(batches_of_processes(decoder, self._workers))
            )
        else:
            reader = self._resources.enter_context(closing(Reader(decoder, threads=self._threads)))
            buffers = reader.batches(decoder.plans(), ahead=STEPS_AHEAD * share.step_samples)
        return self._timed(
            self._check(buffer).micro_batches(share.indices, share.micro_batch_size)
            for buffer in buffers
        )


class EvalLoader(_Loader):
    """One pass over a split: every sample in exactly one batch of one rank, in manifest order.

    crop: share of the shorter side that the central square takes. crops: of each image, 1, 12 or
    144; several are cut on the CPU. The other parameters are fields of the job, too. The last batch
    is padded with rows of weight zero. Ranks may get different numbers of batches, so scoring must
    not need a collective.
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
        self._threads = threads
        self._batches = eval_batches_of_rank(
            rank, world_size=world_size, num_samples=manifest.num_samples, batch_size=batch_size
        )
        self._decoder = EvalDecoder(
            store=store,
            manifest=manifest,
            batch_size=batch_size,
            input_size=input_size,
            crop=crop,
            crops=crops,
            image_decoder=decoder if decoder and crops == 1 else CpuDecoder(),
        )

    def __iter__(self) -> Iterator[MicroBatch]:
        decoder, size = self._decoder, self._decoder.batch_size
        reader = self._resources.enter_context(closing(Reader(decoder, threads=self._threads)))
        plans = (
            BatchPlan(np.arange(first, first + count), np.arange(count))
            for first, count in self._batches
        )
        buffers = reader.batches(plans, ahead=STEPS_AHEAD * size)
        return self._timed(
            batch
            for number, buffer in enumerate(buffers)
            for batch in self._check(buffer).micro_batches([number], size)
        )
