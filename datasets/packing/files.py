"""Image files on disk -> planned shards: a folder of class folders, or a CSV of paths."""

import csv
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from datasets.errors import DataError
from datasets.images.decode import IMAGE_EXTENSIONS
from datasets.loading.stream import Sample
from datasets.order import random_words
from datasets.packing.pack import ShardPlan

TAR_OVERHEAD_BYTES = 2560  # two headers, a label's block and half a block of padding twice
_SHUFFLE = 17  # the Philox stream of the packing order


@dataclass(frozen=True, slots=True)
class ImageFile:
    """One image on disk and its class."""

    key: str
    path: Path
    label: int


def list_images(source: Path) -> tuple[list[ImageFile], tuple[str, ...]]:
    """(images, class names) of a folder of class folders or of a CSV; sorted, so that the same
    files give the same shards.

    A CSV has the columns path (relative to the CSV) and label. Classes are the sorted folder
    names or labels. Raises DataError: nothing there, no class folder, no image, a missing file or
    column.
    """
    if source.is_dir():
        rows = [
            (path, path.relative_to(source).parts[0])
            for path in sorted(source.rglob("*"))
            if path.is_file() and _extension(path) in IMAGE_EXTENSIONS
            if len(path.relative_to(source).parts) > 1
        ]
        rule = f"a folder holds a folder a class with .{', .'.join(IMAGE_EXTENSIONS)} files"
    elif source.suffix == ".csv" and source.is_file():
        rows = _csv_rows(source)
        rule = "a CSV has the columns path and label and a row an image"
    else:
        raise DataError(
            f"{source}: got {'a file' if source.exists() else 'nothing there'}; a source is a "
            "folder of class folders, or a .csv with the columns path and label. Name one."
        )
    if not rows:
        raise DataError(f"{source}: got no images; {rule}. Check the path.")
    classes = tuple(sorted({label for _, label in rows}))
    number = {label: i for i, label in enumerate(classes)}
    taken: set[str] = set()
    images = []
    for path, label in rows:
        # A key ends at its first dot by webdataset's rule, and names one sample.
        key = f"{label}/{path.stem}".replace(".", "_")
        if key in taken:
            key = f"{key}-{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
        taken.add(key)
        images.append(ImageFile(key, path, number[label]))
    return images, classes


def plan_shards(images: Sequence[ImageFile], *, shard_bytes: int, seed: int) -> list[ShardPlan]:
    """Shards of about `shard_bytes`, the images shuffled by `seed`: classes mix in each shard.

    Raises DataError for a file that vanished.
    """
    words = random_words(seed, _SHUFFLE, 0, 0, 0, len(images))
    plans: list[ShardPlan] = []
    group: list[ImageFile] = []
    digest, size = hashlib.sha256(), 0
    for index in np.argsort(words, kind="stable").tolist():
        image = images[index]
        try:
            status = image.path.stat()
        except OSError as error:
            raise DataError(
                f"{image.path}: got {error.strerror}; every listed image must be readable. "
                "Mend the file or take it out."
            ) from error
        needed = status.st_size + TAR_OVERHEAD_BYTES
        if group and size + needed > shard_bytes:
            plans.append(_plan(group, digest.hexdigest()))
            group, digest, size = [], hashlib.sha256(), 0
        group.append(image)
        size += needed
        digest.update(
            f"{image.key}\0{image.label}\0{status.st_size}\0{status.st_mtime_ns}\0".encode()
        )
    plans.append(_plan(group, digest.hexdigest()))
    return plans


def _plan(group: list[ImageFile], digest: str) -> ShardPlan:
    return ShardPlan(
        keys=tuple(image.key for image in group), digest=digest, make=partial(_read, tuple(group))
    )


def _read(group: tuple[ImageFile, ...]) -> list[Sample]:
    try:
        return [
            {
                "__key__": image.key,
                _extension(image.path): image.path.read_bytes(),
                "cls": str(image.label).encode(),
            }
            for image in group
        ]
    except OSError as error:
        raise DataError(
            f"{error.filename}: got {error.strerror}; every listed image must be readable. "
            "Mend the file or take it out."
        ) from error


def _csv_rows(source: Path) -> list[tuple[Path, str]]:
    with source.open(newline="") as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or []
        if not {"path", "label"} <= set(columns):
            raise DataError(
                f"{source}: got the columns {', '.join(columns) or 'none'}; a CSV has path and "
                "label. Name them so in its first line."
            )
        rows = [((source.parent / row["path"]), row["label"]) for row in reader]
    for path, label in rows:
        if not label or not path.is_file() or _extension(path) not in IMAGE_EXTENSIONS:
            raise DataError(
                f"{source}: got {str(path)!r} with label {label!r}; a row names an image file "
                "that is there and its label. Mend the row."
            )
    return rows


def _extension(path: Path) -> str:
    return path.suffix.lower().lstrip(".")
