"""The checksums of existing shards: each is read once from end to end, 8 MiB at a time."""

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import starmap

import numpy as np

from datasets.errors import DataError, ShardError
from datasets.loading.stream import split_range
from datasets.shards.manifest import Manifest, Shard, load_manifest
from datasets.shards.tar import BLOCK_BYTES
from datasets.storage.checksums import crc32c
from datasets.storage.disk import ETAG_PREFIX
from datasets.storage.store import Store


def keep_index(store: Store, found: Manifest) -> Manifest:
    """A manifest made from headers, with the classes, label rule and SHA-256 of the index that the
    split has, if that describes the same shards: its fingerprint then stays, and runs that began
    without checksums can be resumed. Raises StoreError."""
    try:
        known = load_manifest(store, found.url, verify=False)
    except DataError:  # none, or a damaged one
        return found
    pairs = list(zip(known.shards, found.shards, strict=False))
    if len(known.shards) != len(found.shards) or not all(starmap(_may_be_same, pairs)):
        return found
    shards = tuple(replace(shard, sha256=old.sha256) for old, shard in pairs)
    return replace(found, classes=known.classes, label=known.label, shards=shards)


def _may_be_same(known: Shard, found: Shard) -> bool:
    """Whether a shard's samples lie where its index says and, as far as headers tell, are those:
    labels that were changed in place keep every size. A SHA-256 decides later, when the bytes are
    read, whatever the ETags: a copy has others. A file's time is none."""
    etags = [etag for etag in (known.etag, found.etag) if etag and not etag.startswith(ETAG_PREFIX)]
    return _samples_of(known) == _samples_of(found) and (
        known.sha256 is not None or len(set(etags)) < 2
    )


def _samples_of(shard: Shard) -> tuple[str, int, bytes]:
    return shard.name, shard.size_bytes, shard.offsets.tobytes()


def add_checksums(
    store: Store,
    manifest: Manifest,
    *,
    workers: int,
    on_shard: Callable[[Shard], None] = lambda shard: None,
) -> Manifest:
    """The manifest with the CRC-32C of every sample; `workers` shards are read at a time.

    on_shard: called with each finished shard, in order. Raises DataError (a shard that has changed
    since it was indexed or packed), StoreError.
    """

    def read(number: int) -> Shard:
        return _read_shard(store, manifest.shards[number], manifest.shard_url(number))

    shards = []
    with ThreadPoolExecutor(workers, thread_name_prefix="index") as pool:
        for shard in pool.map(read, range(len(manifest.shards))):
            shards.append(shard)
            on_shard(shard)
    return replace(manifest, shards=tuple(shards))


def _read_shard(store: Store, shard: Shard, url: str) -> Shard:
    limits = (shard.offsets.astype(np.int64) * BLOCK_BYTES).tolist()
    checksums = np.zeros(shard.num_samples, dtype=np.uint32)
    digest = hashlib.sha256()
    sample = 0
    for begin, end in split_range(0, shard.size_bytes):
        piece = store.read_range(url, begin, end - begin, shard.etag)
        if shard.sha256 is not None:
            digest.update(piece)
        at = max(begin, limits[0])
        while at < min(end, limits[-1]):
            stop = min(end, limits[sample + 1])
            part = piece[at - begin : stop - begin]
            checksums[sample] = crc32c(part, int(checksums[sample]))
            sample += stop == limits[sample + 1]
            at = stop
    if shard.sha256 not in (None, digest.hexdigest()):
        raise ShardError(
            f"{url}: got bytes with another SHA-256 than when it was packed; checksums of damaged "
            "samples would call them whole. Upload the shard again (`rayception verify` says why) "
            "or, if the change is meant, run `rayception index` without --checksums first."
        )
    return replace(shard, checksums=checksums)
