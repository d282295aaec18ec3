"""Shards -> samples in the canonical order, by byte ranges; plugs into webdataset's pipelines.

A plan of tickets runs ahead of the consumer: as soon as a ticket needs a window that nobody has
asked for, its runs are fetched, each in a thread. Their bytes live as long as a ticket in flight
needs them, so memory is bounded by the lanes in use times their window.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import webdataset as wds
from webdataset.tariterators import base_plus_ext

from datasets.errors import DataError, ShardError
from datasets.order import Order, Window
from datasets.shards.manifest import Manifest
from datasets.shards.tar import BLOCK_BYTES, members
from datasets.storage.store import Store
from datasets.storage.transfer import buffer

REQUEST_BYTES = 8 * 2**20  # of one range request
GROUP = 8  # samples handed to a decoding thread at once
Sample = dict[str, Any]  # webdataset's: __key__, __url__, extension -> bytes (or a view of them)
Samples = dict[tuple[int, int], Sample]  # by (shard, sample)


SampleRuns = dict[int, "Future[SampleRun]"]  # by shard: a window has one run of each
Fetch = Callable[[Window], SampleRuns]


@dataclass(frozen=True, slots=True, eq=False)
class SampleRequest:
    """One sample to come: its global position, who it is, and the run of its window that holds
    it."""

    position: int
    epoch: int
    shard: int
    sample: int
    run: "Future[SampleRun]"


def train_requests(positions: Iterable[int], order: Order, fetch: Fetch) -> Iterator[SampleRequest]:
    """Tickets of global positions, ascending within a lane and an epoch at a time. `fetch` is
    called once a window, when first needed."""
    # (epoch, lane) -> its remaining windows, the open one and what it will hold
    lanes: dict[tuple[int, int], tuple[Iterator[Window], Window, SampleRuns]] = {}
    current = -1
    for position in positions:
        epoch, place = divmod(int(position), order.num_samples)
        lane, index = place % order.num_lanes, place // order.num_lanes
        if epoch != current:  # an earlier epoch's lanes are done
            lanes = {key: kept for key, kept in lanes.items() if key[0] >= epoch}
            current = epoch
        opened = lanes.get((epoch, lane))
        if opened is None:
            windows = order.windows(epoch, lane, index)
            window = next(windows)
            lanes[epoch, lane] = opened = (windows, window, fetch(window))
        windows, window, runs = opened
        while index >= window.first_index + len(window.samples):
            window = next(windows)
            if index < window.first_index + len(window.samples):
                lanes[epoch, lane] = (windows, window, runs := fetch(window))
        shard, sample = window.samples[index - window.first_index].tolist()
        yield SampleRequest(position, epoch, shard, sample, runs[shard])


@dataclass(frozen=True, slots=True, eq=False)
class SampleRun:
    """The bytes of consecutive samples of a shard from `first`, or why they are lost. offsets: byte
    of each sample in `content`, and where the last one ends."""

    url: str
    first: int
    offsets: list[int]
    content: memoryview
    error: DataError | None = None

    def sample(self, number: int) -> Sample:
        """Sample `number` of the shard. One that is lost, damaged or not where the index says has
        the error as __damage__ and no files: what to do about it is the next stage's choice."""
        if self.error is not None:
            return {"__key__": f"sample {number}", "__damage__": self.error}
        place = number - self.first
        try:
            part = self.content[self.offsets[place] : self.offsets[place + 1]]
            found = list(split_samples(part, self.url))
            if len(found) == 1 and found[0][0] == 0:
                return found[0][1]
            raise ShardError(
                f"{self.url}: got {len(found)} samples where its index has sample {number}; shard "
                "and index must agree. Index it again."
            )
        except ShardError as error:
            return {"__key__": f"sample {number}", "__damage__": error}


def fetch_run(store: Store, manifest: Manifest, run: tuple[int, int, int]) -> SampleRun:
    """A window's run (shard, first, count), read by ranges of at most 8 MiB. Raises StoreError."""
    shard, first, count = run
    described, url = manifest.shards[shard], manifest.shard_url(shard)
    start, length = described.byte_range(first, count)
    blocks = described.offsets[first : first + count + 1].astype(np.int64)
    content = buffer(length)
    error = None
    try:
        for begin, end in requests(start, length):
            store.read_into(
                url,
                content[begin - start : end - start],
                begin,
                described.etag,
                described.size_bytes,
            )
    except DataError as found:
        error, content = found, buffer(0)
    return SampleRun(url, first, ((blocks - blocks[0]) * BLOCK_BYTES).tolist(), content, error)


def fetch_window(store: Store, manifest: Manifest, window: Window) -> Samples:
    """All samples of a window, one run after the other. Raises StoreError."""
    found: Samples = {}
    for shard, first, count in window.runs:
        run = fetch_run(store, manifest, (shard, first, count))
        found |= {(shard, number): run.sample(number) for number in range(first, first + count)}
    return found


def requests(start: int, length: int) -> Iterator[tuple[int, int]]:
    """(first byte, end) of the range requests for a run. Cutting where the object's own 8 MiB
    parts meet instead was measured to gain nothing."""
    for at in range(start, start + length, REQUEST_BYTES):
        yield at, min(start + length, at + REQUEST_BYTES)


def split_samples(content: memoryview, url: str) -> Iterator[tuple[int, Sample]]:
    """(first byte, sample) of each sample in whole tar members, grouped by webdataset's key rule.

    Files are views of `content`: `with_bytes` copies them where bytes are needed. Raises DataError
    where a member is damaged, cut or stands twice in its sample.
    """
    key: str | None = None
    begin = 0
    sample: Sample = {}
    for member, body in members(content, url):
        base, extension = split_name(member.name)
        if base is None:
            continue
        if base != key:
            if key is not None:
                yield begin, sample
            key, begin, sample = base, member.start, {"__key__": base, "__url__": url}
        if extension in sample:
            raise ShardError(
                f"{url}: got {member.name} twice in sample {base}; a sample has each file once. "
                "Pack the shard again."
            )
        sample[extension] = body
    if key is not None:
        yield begin, sample


def split_name(name: str) -> tuple[str | None, str]:
    """(key, extension in lower case) by webdataset's rule; key None where a name has no dot."""
    base, extension = base_plus_ext(name)
    return (None, "") if base is None else (base, extension.lower())


def with_bytes(sample: Sample) -> Sample:
    """The sample as webdataset's stages know it: its files are bytes of their own."""
    return {
        name: bytes(value) if isinstance(value, memoryview) else value
        for name, value in sample.items()
    }


def stream(
    tickets: Iterable[SampleRequest], *, lookahead: int, copies: bool = True
) -> Callable[[], Iterator[Sample]]:
    """A source for `webdataset.DataPipeline`: samples in the tickets' order.

    `lookahead` tickets are drawn before the first is waited for, which starts their windows'
    fetches. copies: files are bytes, as webdataset's stages expect; else views of the window's
    buffer, which lives as long as one of them. Each sample also carries __position__, __epoch__,
    __shard__ and __sample__.
    """

    def source() -> Iterator[Sample]:
        ahead: deque[SampleRequest] = deque()
        for ticket in tickets:
            ahead.append(ticket)
            if len(ahead) > lookahead:
                yield _resolve(ahead.popleft(), copies)
        while ahead:
            yield _resolve(ahead.popleft(), copies)

    return source


def _resolve(ticket: SampleRequest, copies: bool) -> Sample:
    sample = ticket.run.result().sample(ticket.sample)
    return {
        **(with_bytes(sample) if copies else sample),
        "__position__": ticket.position,
        "__epoch__": ticket.epoch,
        "__shard__": ticket.shard,
        "__sample__": ticket.sample,
    }


def in_threads(
    work: Callable[[Any], Any], pool: ThreadPoolExecutor, *, ahead: int
) -> Callable[[Iterable[Any]], Iterator[Any]]:
    """A pipeline stage: `work` on each sample in the pool's threads, results strictly in order, at
    least `ahead` of them begun. An exception in a thread is raised at its sample's group.

    Samples go in groups: each handing over between threads costs 50 us, a twentieth of a decode.
    """

    def stage(samples: Iterable[Any]) -> Iterator[Any]:
        running: deque[Future[list[Any]]] = deque()
        rest = iter(samples)
        while group := list(islice(rest, GROUP)):
            running.append(pool.submit(lambda group: [work(one) for one in group], group))
            if GROUP * len(running) > ahead:
                yield from running.popleft().result()
        while running:
            yield from running.popleft().result()

    return stage


def build_pipeline(source: Callable[[], Iterator[Sample]], *stages: Any) -> Iterator[Any]:
    """A webdataset pipeline over our source; stages are webdataset's or our own."""
    return iter(wds.DataPipeline(source, *stages))
