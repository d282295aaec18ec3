"""What a split contains, and whether it is intact."""

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
from datasets.loading.stream import Sample, check_bytes, fetch_run, split_samples
from datasets.order import permutation
from datasets.shards.manifest import Manifest
from datasets.storage.store import Store

_CHOICE = 18  # Philox stream of the inspected samples
TILE = 96  # pixels
SHEET_COLUMNS, SHEET_TILES = 8, 64


@dataclass(frozen=True, slots=True)
class Damage:
    """key: of the damaged sample; None if it is the whole shard. message: for the user."""

    shard: str
    key: str | None
    message: str


@dataclass(frozen=True, slots=True)
class Contents:
    """A split's contents; sizes and classes are those of the `looked_at` samples inspected."""

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
    """Reads every byte of a split, decodes every sample and compares it with its checksum, if there
    are some; -> the damages, in shard order.

    Raises StoreError.
    """

    def check(shard: int) -> list[Damage]:
        damages = list(_check_shard(store, manifest, shard))
        on_shard()
        return damages

    with ThreadPoolExecutor(threads, thread_name_prefix="verify") as pool:
        by_shard = pool.map(check, range(len(manifest.shards)))
        return [damage for damages in by_shard for damage in damages]


def inspect(store: Store, manifest: Manifest, *, look_at: int) -> Contents:
    """Decodes `look_at` samples from all over the split; 64 of them are on the contact sheet.

    Raises DataError for a damaged one, StoreError.
    """
    order = permutation(0, _CHOICE, 0, 0, 0, manifest.num_samples)
    sizes: list[tuple[int, int]] = []
    labels: Counter[int] = Counter()
    tiles: list[Image.Image] = []
    for shard, number in manifest.samples_at(np.sort(order[:look_at])).tolist():
        image, label = read_sample(store, manifest, shard, number)
        labels[label] += 1
        sizes.append((image.shape[0], image.shape[1]))
        if len(tiles) < SHEET_TILES:
            square = Image.fromarray(center_square(image))
            tiles.append(square.resize((TILE, TILE), Image.Resampling.LANCZOS))
    by_area = sorted(sizes, key=lambda size: size[0] * size[1])
    return Contents(
        num_samples=manifest.num_samples,
        num_shards=len(manifest.shards),
        size_bytes=manifest.size_bytes,
        looked_at=len(sizes),
        by_class={manifest.classes[label]: count for label, count in sorted(labels.items())},
        median_size=by_area[len(by_area) // 2],
        largest_size=by_area[-1],
        sheet=_contact_sheet(tiles),
    )


def read_sample(
    store: Store, manifest: Manifest, shard: int, number: int
) -> tuple[NDArray[np.uint8], int]:
    """(image (H, W, 3), class number) of one sample. Raises DataError if it is damaged,
    StoreError."""
    sample = fetch_run(store, manifest, (shard, number, 1)).sample(number)
    if "__damage__" in sample:
        raise sample["__damage__"]
    return _decode(sample, manifest)


def center_square(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The largest square in the middle."""
    top, left, side, _ = center_box(image.shape[0], image.shape[1], 1.0)
    return image[top : top + side, left : left + side]


def _decode(sample: Sample, manifest: Manifest) -> tuple[NDArray[np.uint8], int]:
    where = f"{sample['__url__']}:{sample['__key__']}"
    return decode_image(find_image(sample, where), where), manifest.class_of(sample, where)


def _check_shard(store: Store, manifest: Manifest, number: int) -> Iterator[Damage]:
    shard, url = manifest.shards[number], manifest.shard_url(number)
    try:
        content = store.read(url)
        is_changed = shard.sha256 not in (None, hashlib.sha256(content).hexdigest())
        if is_changed or len(content) != shard.size_bytes:
            yield Damage(
                shard.name,
                None,
                f"{url}: got {len(content)} bytes with another checksum or size than its index; "
                f"{shard.size_bytes} were indexed. Upload the shard again.",
            )
        count = 0
        view = memoryview(content)
        for _, sample in split_samples(view, url):
            try:
                _decode(sample, manifest)
                if shard.checksums is not None and count < shard.num_samples:
                    start, length = shard.byte_range(count, 1)
                    where = f"{url}:{sample['__key__']}"
                    check_bytes(view[start : start + length], int(shard.checksums[count]), where)
            except DataError as error:
                yield Damage(shard.name, sample["__key__"], str(error))
            count += 1
        if count != shard.num_samples:
            yield Damage(
                shard.name,
                None,
                f"{url}: got {count} samples; its index says {shard.num_samples}. "
                "Upload the shard again, or index the split again.",
            )
    except DataError as error:
        yield Damage(shard.name, None, str(error))


def _contact_sheet(tiles: list[Image.Image]) -> Image.Image:
    rows = max(1, -(-len(tiles) // SHEET_COLUMNS))
    sheet = Image.new("RGB", (SHEET_COLUMNS * TILE, rows * TILE), "white")
    for i, tile in enumerate(tiles):
        sheet.paste(tile, (i % SHEET_COLUMNS * TILE, i // SHEET_COLUMNS * TILE))
    return sheet
