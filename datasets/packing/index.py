"""Shards that somebody else wrote -> a manifest, from their tar headers alone.

Only headers and labels are read, by range requests: a request where a header is expected, small
where images are large (of a 110 kB sample one needs 1.5 kB), larger where many small members fit
into one. What the requests cost is latency, so many shards are walked at once.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from braceexpand import braceexpand

from datasets.errors import DataError, LabelError
from datasets.images.decode import IMAGE_EXTENSIONS
from datasets.loading.stream import split_name
from datasets.shards.labels import (
    DEFAULT_RULE,
    LABEL_EXTENSIONS,
    MAX_LABEL_BYTES,
    class_number,
    find_rule,
    label_extension,
    label_text,
)
from datasets.shards.manifest import Manifest, Shard, is_pattern, split_folder
from datasets.shards.tar import BLOCK_BYTES, Member, walk
from datasets.storage.store import Entry, Store

NEAR_BYTES = 32 * 2**10  # members closer than this are fetched together
FAR_BYTES = 4 * 2**10
COMPRESSED = (".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz")
EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class Listed:
    """One sample as headers show it. start: its first byte; text: its label, None without one."""

    key: str
    start: int
    has_image: bool
    text: str | None


@dataclass(frozen=True, slots=True)
class Listing:
    """One shard as headers show it; end: first byte after its last sample."""

    entry: Entry
    samples: tuple[Listed, ...]
    end: int

    def shard(self, name: str) -> Shard:
        blocks = np.array([*(s.start for s in self.samples), self.end], dtype=np.int64)
        return Shard(
            name=name,
            size_bytes=self.entry.size_bytes,
            sha256=None,
            etag=self.entry.etag,
            offsets=(blocks // BLOCK_BYTES).astype(np.uint32),
        )


@dataclass(frozen=True, slots=True)
class Indexed:
    """A manifest, and what its headers show to be missing: (how many, the first few)."""

    manifest: Manifest
    without_image: tuple[int, tuple[str, ...]]
    without_label: tuple[int, tuple[str, ...]]


def find_shards(store: Store, url: str) -> list[Entry]:
    """The shards that a prefix holds or a pattern names, in order.

    Raises DataError: none there, one missing, compressed ones, an unbalanced brace; StoreError.
    """
    url = url.rstrip("/")
    if not is_pattern(url):
        found = store.list(f"{url}/")
        shards = [entry for entry in found if entry.url.endswith(".tar")]
        packed = [entry.url for entry in found if entry.url.endswith(COMPRESSED)]
        if packed and not shards:
            raise DataError(_compressed(packed[0]))
        if not shards:
            raise DataError(
                f"{url}: got {len(found)} objects and no .tar among them; a split is tar shards. "
                "Mend the prefix."
            )
        return shards
    try:
        names = list(braceexpand(url))
    except ValueError as error:
        raise DataError(
            f"{url}: got an unbalanced brace; a pattern is like train-{{000000..000099}}.tar. "
            "Mend it."
        ) from error
    for name in names:
        if not name.endswith(".tar"):
            raise DataError(_compressed(name))
    with ThreadPoolExecutor(16, thread_name_prefix="index") as pool:
        return list(pool.map(store.stat, names))


def list_shard(store: Store, entry: Entry, rule: str | None, field: str | None) -> Listing:
    """Walks the headers of one shard. rule: where labels stand; None finds it by each sample.

    Raises DataError (damaged or cut), StoreError.
    """
    read = _Headers(store, entry)
    samples: list[Listed] = []
    end = 0
    members = walk(read, entry.size_bytes, entry.url, is_whole=True)
    for key, group, labels in _grouped(read, members):
        end = max(member.end for member in group.values())
        try:
            found = rule or find_rule(labels, field)
            text = label_text(labels, found, entry.url) if found else None
        except LabelError:
            text = None
        samples.append(
            Listed(
                key=key,
                start=min(member.start for member in group.values()),
                has_image=any(extension in group for extension in IMAGE_EXTENSIONS),
                text=text,
            )
        )
    return Listing(entry, tuple(samples), end)


def list_shards(
    store: Store, entries: Sequence[Entry], rule: str | None, field: str | None, workers: int
) -> Iterator[Listing]:
    """The listing of each shard in order, `workers` of them walked at once; the first error ends
    it. Raises as list_shard."""
    with ThreadPoolExecutor(workers, thread_name_prefix="index") as pool:
        futures = [pool.submit(list_shard, store, entry, rule, field) for entry in entries]
        try:
            for future in futures:
                yield future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def index_shards(
    store: Store,
    url: str,
    entries: Sequence[Entry],
    *,
    classes: Sequence[str] = (),
    field: str | None = None,
    workers: int = 16,
    on_shard: Callable[[Listing], None] = lambda listing: None,
) -> Indexed:
    """The manifest, of the URL `url`, of these shards.

    classes: names, in the order of their numbers; left out, they come from the labels: numbers
    0..the largest, or the sorted names. field: where a JSON label stands. Raises DataError (a
    damaged shard, no sample, no image or no label anywhere), StoreError.
    """
    rule = _first_rule(store, entries, field)
    shards: list[Shard] = []
    texts: Counter[str] = Counter()
    no_image: list[str] = []
    no_label: list[str] = []
    folder = f"{split_folder(url)}/"
    for listing in list_shards(store, entries, rule, field, workers):
        where = listing.entry.url
        shards.append(listing.shard(where.removeprefix(folder)))
        for sample in listing.samples:
            if not sample.has_image:
                no_image.append(f"{where}:{sample.key}")
            if sample.text is None:
                no_label.append(f"{where}:{sample.key}")
            else:
                texts[sample.text] += 1
        on_shard(listing)
    total = sum(shard.num_samples for shard in shards)
    for what, missing, files in (
        ("an image", no_image, IMAGE_EXTENSIONS),
        ("a label", no_label, LABEL_EXTENSIONS),
    ):
        if len(missing) == total:
            raise DataError(
                f"{url}: got {total} samples, none with {what}; a sample has one of "
                f".{', .'.join(files)}. Look at the shards' file names."
            )
    manifest = Manifest(
        url=url, classes=tuple(classes) or name_classes(texts), shards=tuple(shards), label=rule
    )
    if classes:
        for text in texts:
            class_number(text, manifest.class_numbers, manifest.num_classes, url)
    return Indexed(
        manifest,
        (len(no_image), tuple(no_image[:EXAMPLES])),
        (len(no_label), tuple(no_label[:EXAMPLES])),
    )


def name_classes(texts: Counter[str]) -> tuple[str, ...]:
    """Class names of labels: 0..the largest where all are numbers, else the sorted names."""
    if all(text.isascii() and text.isdigit() and len(text) < 10 for text in texts):
        return tuple(str(number) for number in range(max(int(text) for text in texts) + 1))
    return tuple(sorted(texts))


class _Headers:
    """Bytes of an object by position, fetched where they are wanted and a little beyond."""

    def __init__(self, store: Store, entry: Entry) -> None:
        self._store, self._entry = store, entry
        self._begin, self._content = 0, memoryview(b"")

    def __call__(self, at: int, length: int) -> memoryview:
        offset = at - self._begin
        if offset < 0 or offset + length > len(self._content):
            is_near = 0 < offset <= NEAR_BYTES
            wanted = min(
                max(length, NEAR_BYTES if is_near else FAR_BYTES), self._entry.size_bytes - at
            )
            self._content = self._store.read_range(self._entry.url, at, wanted, self._entry.etag)
            self._begin, offset = at, 0
        return self._content[offset : offset + length]


def _grouped(
    read: _Headers, members: Iterator[Member]
) -> Iterator[tuple[str, dict[str, Member], dict[str, bytes]]]:
    """(key, members by extension, content of the label files) of each sample, by webdataset's
    rule: neighbours of one key. A label is read when its header is met, while it is at hand."""
    current: str | None = None
    group: dict[str, Member] = {}
    labels: dict[str, bytes] = {}
    for member in members:
        key, extension = split_name(member.name)
        if key is None:
            continue
        if key != current:
            if current is not None:
                yield current, group, labels
            current, group, labels = key, {}, {}
        group[extension] = member
        if extension in LABEL_EXTENSIONS and member.size <= MAX_LABEL_BYTES:
            labels[extension] = bytes(read(member.begin, member.size))
    if current is not None:
        yield current, group, labels


def _first_rule(store: Store, entries: Sequence[Entry], field: str | None) -> str:
    """Where the first labelled sample of the first shard has its label; the whole split's rule."""
    read = _Headers(store, entries[0])
    for _, _, labels in _grouped(read, walk(read, entries[0].size_bytes, entries[0].url)):
        if (rule := find_rule(labels, field)) and label_extension(rule) in labels:
            return rule
    return DEFAULT_RULE


def _compressed(url: str) -> str:
    return (
        f"{url}: got a shard that is no plain .tar; ranges of it are read, which compression "
        "forbids (images are compressed already). Unpack it, or pack the split with rayception."
    )
