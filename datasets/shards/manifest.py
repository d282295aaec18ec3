"""The manifest of a split: `index.json`, `index.offsets` and, if it has them, `index.checksums`.

index.json lists the shards (size, number of samples, ETag, and SHA-256 if they were packed), the
classes and the label rule. index.offsets holds little-endian uint32 numbers of 512-byte tar blocks:
for each shard the first block of every sample, then the end of the last; 4 bytes per sample, 5 MB
for ImageNet. With them shards are read by ranges, and a missing byte or sample is noticed.
index.checksums holds the CRC-32C of every sample, another 4 bytes: of its bytes as they lie in the
shard, from its first header to the next sample's, which is what a loader reads. index.json states a
checksum of each file and of itself, and is written last, so an incomplete split has none.

Files have no ETag. Their size and modification time stand for it, but a copy of a folder has other
times; therefore those that a file has when the manifest is loaded are the ones that it must keep;
so are the ETags of shards that were copied from a disk to a server.
"""

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets.errors import DataError, LabelError
from datasets.shards.labels import DEFAULT_RULE, is_class_number, label_text, without_mark
from datasets.shards.split_url import INDEX_FILE, index_url, is_pattern, split_folder
from datasets.shards.tar import BLOCK_BYTES
from datasets.storage.checksums import decode_json, encode_json
from datasets.storage.disk import ETAG_PREFIX
from datasets.storage.store import Store

FORMAT = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """One tar file.

    name: relative to the split's folder, or a whole URL. sha256: None if it was not packed by us.
    offsets: uint32 (num_samples + 1,), in tar blocks. checksums: uint32 (num_samples,), CRC-32C of
    each sample's bytes; None if they are not known, or not to be used.
    """

    name: str
    size_bytes: int
    sha256: str | None
    etag: str | None
    offsets: NDArray[np.uint32]
    checksums: NDArray[np.uint32] | None = None

    @property
    def num_samples(self) -> int:
        return len(self.offsets) - 1

    @property
    def entry(self) -> dict[str, Any]:
        """The shard in index.json; the offsets and checksums of all shards are in other files."""
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
    """A split as its index describes it. label: a rule of labels.py. retimed: names of the shards
    on disk that have another modification time than the index says: they were copied or replaced.
    """

    url: str
    classes: tuple[str, ...]
    shards: tuple[Shard, ...]
    label: str = DEFAULT_RULE
    retimed: tuple[str, ...] = ()

    @property
    def has_checksums(self) -> bool:
        return all(shard.checksums is not None for shard in self.shards)

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
        """SHA-256 over what the order and the samples depend on: the shards' names, sizes, SHA-256
        (if known) and offsets, but neither their location nor the samples' checksums, which may be
        added later."""
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
        # In indexes of earlier versions a byte order mark is a part of the name.
        text = text if text in self._numbers else without_mark(text)
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


def save_manifest(store: Store, manifest: Manifest) -> None:
    """Writes the index files, index.json last. Raises StoreError."""
    url = index_url(manifest.url)
    arrays = {"offsets": [shard.offsets for shard in manifest.shards]}
    if manifest.has_checksums:
        arrays["checksums"] = [s.checksums for s in manifest.shards if s.checksums is not None]
    files = {}
    for kind, parts in arrays.items():
        content = np.concatenate(parts).astype("<u4").tobytes()
        place = f"{url.removesuffix('.json')}.{kind}"
        store.write(place, content)
        sha256 = hashlib.sha256(content).hexdigest()
        files[kind] = {"name": place.rpartition("/")[2], "sha256": sha256}
    values = {
        "format": FORMAT,
        "classes": list(manifest.classes),
        "num_samples": manifest.num_samples,
        "label": manifest.label,
        **files,
        "shards": [shard.entry for shard in manifest.shards],
    }
    store.write(url, encode_json(values, indent=1))


def load_manifest(store: Store, url: str, *, verify: bool | None = None) -> Manifest:
    """The manifest of a split. url: a prefix or a pattern of shards. verify: whether to have the
    samples' checksums, and so check what is read; None: if the split has some.

    Raises DataError (no shards, no index, one that is damaged or of another version, no checksums
    though `verify` is true), StoreError.
    """
    url = url.rstrip("/")
    where = index_url(url)
    try:
        content = store.read(where)
    except DataError as error:
        raise DataError(_missing_index(store, url, where)) from error
    try:
        values: dict[str, Any] = decode_json(content)
        if values["format"] != FORMAT:
            raise DataError(
                f"{where}: got index format {values['format']}; this version reads {FORMAT}. Use "
                "the rayception that wrote it, or pack the split again."
            )
        if verify and "checksums" not in values:
            raise DataError(
                f"data.verify: got true, and no checksums in {where}; they are what samples are "
                f"compared with. Add them with `rayception index --checksums '{url}'`, or leave "
                "data.verify out."
            )
        return _note_etags(store, _parse(store, url, values, verify is not False))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(_damaged(where, f"{error} ({type(error).__name__})")) from error


def _parse(store: Store, url: str, values: dict[str, Any], has_checksums: bool) -> Manifest:
    offsets = _read_array(store, url, values["offsets"])
    checksums = None
    if has_checksums and "checksums" in values:
        checksums = _read_array(store, url, values["checksums"])
    shards = []
    at = first = 0  # in `offsets`, in `checksums`
    for entry in values["shards"]:
        count = int(entry["num_samples"])
        shards.append(
            Shard(
                name=str(entry["name"]),
                size_bytes=int(entry["size_bytes"]),
                sha256=entry["sha256"],
                etag=entry["etag"],
                offsets=offsets[at : at + count + 1],
                checksums=None if checksums is None else checksums[first : first + count],
            )
        )
        at += count + 1
        first += count
    manifest = Manifest(
        url=url,
        classes=tuple(values["classes"]),
        shards=tuple(shards),
        label=values.get("label", DEFAULT_RULE),
    )
    counts = {values["num_samples"], first, first if checksums is None else len(checksums)}
    if at != len(offsets) or len(counts) > 1:
        raise DataError(_damaged(index_url(url), "counts that do not add up"))
    return manifest


def _read_array(store: Store, url: str, file: dict[str, str]) -> NDArray[np.uint32]:
    """The numbers in one of the files beside index.json. Raises DataError, StoreError."""
    where = f"{index_url(url).rpartition('/')[0]}/{file['name']}"
    content = store.read(where)
    if hashlib.sha256(content).hexdigest() != file["sha256"]:
        raise DataError(_damaged(where, f"{len(content)} bytes with another checksum"))
    return np.frombuffer(content, dtype="<u4").astype(np.uint32)


def _note_etags(store: Store, manifest: Manifest) -> Manifest:
    """The manifest with the ETags that its shards have now, where the index has none that tells:
    those on this machine's disk, and remote ones that were indexed on a disk. One that none has
    stands where the size is not the index's. Raises StoreError."""

    def note(shard: Shard, url: str) -> Shard:
        if not (is_on_disk := store.is_on_disk(url)) and not _is_time(shard.etag):
            return shard
        try:
            entry = store.stat(url)
        except DataError:  # reading it says so
            return shard
        other = f"{ETAG_PREFIX if is_on_disk else 'size:'}{shard.size_bytes}"
        return replace(shard, etag=entry.etag if entry.size_bytes == shard.size_bytes else other)

    urls = [manifest.shard_url(number) for number in range(len(manifest.shards))]
    with ThreadPoolExecutor(16, thread_name_prefix="index") as pool:
        shards = tuple(pool.map(note, manifest.shards, urls))
    retimed = tuple(
        new.name
        for old, new in zip(manifest.shards, shards, strict=True)
        if old.etag != new.etag and _is_time(old.etag) and _is_time(new.etag)
    )
    return replace(manifest, shards=shards, retimed=retimed)


def _is_time(etag: str | None) -> bool:
    return etag is not None and etag.startswith(ETAG_PREFIX)


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
    return (
        f"{url}: got {what}; the index is damaged. Restore it from a copy, or pack or index the "
        "split again."
    )
