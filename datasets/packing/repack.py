"""Shards that somebody else wrote -> planned shards of one size, with labels as class numbers.

Samples keep their order, their keys and all their files; a label that is not a `.cls` number
gets one beside it. Keys that occur twice are told apart by their shard's name.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from datasets.errors import DataError, LabelError
from datasets.loading.stream import Sample, fetch_window, with_bytes
from datasets.order import Window
from datasets.packing.index import Listing, list_shards, name_classes
from datasets.packing.pack import ShardPlan
from datasets.shards.labels import class_number
from datasets.shards.manifest import Manifest
from datasets.storage.store import Entry, Store

Picked = tuple[int, int, str, int]  # shard, sample, key, class


def plan_repack(
    store: Store,
    entries: Sequence[Entry],
    *,
    shard_bytes: int,
    field: str | None = None,
    workers: int = 16,
    on_shard: Callable[[Listing], None] = lambda listing: None,
) -> tuple[list[ShardPlan], tuple[str, ...]]:
    """(planned shards, class names) of existing shards, their headers read now, their images when
    a shard is written.

    Raises DataError (damaged, without image or label), StoreError.
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
                    "Mend the shard or take the sample out."
                )
            texts[sample.text] += 1
            keys[sample.key] += 1
    if not texts:
        raise DataError(f"{entries[0].url}: got no samples; a split has at least one.")
    classes = name_classes(texts)
    source = Manifest(
        url="", classes=classes, shards=tuple(one.shard(one.entry.url) for one in listings)
    )
    plans: list[ShardPlan] = []
    group: list[Picked] = []
    size = 0
    for number, listing in enumerate(listings):
        stem = listing.entry.url.rpartition("/")[2].removesuffix(".tar").replace(".", "_")
        for place, sample in enumerate(listing.samples):
            _, needed = source.shards[number].byte_range(place, 1)
            if group and size + needed > shard_bytes:
                plans.append(_plan(store, source, group))
                group, size = [], 0
            key = sample.key if keys[sample.key] == 1 else f"{stem}/{sample.key}"
            assert sample.text is not None
            label = class_number(sample.text, source.class_numbers, len(classes), key)
            group.append((number, place, key, label))
            size += needed
    plans.append(_plan(store, source, group))
    return plans, classes


def _plan(store: Store, source: Manifest, group: list[Picked]) -> ShardPlan:
    digest = hashlib.sha256()
    for shard, sample, key, label in group:
        one = source.shards[shard]
        start, length = one.byte_range(sample, 1)
        digest.update(f"{one.name}\0{one.etag}\0{start}\0{length}\0{key}\0{label}\0".encode())
    return ShardPlan(
        keys=tuple(key for _, _, key, _ in group),
        digest=digest.hexdigest(),
        make=partial(_read, store, source, tuple(group)),
    )


def _read(store: Store, source: Manifest, group: tuple[Picked, ...]) -> list[Sample]:
    """The group's samples, each source shard's in one run of ranges."""
    picked = np.array([(shard, sample) for shard, sample, _, _ in group], dtype=np.int64)
    runs = tuple(
        (int(shard), int(rows.min()), len(rows))
        for shard in np.unique(picked[:, 0])
        for rows in [picked[picked[:, 0] == shard][:, 1]]
    )
    found = fetch_window(store, source, Window(0, runs, picked))
    samples = []
    for shard, sample, key, label in group:
        one = with_bytes(found[shard, sample])
        if "__damage__" in one:
            raise one["__damage__"]
        files = {name: value for name, value in one.items() if not name.startswith("__")}
        samples.append({"__key__": key, **files, "cls": str(label).encode()})
    return samples
