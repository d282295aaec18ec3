"""Samples from shards in a requested order, by byte ranges; a source of webdataset pipelines.

Requests run ahead of the consumer: the first one for a window starts the fetch of its runs, each in
a thread. A run's bytes live as long as a pending request needs them, so memory is bounded by the
open lanes times their windows.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, groupby, islice
from operator import itemgetter
from typing import Any, TypeVar

import numpy as np
import webdataset as wds
from webdataset.tariterators import base_plus_ext

from datasets.errors import DataError, ShardError
from datasets.order import Ints, Order, Run, Window
from datasets.shards.manifest import Manifest
from datasets.shards.tar import BLOCK_BYTES, Member, members
from datasets.storage.checksums import crc32c
from datasets.storage.store import Store
from datasets.storage.transfer import buffer

REQUEST_BYTES = 8 * 2**20  # of one range request
GROUP_SAMPLES = 8  # given to a decoding thread at a time
Sample = dict[str, Any]  # webdataset's: __key__, __url__, extension -> bytes (or a view of them)
SampleRuns = dict[int, "Future[SampleRun]"]  # by shard: a window has one run of each
Fetch = Callable[[tuple[Run, ...]], SampleRuns]
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True, eq=False)
class SampleRun:
    """The bytes of consecutive samples of a shard from sample `first`, or why they are lost.

    offsets: of each sample in `content`, and the end of the last. checksums: of each, if known.
    """

    url: str
    first: int
    offsets: list[int]
    content: memoryview
    checksums: Sequence[int] | None = None
    error: DataError | None = None

    def sample(self, number: int) -> Sample:
        """Sample `number` of the shard. If it is lost, damaged, changed or not where the index
        says, it has no files and the error as __damage__; whether to skip or raise is the
        consumer's choice."""
        key = f"sample {number}"
        if self.error is not None:
            return {"__key__": key, "__damage__": self.error}
        place = number - self.first
        try:
            part = self.content[self.offsets[place] : self.offsets[place + 1]]
            if self.checksums is not None and crc32c(part) != self.checksums[place]:
                # Before they are parsed: an index of what they have become would call them whole.
                key = _key_in(part, self.url) or key
                check_bytes(part, self.checksums[place], f"{self.url}:{key}")
            samples = list(split_samples(part, self.url))
            if len(samples) == 1 and samples[0][0] == 0:
                return samples[0][1]
            raise ShardError(
                f"{self.url}: got {len(samples)} samples where its index has sample {number}; "
                "shard and index must agree. Index it again."
            )
        except ShardError as error:
            return {"__key__": key, "__damage__": error}


def _key_in(content: memoryview, url: str) -> str | None:
    """The key of the first file, if its header can be read."""
    with suppress(ShardError):
        return next((key for key, _ in group_by_key(members(content, url), url)), None)
    return None


def check_bytes(content: memoryview, checksum: int, where: str) -> None:
    """Raises ShardError if a sample's bytes differ from its checksum. where: names the sample."""
    if (actual := crc32c(content)) != checksum:
        raise ShardError(
            f"{where}: got bytes that differ from the split's checksum (CRC-32C {actual:08x}, "
            f"{checksum:08x} in the index); they have changed where they lie or on the way. "
            "Restore the shard from a copy or, if the change is meant, index the split again."
        )


def fetch_run(store: Store, manifest: Manifest, run: Run) -> SampleRun:
    """Reads a run by ranges of at most 8 MiB. Raises StoreError."""
    number, first, count = run
    shard, url = manifest.shards[number], manifest.shard_url(number)
    start, length = shard.byte_range(first, count)
    # A file's time says less than its bytes, and a copy of a split has other times.
    etag = None if shard.checksums is not None and store.is_on_disk(url) else shard.etag
    blocks = shard.offsets[first : first + count + 1].astype(np.int64)
    content = buffer(length)
    error = None
    try:
        for begin, end in split_range(start, length):
            part = content[begin - start : end - start]
            store.read_into(url, part, begin, etag, shard.size_bytes)
    except DataError as damage:
        error, content = damage, buffer(0)
    offsets = ((blocks - blocks[0]) * BLOCK_BYTES).tolist()
    checksums = None if shard.checksums is None else shard.checksums[first : first + count].tolist()
    return SampleRun(url, first, offsets, content, checksums, error)


def split_range(start: int, length: int) -> Iterator[tuple[int, int]]:
    """(first byte, end) of a run's range requests. To cut at multiples of 8 MiB of the object was
    measured to gain nothing."""
    for at in range(start, start + length, REQUEST_BYTES):
        yield at, min(start + length, at + REQUEST_BYTES)


def runs_of(samples: Ints) -> tuple[Run, ...]:
    """The runs that hold these samples, one of each shard. samples: int64 (n, 2), (shard, sample);
    those of a shard are consecutive."""
    shards = samples[:, 0]
    return tuple(
        (int(shard), int(numbers.min()), len(numbers))
        for shard in np.unique(shards)
        for numbers in [samples[shards == shard, 1]]
    )


@dataclass(frozen=True, slots=True, eq=False)
class SampleRequest:
    """A sample of a run that is being fetched."""

    epoch: int
    shard: int
    sample: int
    run: "Future[SampleRun]"

    def resolve(self) -> Sample:
        """Waits for the run. Raises StoreError."""
        return {
            **self.run.result().sample(self.sample),
            "__epoch__": self.epoch,
            "__shard__": self.shard,
            "__sample__": self.sample,
        }


def train_requests(positions: Iterable[int], order: Order, fetch: Fetch) -> Iterator[SampleRequest]:
    """Requests of global positions, which ascend within a lane and from epoch to epoch. `fetch` is
    called once per window, at its first request."""
    # (epoch, lane) -> its remaining windows, the open one and that one's runs
    lanes: dict[tuple[int, int], tuple[Iterator[Window], Window, SampleRuns]] = {}
    current = -1
    for position in positions:
        epoch, place = divmod(position, order.num_samples)
        lane, index = place % order.num_lanes, place // order.num_lanes
        if epoch != current:  # earlier epochs' lanes are done
            lanes = {key: opened for key, opened in lanes.items() if key[0] >= epoch}
            current = epoch
        key = epoch, lane
        if key not in lanes or index >= lanes[key][1].end_index:
            windows = lanes[key][0] if key in lanes else order.windows(epoch, lane, index)
            window = next(window for window in windows if index < window.end_index)
            lanes[key] = windows, window, fetch(window.runs)
        _, window, runs = lanes[key]
        shard, sample = window.samples[index - window.first_index].tolist()
        yield SampleRequest(epoch, shard, sample, runs[shard])


def eval_requests(
    batches: Iterable[Ints], manifest: Manifest, fetch: Fetch
) -> Iterator[SampleRequest]:
    """Requests of positions in the manifest's order, consecutive within a batch. `fetch` is called
    once per batch, at its first request."""
    for positions in batches:
        samples = manifest.samples_at(positions)
        runs = fetch(runs_of(samples))
        for shard, sample in samples.tolist():
            yield SampleRequest(0, shard, sample, runs[shard])


def stream(requests: Iterable[SampleRequest], *, lookahead: int) -> Callable[[], Iterator[Sample]]:
    """A source for `webdataset.DataPipeline`: samples in the order of their requests.

    `lookahead` requests are drawn, and so their fetches started, before the first is waited for.
    Files are views of their run's buffer, which they keep alive; webdataset's own stages follow
    after `with_bytes`. Each sample also has __epoch__, __shard__ and __sample__.
    """

    def source() -> Iterator[Sample]:
        return map(SampleRequest.resolve, _draw_ahead(requests, lookahead))

    return source


def in_threads(
    work: Callable[[Any], Any], pool: ThreadPoolExecutor, *, ahead: int
) -> Callable[[Iterable[Any]], Iterator[Any]]:
    """A pipeline stage: `work` on each item in the pool's threads, results in order. At least
    `ahead` items are started before they are needed. An exception is raised at its item's group.

    Items go in groups, as each handover between threads costs 50 us, a twentieth of a decode.
    """

    def start(items: Iterable[Any]) -> Iterator[Future[list[Any]]]:
        rest = iter(items)
        while group := list(islice(rest, GROUP_SAMPLES)):
            yield pool.submit(lambda group: [work(item) for item in group], group)

    def stage(items: Iterable[Any]) -> Iterator[Any]:
        running = _draw_ahead(start(items), ahead // GROUP_SAMPLES)
        return chain.from_iterable(map(Future.result, running))

    return stage


def _draw_ahead(items: Iterable[Item], count: int) -> Iterator[Item]:
    """The items, each once `count` more are drawn."""
    drawn: deque[Item] = deque()
    for item in items:
        drawn.append(item)
        if len(drawn) > count:
            yield drawn.popleft()
    while drawn:
        yield drawn.popleft()


def build_pipeline(source: Callable[[], Iterator[Sample]], *stages: Any) -> Iterator[Any]:
    """A webdataset pipeline; stages are webdataset's or ours."""
    return iter(wds.DataPipeline(source, *stages))


def split_samples(content: memoryview, url: str) -> Iterator[tuple[int, Sample]]:
    """(first byte, sample) of each sample in whole tar members, grouped by webdataset's key rule.

    Files are views of `content`. Raises ShardError if a member is damaged, truncated or twice in
    its sample.
    """
    for key, group in group_by_key(members(content, url), url):
        files = list(group)
        sample: Sample = {"__key__": key, "__url__": url}
        for extension, member in files:
            sample[extension] = content[member.begin : member.begin + member.size]
        yield files[0][1].start, sample


def group_by_key(
    members: Iterable[Member], url: str
) -> Iterator[tuple[str, Iterator[tuple[str, Member]]]]:
    """(key, its (extension in lower case, member) pairs) of each sample: by webdataset's rule,
    neighbours with one key. A name without a dot has none, nor has one that begins with a dot:
    macOS writes `._0001.jpg` beside `0001.jpg`. Raises ShardError if a file is there twice."""
    named = ((*base_plus_ext(member.name), member) for member in members)
    # `d/.x` has the key `d/`. `__x__` is webdataset's form of its own fields, and ours.
    files = (
        file for file in named if file[0] and file[0][-1] != "/" and not file[1].startswith("__")
    )
    for key, group in groupby(files, key=itemgetter(0)):
        yield key, _each_once(group, url)


def _each_once(files: Iterable[tuple[str, str, Member]], url: str) -> Iterator[tuple[str, Member]]:
    extensions = set()
    for key, name, member in files:
        extension = name.lower()
        if extension in extensions:
            raise ShardError(
                f"{url}: got {member.name} twice in sample {key}; a sample has each file once. "
                "Pack the shard again."
            )
        extensions.add(extension)
        yield extension, member


def with_bytes(sample: Sample) -> Sample:
    """The sample with its files copied to bytes, as webdataset's stages expect."""
    return {
        name: bytes(value) if isinstance(value, memoryview) else value
        for name, value in sample.items()
    }
