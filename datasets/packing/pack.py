"""Samples -> WebDataset shards with a manifest. The same samples give the same bytes.

Shards are independent: they are written in parallel, each followed by a small part file that says
what went into it. A pack that was killed finds these and writes only what is missing. The index
is written last, and the part files go.
"""

import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np
import webdataset as wds

from datasets.errors import DataError
from datasets.loading.stream import Sample, split_samples
from datasets.shards.manifest import Manifest, Shard, save_manifest
from datasets.shards.tar import BLOCK_BYTES, members
from datasets.storage.store import Store


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardPlan:
    """One shard to be: the keys of its samples, a digest of all that decides its bytes, and what
    makes its samples (called in a thread, when the shard is written)."""

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
    for group in _groups(samples, samples_per_shard):
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
    """Writes the planned shards under `url`, `workers` at a time, and the index.

    on_shard is called as each one is there. Raises DataError (no samples, a key twice, a file
    that cannot be read), StoreError.
    """
    url = url.rstrip("/")
    if not plans:
        raise DataError(f"{url}: got no samples; a split has at least one. Check the source.")
    seen: set[str] = set()
    for plan in plans:
        for key in plan.keys:
            if key in seen:
                raise DataError(
                    f"{url}: got the key {key!r} twice; keys name samples. "
                    "Give each sample its own."
                )
            seen.add(key)
    with ThreadPoolExecutor(workers, thread_name_prefix="pack") as pool:
        futures = [
            pool.submit(_write_shard, plan, store, url, f"shard-{number:06d}.tar")
            for number, plan in enumerate(plans)
        ]
        try:
            shards = []
            for future in futures:
                shards.append(future.result())
                on_shard(shards[-1])
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    manifest = Manifest(url=url, classes=tuple(classes), shards=tuple(shards))
    save_manifest(store, manifest)
    for shard in shards:
        store.delete(_part_url(url, shard.name))
    return manifest


def describe_shard(name: str, content: bytes, etag: str | None) -> Shard:
    """The manifest's entry of a shard's bytes. Raises DataError where they are no whole tar."""
    view = memoryview(content)
    starts = [start for start, _ in split_samples(view, name)]
    end = max((member.end for member, _ in members(view, name)), default=0)
    offsets = np.array([*starts, end], dtype=np.int64) // BLOCK_BYTES
    return Shard(
        name=name,
        size_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        etag=etag,
        offsets=offsets.astype(np.uint32),
    )


def _write_shard(plan: ShardPlan, store: Store, url: str, name: str) -> Shard:
    """Writes one shard, or finds that an earlier call already did."""
    done = _find_part(plan, store, url, name)
    if done is not None:
        return done
    content = _tar(plan.make())
    _check_keys(plan, content, f"{url}/{name}")
    store.write(f"{url}/{name}", content)
    shard = describe_shard(name, content, _etag(store, f"{url}/{name}"))
    part = {
        "digest": plan.digest,
        "size_bytes": shard.size_bytes,
        "sha256": shard.sha256,
        "etag": shard.etag,
        "offsets": shard.offsets.tolist(),
    }
    store.write(_part_url(url, name), json.dumps(part).encode())
    return shard


def _check_keys(plan: ShardPlan, content: bytes, where: str) -> None:
    """Readers of the tar must find the planned samples: a key that holds a dot, or is empty, would
    be cut there, and neighbours with the same beginning would become one sample."""
    found = [sample["__key__"] for _, sample in split_samples(memoryview(content), where)]
    for number, key in enumerate(plan.keys):
        if found[number : number + 1] != [key]:
            raise DataError(
                f"{where}: got the key {key!r}; a key is a file name without dots, and has "
                "files. Rename the sample, or take it out."
            )


def _find_part(plan: ShardPlan, store: Store, url: str, name: str) -> Shard | None:
    """The shard as an earlier call wrote it, where it is still there and was made of the same."""
    try:
        part = json.loads(store.read(_part_url(url, name)))
        if part["digest"] != plan.digest:
            return None
        found = [entry for entry in store.list(f"{url}/{name}") if entry.url == f"{url}/{name}"]
        if not found or (found[0].size_bytes, found[0].etag) != (part["size_bytes"], part["etag"]):
            return None
        return Shard(
            name=name,
            size_bytes=part["size_bytes"],
            sha256=part["sha256"],
            etag=part["etag"],
            offsets=np.array(part["offsets"], dtype=np.uint32),
        )
    except (DataError, ValueError, KeyError):
        return None


def _part_url(url: str, name: str) -> str:
    return f"{url}/.parts/{name}.json"


def _etag(store: Store, url: str) -> str | None:
    return next(entry.etag for entry in store.list(url) if entry.url == url)


def _tar(group: Sequence[Sample]) -> bytes:
    """A shard's bytes: webdataset's own writer with a fixed time, owner and mode."""
    buffer = io.BytesIO()
    writer = wds.TarWriter(
        buffer,
        user="rayception",
        group="rayception",
        mode=0o444,
        compress=False,
        encoder=False,
        mtime=0,  # a whole number: a float costs each file a PAX header of 1,024 bytes
    )
    for sample in group:
        writer.write(sample)
    writer.close()
    return buffer.getvalue()


def _groups(samples: Iterable[Sample], size: int) -> Iterator[list[Sample]]:
    rest = iter(samples)
    while group := list(islice(rest, size)):
        yield group
