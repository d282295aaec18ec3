"""Samples -> rows: fetched by windows, decoded, cropped; in order.

Runs in a rank's own process, with threads, or in each of its loader processes, without.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count

import numpy as np
import torch
from torch import Tensor

from datasets.errors import DataError
from datasets.images.augment import (
    Augment,
    center_box,
    colour_of,
    crop_box,
    draw,
    fill_views,
    is_mirrored,
    resize_into,
    views_of,
)
from datasets.images.decode import decode_crop, decode_image, find_image
from datasets.images.nvjpeg import GpuDecoder
from datasets.images.randaugment import rand_augment
from datasets.images.region import Box
from datasets.loading.batch import BatchBuffer, empty_buffer
from datasets.loading.positions import part_places, rank_positions
from datasets.loading.share import Share
from datasets.loading.stream import (
    Sample,
    SampleRequest,
    SampleRuns,
    build_pipeline,
    fetch_run,
    in_threads,
    stream,
    train_requests,
)
from datasets.order import Order, Window
from datasets.shards.manifest import Manifest
from datasets.storage.store import Store

FETCHES = 4  # runs fetched at once, of one process
# (sample, its image's bytes, its name for errors, the rows and the one of them to fill)
Look = Callable[[Sample, memoryview | bytes, str, BatchBuffer, int], None]


class Reader:
    """The threads that fetch and decode, and their end. threads: 0 decodes in the caller's."""

    def __init__(self, store: Store, manifest: Manifest, *, threads: int) -> None:
        self._store, self._manifest = store, manifest
        self._fetchers = ThreadPoolExecutor(FETCHES, thread_name_prefix="fetch")
        self._decoders = (
            ThreadPoolExecutor(threads, thread_name_prefix="decode") if threads else None
        )

    def close(self) -> None:
        """Ends every thread; what they had begun is dropped."""
        for pool in (self._decoders, self._fetchers):
            if pool is not None:
                pool.shutdown(wait=True, cancel_futures=True)

    def fetch(self, window: Window) -> SampleRuns:
        """Begins to fetch each run of a window."""
        return {
            run[0]: self._fetchers.submit(fetch_run, self._store, self._manifest, run)
            for run in window.runs
        }

    def fill(
        self,
        tickets: Iterable[SampleRequest],
        slots: Iterable[tuple[BatchBuffer, int]],
        look: Look,
        *,
        fetch_ahead: int,
        decode_ahead: int,
    ) -> Iterator[None]:
        """Decodes each ticket's sample into its slot; one item for each that is done, in order.

        What is wrong with a sample becomes its row's error. Raises StoreError at its place.
        """

        def decode(pair: tuple[Sample, tuple[BatchBuffer, int]]) -> None:
            sample, (rows, row) = pair
            rows.samples[row] = sample["__shard__"], sample["__sample__"]
            rows.keys[row] = sample["__key__"]
            where = f"{self._manifest.shard_url(sample['__shard__'])}:{sample['__key__']}"
            try:
                if "__damage__" in sample:
                    raise sample["__damage__"]
                rows.targets[row] = self._manifest.class_of(sample, where)
                look(sample, find_image(sample, where), where, rows, row)
                rows.weights[row] = 1.0
            except DataError as error:
                rows.targets[row] = 0
                rows.blank(row, error)

        def with_slots(
            samples: Iterable[Sample],
        ) -> Iterator[tuple[Sample, tuple[BatchBuffer, int]]]:
            return zip(samples, slots, strict=False)

        def in_place(pairs: Iterable[tuple[Sample, tuple[BatchBuffer, int]]]) -> Iterator[None]:
            return map(decode, pairs)

        return build_pipeline(
            stream(tickets, lookahead=fetch_ahead, copies=False),
            with_slots,
            in_threads(decode, self._decoders, ahead=decode_ahead) if self._decoders else in_place,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainViews:
    """What the rows of a training share are made of; travels to a loader process."""

    store: Store
    manifest: Manifest
    order: Order
    share: Share
    augment: Augment
    input_size: int
    first_step: int
    decoder: GpuDecoder | None = None

    def steps(self, reader: Reader, *, steps_ahead: int) -> Iterator[BatchBuffer]:
        """The share's rows of every step from the first, in ascending places. Windows are fetched
        `steps_ahead` steps ahead, and where the reader has threads, images decoded as far."""
        made: deque[BatchBuffer] = deque()
        ahead = steps_ahead * max(1, self.share.step_samples)
        done = reader.fill(
            train_requests(self._positions(), self.order, reader.fetch),
            self._slots(made),
            self.look,
            fetch_ahead=ahead // self.share.parts,
            decode_ahead=ahead,
        )
        for step in count(self.first_step):
            size = len(part_places(self.share, step, self.order))
            for _ in range(size):
                next(done)
            yield made.popleft() if size else self.empty(0)

    def empty(self, count: int) -> BatchBuffer:
        return empty_buffer(
            count,
            self.input_size,
            has_colours=bool(self.augment.colour),
            device=_device(self.decoder),
        )

    def look(
        self, sample: Sample, content: memoryview | bytes, where: str, rows: BatchBuffer, row: int
    ) -> None:
        augment = self.augment
        numbers = draw(
            self.order.seed, sample["__epoch__"], sample["__shard__"], sample["__sample__"], augment
        )
        _resize_into(
            rows.images[row : row + 1],
            content,
            lambda height, width: crop_box(numbers, height, width, augment),
            where,
            self.decoder,
        )
        if augment.operations:
            rand_augment(
                rows.images[row],
                numbers,
                operations=augment.operations,
                magnitude=augment.magnitude,
            )
        rows.mirrored[row] = is_mirrored(numbers, augment)
        if rows.colours is not None:
            rows.colours[row] = colour_of(numbers, augment)

    def _slots(self, made: deque[BatchBuffer]) -> Iterator[tuple[BatchBuffer, int]]:
        """Where each sample goes; a step's rows are made when its first sample comes."""
        for step in count(self.first_step):
            places = part_places(self.share, step, self.order)
            if len(places):
                rows = self.empty(len(places))
                made.append(rows)
                for row in np.argsort(np.argsort(places)).tolist():
                    yield rows, row

    def _positions(self) -> Iterator[int]:
        for step in count(self.first_step):
            places = part_places(self.share, step, self.order)
            yield from rank_positions(self.share, step).ravel()[places].tolist()


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalViews:
    """What the rows of an evaluation are made of. crop: share of the shorter side that the central
    square takes; crops: 1, 12 or 144 (evaluation_boxes); batches: (first position, count) in the
    manifest's order."""

    manifest: Manifest
    batches: list[tuple[int, int]]
    batch_size: int
    input_size: int
    crop: float
    crops: int = 1
    decoder: GpuDecoder | None = None

    @property
    def views(self) -> int:
        """Crops of each image; mirrors are not counted."""
        return views_of(self.crops)

    def fill(self, reader: Reader, *, batches_ahead: int) -> Iterator[BatchBuffer]:
        """Rows of each batch, the last one padded."""
        made: deque[BatchBuffer] = deque()
        ahead = batches_ahead * self.batch_size
        done = reader.fill(
            self._requests(reader),
            self._slots(made),
            self.look,
            fetch_ahead=ahead,
            decode_ahead=ahead,
        )
        for _, size in self.batches:
            for _ in range(size):
                next(done)
            rows = made.popleft()
            for row in range(size, self.batch_size):
                rows.blank(row)
            yield rows

    def look(
        self, sample: Sample, content: memoryview | bytes, where: str, rows: BatchBuffer, row: int
    ) -> None:
        if self.crops == 1:
            _resize_into(
                rows.images[row : row + 1],
                content,
                lambda height, width: center_box(height, width, self.crop),
                where,
                self.decoder,
            )
            return
        views = rows.images[row * self.views : (row + 1) * self.views]
        fill_views(views, decode_image(content, where), crops=self.crops, fraction=self.crop)

    def _slots(self, made: deque[BatchBuffer]) -> Iterator[tuple[BatchBuffer, int]]:
        for _, size in self.batches:
            rows = empty_buffer(
                self.batch_size, self.input_size, views=self.views, device=_device(self.decoder)
            )
            made.append(rows)
            for row in range(size):
                yield rows, row

    def _requests(self, reader: Reader) -> Iterator[SampleRequest]:
        for first, size in self.batches:
            positions = np.arange(first, first + size)
            samples = self.manifest.samples_at(positions)
            shards = samples[:, 0]
            runs = tuple(
                (int(shard), int(rows[0, 1]), len(rows))
                for shard in np.unique(shards)
                for rows in [samples[shards == shard]]
            )
            fetched = reader.fetch(Window(0, runs, samples))
            for position, (shard, sample) in zip(positions.tolist(), samples.tolist(), strict=True):
                yield SampleRequest(position, 0, shard, sample, fetched[shard])


def _resize_into(
    target: Tensor,
    content: memoryview | bytes,
    choose: Callable[[int, int], Box],
    where: str,
    decoder: GpuDecoder | None,
) -> None:
    """The crop of an image file into its row, by the CPU or by the rank's GPU decoder."""
    if decoder is None:
        image, box = decode_crop(content, choose, where)
        resize_into(target, image, box)
    else:
        decoder.resize_into(target, content, choose, where)


def _device(decoder: GpuDecoder | None) -> torch.device:
    return torch.device("cpu") if decoder is None else decoder.device
