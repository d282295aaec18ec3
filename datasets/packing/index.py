"""Shards that somebody else wrote -> a manifest, from their tar headers alone.

Headers and labels are read by range requests, each where a header is expected: small ones if images
are large, larger ones if many small members fit into one. Many at once, as latency dominates.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from braceexpand import braceexpand

from datasets.errors import DataError, LabelError, ShardError
from datasets.images.decode import IMAGE_EXTENSIONS
from datasets.loading.stream import group_by_key
from datasets.shards.labels import (
    DEFAULT_RULE,
    LABEL_EXTENSIONS,
    MAX_LABEL_BYTES,
    find_rule,
    is_class_number,
    label_extension,
    label_text,
    without_mark,
)
from datasets.shards.manifest import Manifest, Shard
from datasets.shards.split_url import is_pattern, split_folder
from datasets.shards.tar import BLOCK_BYTES, Member, walk
from datasets.storage.store import Entry, Store

NEAR_BYTES = 32 * 2**10  # members closer than this are fetched together
FAR_BYTES = 4 * 2**10
COMPRESSED = (".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz")
EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class ListedSample:
    """start: its first byte in the shard. text: its label, or None."""

    key: str
    start: int
    has_image: bool
    text: str | None


@dataclass(frozen=True, slots=True)
class ShardListing:
    """A shard's samples, from its headers. end: first byte after the last one."""

    entry: Entry
    samples: tuple[ListedSample, ...]
    end: int

    def shard(self, name: str) -> Shard:
        starts = [sample.start for sample in self.samples]
        blocks = np.array([*starts, self.end], dtype=np.int64) // BLOCK_BYTES
        return Shard(
            name=name,
            size_bytes=self.entry.size_bytes,
            sha256=None,
            etag=self.entry.etag,
            offsets=blocks.astype(np.uint32),
        )


@dataclass(frozen=True, slots=True)
class IndexResult:
    """A manifest, and the samples without image or label: (how many, the first few)."""

    manifest: Manifest
    without_image: tuple[int, tuple[str, ...]]
    without_label: tuple[int, tuple[str, ...]]


def find_shards(store: Store, url: str) -> list[Entry]:
    """The shards of a prefix or pattern, in order.

    Raises DataError (none, a missing or compressed one, an unbalanced brace), StoreError.
    """
    url = url.rstrip("/")
    if not is_pattern(url):
        entries = store.list(f"{url}/")
        tars = [entry for entry in entries if entry.url.endswith(".tar")]
        shards = [tar for tar in tars if not tar.url.rpartition("/")[2].startswith(".")]  # hidden
        compressed = [entry.url for entry in entries if entry.url.endswith(COMPRESSED)]
        if compressed and not shards:
            raise DataError(_compressed(compressed[0]))
        if not shards:
            raise DataError(
                f"{url}: got {len(entries)} objects and no .tar among them; a split is tar shards. "
                "Fix the prefix."
            )
        return shards
    try:
        names = list(braceexpand(url))
    except ValueError as error:
        raise DataError(
            f"{url}: got an unbalanced brace; a pattern is like train-{{000000..000099}}.tar. "
            "Fix it."
        ) from error
    for name in names:
        if not name.endswith(".tar"):
            raise DataError(_compressed(name))
    with ThreadPoolExecutor(16, thread_name_prefix="index") as pool:
        return list(pool.map(store.stat, names))


def list_shards(
    store: Store, entries: Sequence[Entry], rule: str | None, field: str | None, workers: int
) -> Iterator[ShardListing]:
    """The listing of each shard, in order; `workers` shards are read at a time.

    rule: the split's label rule; None finds it for each sample. field: of find_rule. Raises
    DataError (a damaged or truncated shard), StoreError; the first error ends it.
    """
    with ThreadPoolExecutor(workers, thread_name_prefix="index") as pool:
        yield from pool.map(lambda entry: _list_shard(store, entry, rule, field), entries)


def index_shards(
    store: Store,
    url: str,
    entries: Sequence[Entry],
    *,
    classes: Sequence[str] = (),
    field: str | None = None,
    workers: int = 16,
    on_shard: Callable[[ShardListing], None] = lambda listing: None,
) -> IndexResult:
    """The manifest of these shards as the split `url`.

    classes: names by class number; if empty, they follow from the labels: the numbers 0 to the
    largest, or the sorted names. field: of a JSON label. (Parameters: the options of `rayception
    index`.) Raises DataError (a damaged shard, no sample, no image or no label at all), StoreError.
    """
    rule = _find_split_rule(store, entries, field)
    shards: list[Shard] = []
    texts: Counter[str] = Counter()
    no_image: list[str] = []
    no_label: list[str] = []
    folder = f"{split_folder(url)}/"
    for listing in list_shards(store, entries, rule, field, workers):
        shard_url = listing.entry.url
        shards.append(listing.shard(shard_url.removeprefix(folder)))
        for sample in listing.samples:
            if not sample.has_image:
                no_image.append(f"{shard_url}:{sample.key}")
            if sample.text is None:
                no_label.append(f"{shard_url}:{sample.key}")
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
                f".{', .'.join(files)}, and its key ends at the first dot of a file's name. "
                "Look at the shards' file names."
            )
    manifest = Manifest(
        url=url,
        classes=tuple(classes) or name_classes(texts, url),
        shards=tuple(shards),
        label=rule,
    )
    if classes:
        for text in texts:
            manifest.class_number(text, url)
    return IndexResult(
        manifest,
        (len(no_image), tuple(no_image[:EXAMPLES])),
        (len(no_label), tuple(no_label[:EXAMPLES])),
    )


def name_classes(texts: Counter[str], url: str) -> tuple[str, ...]:
    """Class names of labels: 0 to the largest if all are numbers, else the sorted names. Raises
    LabelError if a number among names would mean another class than its own."""
    if all(map(is_class_number, texts)):
        return tuple(str(number) for number in range(max(map(int, texts)) + 1))
    names = tuple(sorted(texts))
    for name in filter(is_class_number, names):
        if int(name) < len(names) and names[int(name)] != name:
            raise LabelError(
                f"{url}: got the label {name!r} among names such as {names[-1]!r}; labels are all "
                "numbers or all names. Fix the labels, or name the classes with `rayception index "
                "--classes`."
            )
    return names


class _Headers:
    """(position, length) -> bytes of an object, fetched on demand with a little beyond."""

    def __init__(self, store: Store, entry: Entry) -> None:
        self._store, self._entry = store, entry
        self._begin, self._content = 0, memoryview(b"")

    def __call__(self, at: int, length: int) -> memoryview:
        offset = at - self._begin
        if offset < 0 or offset + length > len(self._content):
            ahead = NEAR_BYTES if 0 < offset <= NEAR_BYTES else FAR_BYTES
            wanted = min(max(length, ahead), self._entry.size_bytes - at)
            self._content = self._store.read_range(self._entry.url, at, wanted, self._entry.etag)
            self._begin, offset = at, 0
        return self._content[offset : offset + length]


def _list_shard(store: Store, entry: Entry, rule: str | None, field: str | None) -> ShardListing:
    read = _Headers(store, entry)
    samples: list[ListedSample] = []
    end = 0
    partial: list[tuple[Member, str]] = []
    members = walk(
        read, entry.size_bytes, entry.url, is_whole=True, on_partial=lambda *p: partial.append(p)
    )
    for key, files, labels in _read_samples(read, members, entry.url):
        end = max(member.end for member in files.values())
        try:
            sample_rule = rule or find_rule(labels, field)
            text = label_text(labels, sample_rule, entry.url) if sample_rule else ""
        except LabelError:
            text = ""
        samples.append(
            ListedSample(
                key=key,
                start=min(member.start for member in files.values()),
                has_image=any(extension in files for extension in IMAGE_EXTENSIONS),
                text=without_mark(text) or None,
            )
        )
    _check_are_whole(samples, partial)
    _check_are_together(samples, entry.url)
    return ShardListing(entry, tuple(samples), end)


def _check_are_whole(samples: list[ListedSample], partial: list[tuple[Member, str]]) -> None:
    """Raises ShardError if an image, or the label beside one, is a link or has holes."""
    with_image = {sample.key for sample in samples if sample.has_image}
    for member, problem in partial:
        for key, ((extension, _),) in group_by_key([member], member.name):
            is_label = extension in LABEL_EXTENSIONS and key in with_image
            if is_label or extension in IMAGE_EXTENSIONS:
                raise ShardError(problem)


def _check_are_together(samples: list[ListedSample], url: str) -> None:
    """Raises ShardError if a sample's files lie apart: each part would count as a sample that lacks
    the rest. (A key that only occurs twice, each time with image and label, is two samples.)"""
    counts = Counter(sample.key for sample in samples)
    for sample in samples:
        if counts[sample.key] > 1 and (sample.text is None or not sample.has_image):
            raise ShardError(
                f"{url}: got files of sample {sample.key} in {counts[sample.key]} places; a "
                "sample's files lie beside each other. Write the tar again with --sort=name."
            )


def _read_samples(
    read: _Headers, members: Iterator[Member], url: str
) -> Iterator[tuple[str, dict[str, Member], dict[str, bytes]]]:
    """(key, members by extension, contents of label files) of each sample. A label is read with its
    header, from the same request if possible."""
    for key, group in group_by_key(members, url):
        files: dict[str, Member] = {}
        labels: dict[str, bytes] = {}
        for extension, member in group:
            files[extension] = member
            if extension in LABEL_EXTENSIONS and member.size <= MAX_LABEL_BYTES:
                labels[extension] = bytes(read(member.begin, member.size))
        yield key, files, labels


def _find_split_rule(store: Store, entries: Sequence[Entry], field: str | None) -> str:
    """The label rule of the first labelled sample of the first shard that has samples."""
    for entry in entries:
        read = _Headers(store, entry)
        samples = _read_samples(read, walk(read, entry.size_bytes, entry.url), entry.url)
        is_empty = True
        for _, _, labels in samples:
            is_empty = False
            if (rule := find_rule(labels, field)) and label_extension(rule) in labels:
                return rule
        if not is_empty:
            break
    return DEFAULT_RULE


def _compressed(url: str) -> str:
    return (
        f"{url}: got a shard that is not a plain .tar; ranges of it are read, which compression "
        "prevents (images are compressed already). Unpack it, or pack the split with rayception."
    )
