"""What a split holds, and whether all of it is whole."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datasets.errors import DataError
from datasets.images.augment import center_box
from datasets.images.decode import decode_image, find_image
from datasets.loading.stream import Sample, fetch_window, split_samples
from datasets.order import Window, random_words
from datasets.shards.manifest import Manifest
from datasets.storage.store import Store

_CHOICE = 18  # the Philox stream of an inspection's choice
TILE = 96


@dataclass(frozen=True, slots=True)
class Damage:
    """One thing that is wrong: where, and the line that says it."""

    shard: str
    key: str | None
    message: str


@dataclass(frozen=True, slots=True)
class Contents:
    """A split at a glance; sizes and classes are those of the samples looked at."""

    num_samples: int
    num_shards: int
    size_bytes: int
    looked_at: int
    by_class: dict[str, int]
    median_size: tuple[int, int]  # height, width
    largest_size: tuple[int, int]
    sheet: Image.Image


def verify(
    store: Store, manifest: Manifest, *, threads: int, on_shard: Callable[[], None]
) -> list[Damage]:
    """Reads every byte and decodes every sample of a split; -> what is damaged, in shard order.

    Raises StoreError.
    """

    def check(shard: int) -> list[Damage]:
        found = list(_shard_damage(store, manifest, shard))
        on_shard()
        return found

    with ThreadPoolExecutor(threads, thread_name_prefix="verify") as pool:
        return [d for found in pool.map(check, range(len(manifest.shards))) for d in found]


def inspect(store: Store, manifest: Manifest, *, look_at: int) -> Contents:
    """Looks at `look_at` samples spread over the split, and draws 64 of them on a sheet.

    Raises DataError where one of them is damaged, StoreError.
    """
    words = random_words(0, _CHOICE, 0, 0, 0, manifest.num_samples)
    chosen = np.sort(np.argsort(words, kind="stable")[:look_at])
    sizes: list[tuple[int, int]] = []
    labels: Counter[int] = Counter()
    tiles: list[Image.Image] = []
    for shard, number in manifest.samples_at(chosen).tolist():
        image, label = read_sample(store, manifest, shard, number)
        labels[label] += 1
        sizes.append((image.shape[0], image.shape[1]))
        if len(tiles) < 64:
            square = Image.fromarray(center_square(image))
            tiles.append(square.resize((TILE, TILE), Image.Resampling.LANCZOS))
    middle = sorted(sizes, key=lambda size: size[0] * size[1])
    return Contents(
        num_samples=manifest.num_samples,
        num_shards=len(manifest.shards),
        size_bytes=manifest.size_bytes,
        looked_at=len(sizes),
        by_class={manifest.classes[label]: count for label, count in sorted(labels.items())},
        median_size=middle[len(middle) // 2],
        largest_size=middle[-1],
        sheet=_sheet(tiles),
    )


def read_sample(
    store: Store, manifest: Manifest, shard: int, number: int
) -> tuple[NDArray[np.uint8], int]:
    """(image (H, W, 3), class number) of one sample. Raises DataError where it is damaged,
    StoreError."""
    window = Window(0, ((shard, number, 1),), np.empty((0, 2), dtype=np.int64))
    sample = fetch_window(store, manifest, window)[shard, number]
    if "__damage__" in sample:
        raise sample["__damage__"]
    where = f"{sample['__url__']}:{sample['__key__']}"
    return decode_image(find_image(sample, where), where), manifest.class_of(sample, where)


def center_square(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The largest square in the middle."""
    top, left, side, _ = center_box(image.shape[0], image.shape[1], 1.0)
    return image[top : top + side, left : left + side]


def _shard_damage(store: Store, manifest: Manifest, number: int) -> Iterator[Damage]:
    shard, url = manifest.shards[number], manifest.shard_url(number)
    try:
        content = store.read(url)
        changed = shard.sha256 not in (None, hashlib.sha256(content).hexdigest())
        if changed or len(content) != shard.size_bytes:
            yield Damage(
                shard.name,
                None,
                f"{url}: got {len(content)} bytes with another checksum or size than its index; "
                f"{shard.size_bytes} were indexed. Upload the shard again.",
            )
        count = 0
        for _, sample in split_samples(memoryview(content), url):
            count += 1
            message = _sample_damage(sample, manifest)
            if message is not None:
                yield Damage(shard.name, sample["__key__"], message)
        if count != shard.num_samples:
            yield Damage(
                shard.name,
                None,
                f"{url}: got {count} samples; its index says {shard.num_samples}. "
                "Upload the shard again, or index the split again.",
            )
    except DataError as error:
        yield Damage(shard.name, None, str(error))


def _sample_damage(sample: Sample, manifest: Manifest) -> str | None:
    where = f"{sample['__url__']}:{sample['__key__']}"
    try:
        decode_image(find_image(sample, where), where)
        manifest.class_of(sample, where)
    except DataError as error:
        return str(error)
    return None


def _sheet(tiles: list[Image.Image]) -> Image.Image:
    """The tiles in rows of eight."""
    rows = -(-len(tiles) // 8)
    sheet = Image.new("RGB", (8 * TILE, max(1, rows) * TILE), "white")
    for i, tile in enumerate(tiles):
        sheet.paste(tile, (i % 8 * TILE, i // 8 * TILE))
    return sheet
