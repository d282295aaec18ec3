"""Samples -> WebDataset shards with a manifest. The same samples give the same bytes.

Shards are written in parallel. Each is followed by a small part file that describes it, so that a
pack that was killed writes only the missing ones when it is repeated. Then the index is written and
the part files are deleted.
"""

import hashlib
import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice, pairwise
from typing import TypeVar

import numpy as np
import webdataset as wds

from datasets.errors import DataError
from datasets.loading.stream import Sample, split_samples
from datasets.shards.manifest import Manifest, Shard, save_manifest
from datasets.shards.tar import BLOCK_BYTES, members
from datasets.storage.checksums import crc32c, decode_json, encode_json
from datasets.storage.store import Store

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardPlan:
    """A shard to be written.

    keys: of its samples. digest: of everything that its bytes depend on. make: reads the samples;
    called in a thread, when the shard is written.
    """

    keys: tuple[str, ...]
    digest: str
    make: Callable[[], Sequence[Sample]]


def pack(
    samples: Iterable[Sample],
    store: Store,
    url: str,
    *,
    classes: Sequence[str],
    samples_per_shard: int,
) -> Manifest:
    """Writes samples held in memory (webdataset's dicts: __key__, extension -> bytes).

    Raises as pack_shards does.
    """
    plans = []
    rest = iter(samples)
    while group := list(islice(rest, samples_per_shard)):
        digest = hashlib.sha256()
        for sample in group:
            for name in sorted(sample):
                digest.update(f"{name}\0{sample[name]!r}\0".encode())
        plans.append(
            ShardPlan(
                keys=tuple(sample["__key__"] for sample in group),
                digest=digest.hexdigest(),
                make=partial(list, group),
            )
        )
    return pack_shards(plans, store, url, classes=classes)


def pack_shards(
    plans: Sequence[ShardPlan],
    store: Store,
    url: str,
    *,
    classes: Sequence[str],
    workers: int = 1,
    on_shard: Callable[[Shard], None] = lambda shard: None,
) -> Manifest:
    """Writes the planned shards under `url`, `workers` at a time, then the index.

    on_shard: called with each finished shard, in order. Raises DataError (no samples, a duplicate
    key, an unreadable file), StoreError.
    """
    url = url.rstrip("/")
    if not plans:
        raise DataError(f"{url}: got no samples; a split has at least one. Check the source.")
    counts = Counter(key for plan in plans for key in plan.keys)
    for key, count in counts.items():
        if count > 1:
            raise DataError(
                f"{url}: got the key {key!r} twice; a key names one sample. "
                "Give each sample its own."
            )

    def write(number: int) -> Shard:
        return _write_shard(plans[number], store, url, f"shard-{number:06d}.tar")

    shards = []
    with ThreadPoolExecutor(workers, thread_name_prefix="pack") as pool:
        for shard in pool.map(write, range(len(plans))):  # an error cancels the rest
            shards.append(shard)
            on_shard(shard)
    manifest = Manifest(url=url, classes=tuple(classes), shards=tuple(shards))
    save_manifest(store, manifest)
    for shard in shards:
        store.delete(_part_url(url, shard.name))
    return manifest


def group_by_bytes(items: Iterable[tuple[Item, int]], limit: int) -> Iterator[list[Item]]:
    """Groups of consecutive items, of at most `limit` bytes together or of one item. items: with
    their sizes in bytes."""
    group: list[Item] = []
    total = 0
    for item, size in items:
        if group and total + size > limit:
            yield group
            group, total = [], 0
        group.append(item)
        total += size
    if group:
        yield group


def describe_shard(name: str, content: bytes, etag: str | None) -> Shard:
    """The manifest's entry for a shard's bytes. Raises DataError unless they are a whole tar."""
    view = memoryview(content)
    starts = [start for start, _ in split_samples(view, name)]
    end = max((member.end for member in members(view, name)), default=0)
    limits = [*starts, end]
    checksums = [crc32c(view[first:last]) for first, last in pairwise(limits)]
    return Shard(
        name=name,
        size_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        etag=etag,
        offsets=(np.array(limits, dtype=np.int64) // BLOCK_BYTES).astype(np.uint32),
        checksums=np.array(checksums, dtype=np.uint32),
    )


def _write_shard(plan: ShardPlan, store: Store, url: str, name: str) -> Shard:
    """Writes a shard, unless an earlier call has."""
    written = _find_written(plan, store, url, name)
    if written is not None:
        return written
    content = _tar(plan.make())
    _check_keys(plan, content, f"{url}/{name}")
    store.write(f"{url}/{name}", content)
    shard = describe_shard(name, content, store.stat(f"{url}/{name}").etag)
    assert shard.checksums is not None
    part = {
        **shard.entry,
        "digest": plan.digest,
        "offsets": shard.offsets.tolist(),
        "checksums": shard.checksums.tolist(),
    }
    store.write(_part_url(url, name), encode_json(part))
    return shard


def _check_keys(plan: ShardPlan, content: bytes, where: str) -> None:
    """Readers of the tar must find the planned samples. A key that is empty or has a dot would be
    cut, and neighbours that are equal up to the dot would become one sample."""
    found = [sample["__key__"] for _, sample in split_samples(memoryview(content), where)]
    for number, key in enumerate(plan.keys):
        if found[number : number + 1] != [key]:
            raise DataError(
                f"{where}: got the key {key!r}; a key is a file name without dots, and has "
                "files. Rename the sample, or take it out."
            )


def _find_written(plan: ShardPlan, store: Store, url: str, name: str) -> Shard | None:
    """The shard as an earlier call wrote it, if it is still there and the plan is the same."""
    try:
        part = decode_json(store.read(_part_url(url, name)))
        entry = store.stat(f"{url}/{name}")
        is_same = (entry.size_bytes, entry.etag) == (part["size_bytes"], part["etag"])
        if part["digest"] != plan.digest or not is_same:
            return None
        return Shard(
            name=name,
            size_bytes=part["size_bytes"],
            sha256=part["sha256"],
            etag=part["etag"],
            offsets=np.array(part["offsets"], dtype=np.uint32),
            checksums=np.array(part["checksums"], dtype=np.uint32),
        )
    except (DataError, ValueError, KeyError):  # none, damaged, or of an earlier version
        return None


def _part_url(url: str, name: str) -> str:
    return f"{url}/.parts/{name}.json"


def _tar(group: Sequence[Sample]) -> bytes:
    """A shard's bytes, by webdataset's writer with a fixed time, owner and mode."""
    buffer = io.BytesIO()
    writer = wds.TarWriter(
        buffer,
        user="rayception",
        group="rayception",
        mode=0o444,
        compress=False,
        encoder=False,
        mtime=0,  # an integer: a float costs each file a PAX header of 1,024 bytes
    )
    for sample in group:
        writer.write(sample)
    writer.close()
    return buffer.getvalue()
