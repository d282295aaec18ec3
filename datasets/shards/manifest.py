"""The manifest of a split: shards, sample counts, byte offsets. `index.json` + `index.offsets`.

A split's URL is the prefix that holds its index, or the pattern of its shards
(`train-{000000..001023}.tar`), whose index is beside them under the pattern's name. index.json
lists the shards (size, number of samples, ETag, and SHA-256 if their bytes were read), the classes
and the label rule. index.offsets holds little-endian uint32 numbers of 512-byte tar blocks: for
each shard the first block of every sample, then the end of the last; 4 bytes per sample, 5 MB for
ImageNet. With them shards are read by ranges, and a missing byte or sample is noticed. index.json
is written last, so an incomplete split has none.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets.errors import DataError, LabelError
from datasets.shards.labels import DEFAULT_RULE, is_class_number, label_text
from datasets.shards.tar import BLOCK_BYTES
from datasets.storage.store import Store

FORMAT = 1
INDEX_FILE = "index.json"
OFFSETS_FILE = "index.offsets"


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """One tar file.

    name: relative to the split's folder, or a whole URL. sha256: None if only headers were read.
    offsets: uint32 (num_samples + 1,), in tar blocks.
    """

    name: str
    size_bytes: int
    sha256: str | None
    etag: str | None
    offsets: NDArray[np.uint32]

    @property
    def num_samples(self) -> int:
        return len(self.offsets) - 1

    @property
    def entry(self) -> dict[str, Any]:
        """The shard in index.json, which has the offsets of all shards in a file of their own."""
        return {
            "name": self.name,
            "size_bytes": self.size_bytes,
            "num_samples": self.num_samples,
            "sha256": self.sha256,
            "etag": self.etag,
        }

    def byte_range(self, first: int, count: int) -> tuple[int, int]:
        """(start, length), in bytes, of `count` samples from `first` on."""
        start = int(self.offsets[first]) * BLOCK_BYTES
        return start, int(self.offsets[first + count]) * BLOCK_BYTES - start


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A split as its index describes it. label: a rule of labels.py."""

    url: str
    classes: tuple[str, ...]
    shards: tuple[Shard, ...]
    label: str = DEFAULT_RULE

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

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.classes)}

    @property
    def fingerprint(self) -> str:
        """SHA-256 over what the order and the samples depend on: the shards' names, sizes,
        checksums (if known) and offsets, but not their location."""
        digest = hashlib.sha256()
        for shard in self.shards:
            name = shard.name.rpartition("/")[2] if "://" in shard.name else shard.name
            digest.update(f"{name}\0{shard.size_bytes}\0{shard.sha256 or ''}\0".encode())
            digest.update(shard.offsets.astype("<u4").tobytes())
        return digest.hexdigest()

    def samples_at(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """(shard, sample) of positions in the manifest's order: int64 (n, 2)."""
        starts = np.concatenate([[0], np.cumsum(self.samples_per_shard)])
        shards = np.searchsorted(starts, positions, side="right") - 1
        return np.stack([shards, positions - starts[shards]], axis=1)

    def class_of(self, sample: Mapping[str, Any], where: str) -> int:
        """The sample's class, 0 <= class < num_classes. Raises LabelError."""
        return self.class_number(label_text(sample, self.label, where), where)

    def class_number(self, text: str, where: str) -> int:
        """The class of a label: the number that it is, else that of its name. Raises LabelError."""
        if is_class_number(text) and int(text) < self.num_classes:
            return int(text)
        number = self._numbers.get(text)
        if number is None:
            raise LabelError(
                f"{where}: got the label {text[:40]!r}; a class is a number from 0 to "
                f"{self.num_classes - 1} or one of the split's class names. Fix the label, or "
                "index the split again."
            )
        return number

    def shard_url(self, shard: int) -> str:
        name = self.shards[shard].name
        return name if "://" in name else f"{split_folder(self.url)}/{name}"


def is_pattern(url: str) -> bool:
    """Whether the URL is a pattern of shards (`x-{00..09}.tar`, `x.tar`), not a prefix."""
    return "{" in url or url.endswith(".tar")


def split_folder(url: str) -> str:
    """The folder that shard names are relative to: the prefix, or the part of a pattern up to the
    last slash before its first brace."""
    url = url.rstrip("/")
    return url.partition("{")[0].rpartition("/")[0] if is_pattern(url) else url


def index_url(url: str) -> str:
    """The URL of the split's index.json."""
    url = url.rstrip("/")
    if not is_pattern(url):
        return f"{url}/{INDEX_FILE}"
    folder = split_folder(url)
    name = re.sub(r"[{}]", "", url[len(folder) + 1 :]).replace("/", "-").removesuffix(".tar")
    return f"{folder}/{name}.{INDEX_FILE}"


def save_manifest(store: Store, manifest: Manifest) -> None:
    """Writes both index files, index.json last. Raises StoreError."""
    offsets = b"".join(shard.offsets.astype("<u4").tobytes() for shard in manifest.shards)
    url = index_url(manifest.url)
    offsets_url = url.removesuffix(INDEX_FILE) + OFFSETS_FILE
    store.write(offsets_url, offsets)
    values = {
        "format": FORMAT,
        "classes": list(manifest.classes),
        "num_samples": manifest.num_samples,
        "label": manifest.label,
        "offsets": {
            "name": offsets_url.rpartition("/")[2],
            "sha256": hashlib.sha256(offsets).hexdigest(),
        },
        "shards": [shard.entry for shard in manifest.shards],
    }
    store.write(url, json.dumps(values, indent=1).encode())


def load_manifest(store: Store, url: str) -> Manifest:
    """The manifest of a split. url: a prefix or a pattern of shards.

    Raises DataError (no shards, no index, an index that is damaged or of another version),
    StoreError.
    """
    url = url.rstrip("/")
    where = index_url(url)
    try:
        content = store.read(where)
    except DataError as error:
        raise DataError(_missing_index(store, url, where)) from error
    try:
        values: dict[str, Any] = json.loads(content)
        if values["format"] != FORMAT:
            raise DataError(
                f"{where}: got index format {values['format']}; this version reads {FORMAT}. Use "
                "the rayception that wrote it, or pack the split again."
            )
        return _parse(store, url, values)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(_damaged(where, f"{type(error).__name__}: {error}")) from error


def _parse(store: Store, url: str, values: dict[str, Any]) -> Manifest:
    offsets_url = f"{index_url(url).rpartition('/')[0]}/{values['offsets']['name']}"
    content = store.read(offsets_url)
    if hashlib.sha256(content).hexdigest() != values["offsets"]["sha256"]:
        raise DataError(_damaged(offsets_url, f"{len(content)} bytes with another checksum"))
    offsets = np.frombuffer(content, dtype="<u4").astype(np.uint32)
    shards = []
    at = 0
    for entry in values["shards"]:
        count = int(entry["num_samples"]) + 1
        shards.append(
            Shard(
                name=str(entry["name"]),
                size_bytes=int(entry["size_bytes"]),
                sha256=entry["sha256"],
                etag=entry["etag"],
                offsets=offsets[at : at + count],
            )
        )
        at += count
    manifest = Manifest(
        url=url,
        classes=tuple(values["classes"]),
        shards=tuple(shards),
        label=values.get("label", DEFAULT_RULE),
    )
    if at != len(offsets) or manifest.num_samples != values["num_samples"]:
        raise DataError(_damaged(index_url(url), "counts that do not add up"))
    return manifest


def _missing_index(store: Store, url: str, where: str) -> str:
    """The message for a missing index; what to do depends on whether there are shards."""
    remedy = f"Run `rayception index '{url}'`, or pack the split with rayception."
    if is_pattern(url) or url.startswith("http"):
        return f"{where}: got no index there; training reads shards by its offsets. {remedy}"
    shards = [entry for entry in store.list(f"{url}/") if entry.url.endswith(".tar")]
    if shards:
        return (
            f"{url}: got {len(shards)} tar shards without {INDEX_FILE}; training reads them by its "
            f"offsets. {remedy}"
        )
    return (
        f"{url}: got no shards and no {INDEX_FILE}; a split is tar shards with an index. "
        "Fix the prefix, or pack the data there."
    )


def _damaged(url: str, what: str) -> str:
    return f"{url}: got {what}; the index is damaged. Pack or index the split again."
