"""Samples -> WebDataset shards with a manifest. The same samples give the same bytes."""

import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np
import webdataset as wds

from datasets.errors import DataError
from datasets.manifest import BLOCK_BYTES, Manifest, Shard, save_manifest
from datasets.store import Store
from datasets.stream import Sample, split_samples
from datasets.tar import members


def pack(
    samples: Iterable[Sample],
    store: Store,
    url: str,
    *,
    classes: Sequence[str],
    samples_per_shard: int,
) -> Manifest:
    """Writes `samples` (webdataset's dicts: __key__, extension -> bytes) as shards under `url`.

    The index is written last: a split that was cut short has none and is packed again. Raises
    DataError (no samples, a key twice), StoreError.
    """
    url = url.rstrip("/")
    seen: set[str] = set()
    shards = []
    for number, group in enumerate(_groups(samples, samples_per_shard)):
        for sample in group:
            if sample["__key__"] in seen:
                raise DataError(
                    f"{url}: got the key {sample['__key__']!r} twice; keys name samples. "
                    "Give each sample its own."
                )
            seen.add(sample["__key__"])
        name = f"shard-{number:06d}.tar"
        content = _tar(group)
        store.write(f"{url}/{name}", content)
        etag = next(entry.etag for entry in store.list(f"{url}/{name}"))
        shards.append(describe_shard(name, content, etag))
    if not shards:
        raise DataError(f"{url}: got no samples; a split has at least one. Check the source.")
    manifest = Manifest(url=url, classes=tuple(classes), shards=tuple(shards))
    save_manifest(store, manifest)
    return manifest


def describe_shard(name: str, content: bytes, etag: str | None) -> Shard:
    """The manifest's entry of a shard's bytes. Raises DataError where they are no whole tar."""
    view = memoryview(content)
    starts = [start for start, _ in split_samples(view, name)]
    end = max((end for _, _, end, _ in members(view, name)), default=0)
    offsets = np.array([*starts, end], dtype=np.int64) // BLOCK_BYTES
    return Shard(
        name=name,
        size_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        etag=etag,
        offsets=offsets.astype(np.uint32),
    )


def _tar(group: Sequence[Sample]) -> bytes:
    """A shard's bytes: webdataset's own writer with a fixed time, owner and mode."""
    buffer = io.BytesIO()
    writer = wds.TarWriter(
        buffer, user="rayception", group="rayception", mode=0o444, compress=False, encoder=False,
        mtime=0.0,
    )  # fmt: skip
    for sample in group:
        writer.write(sample)
    writer.close()
    return buffer.getvalue()


def _groups(samples: Iterable[Sample], size: int) -> Iterator[list[Sample]]:
    rest = iter(samples)
    while group := list(islice(rest, size)):
        yield group
