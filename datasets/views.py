"""Samples -> views: fetched by windows, decoded, cropped; in threads, in order.

Runs in a rank's own process, or in each of its loader processes.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count

import numpy as np

from datasets.augment import Augment, center_box, colour_of, crop_box, draw, is_mirrored, resized
from datasets.batch import View
from datasets.decode import decode_crop, find_image
from datasets.errors import DataError
from datasets.manifest import Manifest
from datasets.order import Order, Window
from datasets.randaugment import rand_augmented
from datasets.share import Share
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

FETCHES = 4  # windows fetched at once, of one process
Look = Callable[[Sample, bytes, str], View]  # a sample, its image's bytes, its name for errors


class Reader:
    """The threads that fetch and decode, and their end."""

    def __init__(self, store: Store, manifest: Manifest, *, threads: int) -> None:
        self._store, self._manifest = store, manifest
        self._fetchers = ThreadPoolExecutor(FETCHES, thread_name_prefix="fetch")
        self._decoders = ThreadPoolExecutor(threads, thread_name_prefix="decode")

    def close(self) -> None:
        """Ends every thread; what they had begun is dropped."""
        for pool in (self._decoders, self._fetchers):
            pool.shutdown(wait=True, cancel_futures=True)

    def fetch(self, window: Window) -> "Future[Samples]":
        return self._fetchers.submit(fetch_window, self._store, self._manifest, window)

    def views(
        self, tickets: Iterable[Ticket], look: Look, *, fetch_ahead: int, decode_ahead: int
    ) -> Iterator[View]:
        """A view of each ticket's sample, in order. Raises StoreError at its place; what is wrong
        with a sample is its view's error."""

        def decode(sample: Sample) -> View:
            where = f"{self._manifest.shard_url(sample['__shard__'])}:{sample['__key__']}"
            try:
                if "__damage__" in sample:
                    raise sample["__damage__"]
                return look(sample, find_image(sample, where), where)
            except DataError as error:
                return View(sample["__shard__"], sample["__sample__"], error=error)

        return build_pipeline(
            stream(tickets, lookahead=fetch_ahead),
            in_threads(decode, self._decoders, ahead=decode_ahead),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainViews:
    """What the views of a training share are made of; travels to a loader process."""

    store: Store
    manifest: Manifest
    order: Order
    share: Share
    augment: Augment
    input_size: int
    first_step: int

    def steps(self, reader: Reader, *, fetch_ahead: int, decode_ahead: int) -> Iterator[View]:
        """The share's views without end, each step's in the order of its places. fetch_ahead,
        decode_ahead: in steps and in samples."""
        a_step = max(1, len(self.share.places(self.first_step, self.order)))
        tickets = train_tickets(self._positions(), self.order, reader.fetch)
        return reader.views(
            tickets, self.look, fetch_ahead=fetch_ahead * a_step, decode_ahead=decode_ahead
        )

    def look(self, sample: Sample, content: bytes, where: str) -> View:
        shard, number = sample["__shard__"], sample["__sample__"]
        numbers = draw(self.order.seed, sample["__epoch__"], shard, number, self.augment)
        image, box = decode_crop(
            content, lambda height, width: crop_box(numbers, height, width, self.augment), where
        )
        view = resized(image, box, self.input_size)
        if self.augment.operations:
            view = rand_augmented(
                view,
                numbers,
                operations=self.augment.operations,
                magnitude=self.augment.magnitude,
            )
        return View(
            shard,
            number,
            image=view,
            target=self.manifest.class_of(sample, where),
            is_mirrored=is_mirrored(numbers, self.augment),
            colour=colour_of(numbers, self.augment),
        )

    def _positions(self) -> Iterator[int]:
        for step in count(self.first_step):
            places = self.share.places(step, self.order)
            yield from self.share.positions(step).ravel()[places].tolist()


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalViews:
    """What the views of an evaluation are made of. crop: share of the shorter side that the
    central square takes."""

    manifest: Manifest
    input_size: int
    crop: float

    def tickets(self, batches: list[tuple[int, int]], reader: Reader) -> Iterator[Ticket]:
        """The samples of (first position, count) batches, in the manifest's order."""
        starts = np.concatenate([[0], np.cumsum(self.manifest.samples_per_shard)])
        for first, size in batches:
            positions = np.arange(first, first + size)
            shards = np.searchsorted(starts, positions, side="right") - 1
            samples = np.stack([shards, positions - starts[shards]], axis=1)
            runs = tuple(
                (int(shard), int(rows[0, 1]), len(rows))
                for shard in np.unique(shards)
                for rows in [samples[shards == shard]]
            )
            future = reader.fetch(Window(0, runs, samples))
            for position, (shard, sample) in zip(positions.tolist(), samples.tolist(), strict=True):
                yield Ticket(position, 0, shard, sample, future)

    def look(self, sample: Sample, content: bytes, where: str) -> View:
        image, box = decode_crop(
            content, lambda height, width: center_box(height, width, self.crop), where
        )
        return View(
            sample["__shard__"],
            sample["__sample__"],
            image=resized(image, box, self.input_size),
            target=self.manifest.class_of(sample, where),
        )
