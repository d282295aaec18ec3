"""The manifest of a split: shards, sample counts, byte offsets. `index.json` + `index.offsets`.

index.json names the shards (size, SHA-256, ETag, number of samples) and the classes. The offsets
are little-endian uint32 tar blocks of 512 bytes: for each shard, where each sample's first header
stands, then where the last sample ends; 4 bytes a sample, 5 MB for ImageNet. With them a shard
is read by ranges, and it is known how many bytes and samples must come. index.json is written
last, so a half-written split has none.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets.errors import DataError
from datasets.store import Store
from datasets.tar import BLOCK_BYTES

FORMAT = 1
INDEX_FILE = "index.json"
OFFSETS_FILE = "index.offsets"


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """One tar file. offsets: uint32 (num_samples + 1,) in tar blocks."""

    name: str
    size_bytes: int
    sha256: str
    etag: str | None
    offsets: NDArray[np.uint32]

    @property
    def num_samples(self) -> int:
        return len(self.offsets) - 1

    def byte_range(self, first: int, count: int) -> tuple[int, int]:
        """(start, length) in bytes of `count` samples from `first`."""
        start = int(self.offsets[first]) * BLOCK_BYTES
        return start, int(self.offsets[first + count]) * BLOCK_BYTES - start


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """A split as its index describes it."""

    url: str
    classes: tuple[str, ...]
    shards: tuple[Shard, ...]

    @property
    def num_samples(self) -> int:
        return sum(shard.num_samples for shard in self.shards)

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def samples_per_shard(self) -> NDArray[np.int64]:
        return np.array([shard.num_samples for shard in self.shards], dtype=np.int64)

    @property
    def size_bytes(self) -> int:
        return sum(shard.size_bytes for shard in self.shards)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over all that the order and the samples depend on: names, sizes, checksums,
        offsets; not where the split lies."""
        digest = hashlib.sha256()
        for shard in self.shards:
            digest.update(f"{shard.name}\0{shard.size_bytes}\0{shard.sha256}\0".encode())
            digest.update(shard.offsets.astype("<u4").tobytes())
        return digest.hexdigest()

    def shard_url(self, shard: int) -> str:
        return f"{self.url}/{self.shards[shard].name}"


def save_manifest(store: Store, manifest: Manifest) -> None:
    """Writes both index files, index.json last. Raises StoreError."""
    offsets = b"".join(shard.offsets.astype("<u4").tobytes() for shard in manifest.shards)
    store.write(f"{manifest.url}/{OFFSETS_FILE}", offsets)
    values = {
        "format": FORMAT,
        "classes": list(manifest.classes),
        "num_samples": manifest.num_samples,
        "offsets": {"name": OFFSETS_FILE, "sha256": hashlib.sha256(offsets).hexdigest()},
        "shards": [
            {
                "name": shard.name,
                "size_bytes": shard.size_bytes,
                "num_samples": shard.num_samples,
                "sha256": shard.sha256,
                "etag": shard.etag,
            }
            for shard in manifest.shards
        ],
    }
    store.write(f"{manifest.url}/{INDEX_FILE}", json.dumps(values, indent=1).encode())


def load_manifest(store: Store, url: str) -> Manifest:
    """The manifest of the split under the prefix `url`.

    Raises DataError: no shards there, shards without an index, an index that is damaged or of
    another version; StoreError.
    """
    url = url.rstrip("/")
    index_url = f"{url}/{INDEX_FILE}"
    if not store.exists(index_url):
        shards = [entry for entry in store.list(f"{url}/") if entry.url.endswith(".tar")]
        if shards:
            raise DataError(
                f"{url}: got {len(shards)} tar shards without {INDEX_FILE}; training reads them "
                "by its offsets. Pack the split with rayception."
            )
        raise DataError(
            f"{url}: got no shards and no {INDEX_FILE}; a split is tar shards with an index. "
            "Mend the prefix, or pack the data there."
        )
    try:
        values: dict[str, Any] = json.loads(store.read(index_url))
        version = values["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(_damaged(index_url, f"{type(error).__name__}: {error}")) from error
    if version != FORMAT:
        raise DataError(
            f"{index_url}: got index format {version}; this version reads {FORMAT}. Use the "
            "rayception that wrote it, or pack the split again."
        )
    try:
        return _parse(store, url, values)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(_damaged(index_url, f"{type(error).__name__}: {error}")) from error


def _parse(store: Store, url: str, values: dict[str, Any]) -> Manifest:
    offsets_url = f"{url}/{values['offsets']['name']}"
    content = store.read(offsets_url)
    if hashlib.sha256(content).hexdigest() != values["offsets"]["sha256"]:
        raise DataError(_damaged(offsets_url, f"{len(content)} bytes with another checksum"))
    offsets = np.frombuffer(content, dtype="<u4").astype(np.uint32)
    shards = []
    at = 0
    for stated in values["shards"]:
        count = int(stated["num_samples"]) + 1
        shards.append(
            Shard(
                name=str(stated["name"]),
                size_bytes=int(stated["size_bytes"]),
                sha256=str(stated["sha256"]),
                etag=stated["etag"],
                offsets=offsets[at : at + count],
            )
        )
        at += count
    manifest = Manifest(url=url, classes=tuple(values["classes"]), shards=tuple(shards))
    if at != len(offsets) or manifest.num_samples != values["num_samples"]:
        raise DataError(_damaged(f"{url}/{INDEX_FILE}", "counts that do not add up"))
    return manifest


def _damaged(url: str, what: str) -> str:
    return f"{url}: got {what}; the index is damaged. Pack or index the split again."
