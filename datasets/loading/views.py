"""Batches from shards: samples fetched, decoded and cropped into their rows, in order.

Runs in a rank's own process with decoding threads, or in each of its loader processes without.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain, count, islice, tee

from datasets.errors import DataError
from datasets.images.augment import (
    Augment,
    center_box,
    colour_of,
    count_views,
    crop_box,
    draw,
    is_mirrored,
    resize_views,
)
from datasets.images.decode import CpuDecoder, decode_image, find_image
from datasets.images.nvjpeg import GpuDecoder
from datasets.images.randaugment import rand_augment
from datasets.loading.batch import BatchBuffer, empty_buffer
from datasets.loading.positions import BatchPlan, plan_step
from datasets.loading.share import Share
from datasets.loading.stream import (
    Fetch,
    Sample,
    SampleRequest,
    SampleRuns,
    build_pipeline,
    eval_requests,
    fetch_run,
    in_threads,
    stream,
    train_requests,
)
from datasets.order import Order, Run
from datasets.shards.manifest import Manifest
from datasets.storage.store import Store

FETCH_THREADS = 4  # of a process; each fetches one run at a time


class Reader:
    """The threads that fetch and decode batches. threads: that decode; 0 uses the caller's."""

    def __init__(self, decoder: "BatchDecoder", *, threads: int) -> None:
        self._decoder = decoder
        self._fetchers = ThreadPoolExecutor(FETCH_THREADS, thread_name_prefix="fetch")
        self._decoders = (
            ThreadPoolExecutor(threads, thread_name_prefix="decode") if threads else None
        )

    def close(self) -> None:
        """Ends every thread and drops what they have not finished."""
        for pool in (self._decoders, self._fetchers):
            if pool is not None:
                pool.shutdown(wait=True, cancel_futures=True)

    def batches(self, plans: Iterable[BatchPlan], *, ahead: int) -> Iterator[BatchBuffer]:
        """Each plan's batch. A damaged sample's row is blank and has its error. `ahead` samples are
        fetched, and if there are threads as many decoded, before they are needed. Raises StoreError
        at the sample that could not be fetched."""
        # Fetching, decoding and completing walk the same plans, each behind the one before it.
        to_fetch, to_decode, to_complete = tee(plans, 3)
        decoder = self._decoder

        def assign_rows(samples: Iterator[Sample]) -> Iterator[tuple[Sample, BatchBuffer, int]]:
            for plan in to_decode:
                buffer = decoder.allocate(len(plan.rows))  # not earlier: requests run far ahead
                for row, sample in zip(plan.rows.tolist(), samples, strict=False):
                    yield sample, buffer, row

        filled = build_pipeline(
            stream(decoder.requests(to_fetch, self._fetch), lookahead=ahead),
            assign_rows,
            in_threads(self._fill_row, self._decoders, ahead=ahead)
            if self._decoders
            else partial(map, self._fill_row),
        )
        for plan in to_complete:
            # The plan's samples share a buffer, which the last of them completes.
            last = deque(islice(filled, len(plan.rows)), maxlen=1)
            yield last.pop() if last else decoder.allocate(0)

    def _fetch(self, runs: tuple[Run, ...]) -> SampleRuns:
        """Starts to fetch each run."""
        store, manifest = self._decoder.store, self._decoder.manifest
        return {run[0]: self._fetchers.submit(fetch_run, store, manifest, run) for run in runs}

    def _fill_row(self, item: tuple[Sample, BatchBuffer, int]) -> BatchBuffer:
        sample, buffer, row = item
        manifest = self._decoder.manifest
        buffer.samples[row] = sample["__shard__"], sample["__sample__"]
        buffer.keys[row] = sample["__key__"]
        where = f"{manifest.shard_url(sample['__shard__'])}:{sample['__key__']}"
        try:
            if "__damage__" in sample:
                raise sample["__damage__"]
            buffer.targets[row] = manifest.class_of(sample, where)
            self._decoder.decode(sample, where, buffer, row)
            buffer.weights[row] = 1.0
        except DataError as error:
            buffer.targets[row] = 0
            buffer.blank(row, error)
        return buffer


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainDecoder:
    """A share of the training batches. Pickles, for loader processes."""

    store: Store
    manifest: Manifest
    order: Order
    share: Share
    augment: Augment
    input_size: int
    first_step: int
    image_decoder: CpuDecoder | GpuDecoder

    def plans(self) -> Iterator[BatchPlan]:
        """The share's part of every step from the first, endlessly."""
        return (plan_step(self.share, step, self.order) for step in count(self.first_step))

    def requests(self, plans: Iterable[BatchPlan], fetch: Fetch) -> Iterator[SampleRequest]:
        """The plans' samples in reading order."""
        positions = chain.from_iterable(plan.positions.tolist() for plan in plans)
        return train_requests(positions, self.order, fetch)

    def allocate(self, num_samples: int) -> BatchBuffer:
        """The buffer of a batch of so many samples."""
        return empty_buffer(
            num_samples,
            self.input_size,
            has_colours=bool(self.augment.colour),
            device=self.image_decoder.device,
        )

    def decode(self, sample: Sample, where: str, buffer: BatchBuffer, row: int) -> None:
        """Decodes a sample into its row. where: names it in errors. Raises DataError."""
        augment = self.augment
        numbers = draw(
            self.order.seed, sample["__epoch__"], sample["__shard__"], sample["__sample__"], augment
        )
        self.image_decoder.resize_into(
            buffer.images[row : row + 1],
            find_image(sample, where),
            lambda height, width: crop_box(numbers, height, width, augment),
            where,
        )
        if augment.operations:
            rand_augment(
                buffer.images[row],
                numbers,
                operations=augment.operations,
                magnitude=augment.magnitude,
            )
        buffer.mirrored[row] = is_mirrored(numbers, augment)
        if buffer.colours is not None:
            buffer.colours[row] = colour_of(numbers, augment)


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalDecoder:
    """Evaluation batches. crop, crops: EvalLoader's; several are cut by the CPU's decoder."""

    store: Store
    manifest: Manifest
    batch_size: int
    input_size: int
    crop: float
    crops: int
    image_decoder: CpuDecoder | GpuDecoder

    def requests(self, plans: Iterable[BatchPlan], fetch: Fetch) -> Iterator[SampleRequest]:
        return eval_requests((plan.positions for plan in plans), self.manifest, fetch)

    def allocate(self, num_samples: int) -> BatchBuffer:
        """Padded: rows beyond the samples are blank."""
        buffer = empty_buffer(
            self.batch_size,
            self.input_size,
            views=count_views(self.crops),
            device=self.image_decoder.device,
        )
        for row in range(num_samples, self.batch_size):
            buffer.blank(row)
        return buffer

    def decode(self, sample: Sample, where: str, buffer: BatchBuffer, row: int) -> None:
        content = find_image(sample, where)
        if self.crops == 1:
            self.image_decoder.resize_into(
                buffer.images[row : row + 1],
                content,
                lambda height, width: center_box(height, width, self.crop),
                where,
            )
        else:
            views = buffer.images[row * buffer.views : (row + 1) * buffer.views]
            resize_views(views, decode_image(content, where), crops=self.crops, fraction=self.crop)


BatchDecoder = TrainDecoder | EvalDecoder
