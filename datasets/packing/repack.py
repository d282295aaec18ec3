"""Shards that somebody else wrote -> planned shards of one size, with labels as class numbers.

Samples keep their order, keys and files; a label that is not a `.cls` number gets such a file
beside it. Keys that occur twice are prefixed with their shard's name.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from datasets.errors import DataError, LabelError
from datasets.loading.stream import Sample, fetch_run, runs_of, with_bytes
from datasets.packing.index import ShardListing, list_shards, name_classes
from datasets.packing.pack import ShardPlan, group_by_bytes
from datasets.shards.manifest import Manifest
from datasets.storage.store import Entry, Store

SourceSample = tuple[int, int, str, int]  # shard, number in it, key, class


def plan_repack(
    store: Store,
    entries: Sequence[Entry],
    *,
    shard_bytes: int,
    field: str | None = None,
    workers: int = 16,
    on_shard: Callable[[ShardListing], None] = lambda listing: None,
) -> tuple[list[ShardPlan], tuple[str, ...]]:
    """(planned shards, class names) of existing shards. Reads their headers; their images are read
    when a shard is written.

    Raises DataError (a damaged shard, a sample without image or label), StoreError.
    """
    listings = []
    for listing in list_shards(store, entries, None, field, workers):
        listings.append(listing)
        on_shard(listing)
    texts: Counter[str] = Counter()
    keys: Counter[str] = Counter()
    for listing in listings:
        for sample in listing.samples:
            if sample.text is None or not sample.has_image:
                what = "image" if sample.text is not None else "label"
                raise LabelError(
                    f"{listing.entry.url}:{sample.key}: got no {what}; a packed sample has both. "
                    "Fix the shard or take the sample out."
                )
            texts[sample.text] += 1
            keys[sample.key] += 1
    if not texts:
        raise DataError(f"{entries[0].url}: got no samples; a split has at least one.")
    classes = name_classes(texts, entries[0].url)
    source = Manifest(
        url="",
        classes=classes,
        shards=tuple(listing.shard(listing.entry.url) for listing in listings),
    )

    def samples() -> Iterator[tuple[SourceSample, int]]:
        for shard, listing in enumerate(listings):
            stem = listing.entry.url.rpartition("/")[2].removesuffix(".tar").replace(".", "_")
            for number, sample in enumerate(listing.samples):
                key = sample.key if keys[sample.key] == 1 else f"{stem}/{sample.key}"
                assert sample.text is not None
                label = source.class_number(sample.text, key)
                _, size = source.shards[shard].byte_range(number, 1)
                yield (shard, number, key, label), size

    return [
        _plan(store, source, group) for group in group_by_bytes(samples(), shard_bytes)
    ], classes


def _plan(store: Store, source: Manifest, group: list[SourceSample]) -> ShardPlan:
    digest = hashlib.sha256()
    for number, sample, key, label in group:
        shard = source.shards[number]
        start, length = shard.byte_range(sample, 1)
        digest.update(f"{shard.name}\0{shard.etag}\0{start}\0{length}\0{key}\0{label}\0".encode())
    return ShardPlan(
        keys=tuple(key for _, _, key, _ in group),
        digest=digest.hexdigest(),
        make=partial(_read, store, source, tuple(group)),
    )


def _read(store: Store, source: Manifest, group: tuple[SourceSample, ...]) -> list[Sample]:
    """The group's samples; those of a source shard are one run."""
    places = np.array([(shard, number) for shard, number, _, _ in group], dtype=np.int64)
    runs = {run[0]: fetch_run(store, source, run) for run in runs_of(places)}
    samples = []
    for shard, number, key, label in group:
        sample = with_bytes(runs[shard].sample(number))
        if "__damage__" in sample:
            raise sample["__damage__"]
        files = {name: value for name, value in sample.items() if not name.startswith("__")}
        samples.append({"__key__": key, **files, "cls": str(label).encode()})
    return samples
