"""Image files on disk -> planned shards: a folder of class folders, or a CSV of paths."""

import csv
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from os import stat_result
from pathlib import Path

from datasets.errors import DataError
from datasets.images.decode import IMAGE_EXTENSIONS
from datasets.loading.stream import Sample
from datasets.order import permutation
from datasets.packing.pack import ShardPlan, group_by_bytes

TAR_OVERHEAD_BYTES = 2560  # two headers, a label's block and twice half a block of padding
_SHUFFLE = 17  # Philox stream of the packing order


@dataclass(frozen=True, slots=True)
class ImageFile:
    """One image on disk and its class number."""

    key: str
    path: Path
    label: int


def list_images(source: Path) -> tuple[list[ImageFile], tuple[str, ...]]:
    """(images, class names) of a folder of class folders or of a CSV, in an order that depends on
    nothing else.

    A CSV has the columns path (relative to the CSV) and label. Classes are the sorted folder names
    or labels. Raises DataError for a missing source, class folder, image, file or column.
    """
    if source.is_dir():
        rows = [
            (path, path.relative_to(source).parts[0])
            for path in sorted(source.rglob("*"))
            if path.is_file() and _extension(path) in IMAGE_EXTENSIONS
            if len(path.relative_to(source).parts) > 1
            if not any(part.startswith(".") for part in path.relative_to(source).parts)  # hidden
        ]
        rule = f"a source has a folder per class, with .{', .'.join(IMAGE_EXTENSIONS)} files"
    elif source.suffix == ".csv" and source.is_file():
        rows = _csv_rows(source)
        rule = "a CSV has the columns path and label and a row per image"
    else:
        raise DataError(
            f"{source}: got {'a file' if source.exists() else 'nothing there'}; a source is a "
            "folder of class folders, or a .csv with the columns path and label. Name one."
        )
    if not rows:
        raise DataError(f"{source}: got no images; {rule}. Check the path.")
    classes = tuple(sorted({label for _, label in rows}))
    numbers = {label: number for number, label in enumerate(classes)}
    keys: set[str] = set()
    images = []
    for path, label in rows:
        # By webdataset's rule a key ends at its first dot.
        key = f"{label}/{path.stem}".replace(".", "_")
        if key in keys:
            key = f"{key}-{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
        keys.add(key)
        images.append(ImageFile(key, path, numbers[label]))
    return images, classes


def plan_shards(images: Sequence[ImageFile], *, shard_bytes: int, seed: int) -> list[ShardPlan]:
    """Shards of about `shard_bytes`, the images shuffled by `seed`, so that each mixes classes.

    Raises DataError for a file that has vanished.
    """

    def shuffled() -> Iterator[tuple[tuple[ImageFile, stat_result], int]]:
        for index in permutation(seed, _SHUFFLE, 0, 0, 0, len(images)).tolist():
            image = images[index]
            try:
                status = image.path.stat()
            except OSError as error:
                raise _unreadable(image.path, error) from error
            yield (image, status), status.st_size + TAR_OVERHEAD_BYTES

    return [_plan(group) for group in group_by_bytes(shuffled(), shard_bytes)]


def _plan(group: list[tuple[ImageFile, stat_result]]) -> ShardPlan:
    digest = hashlib.sha256()
    for image, status in group:
        digest.update(
            f"{image.key}\0{image.label}\0{status.st_size}\0{status.st_mtime_ns}\0".encode()
        )
    images = tuple(image for image, _ in group)
    return ShardPlan(
        keys=tuple(image.key for image in images),
        digest=digest.hexdigest(),
        make=partial(_read, images),
    )


def _read(images: tuple[ImageFile, ...]) -> list[Sample]:
    try:
        return [
            {
                "__key__": image.key,
                _extension(image.path): image.path.read_bytes(),
                "cls": str(image.label).encode(),
            }
            for image in images
        ]
    except OSError as error:
        raise _unreadable(error.filename, error) from error


def _unreadable(path: Path | str, error: OSError) -> DataError:
    return DataError(
        f"{path}: got {error.strerror}; every listed image must be readable. "
        "Fix the file or take it out."
    )


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
                f"{source}: got {str(path)!r} with label {label!r}; a row names an existing "
                "image file and its label. Fix the row."
            )
    return rows


def _extension(path: Path) -> str:
    return path.suffix.lower().lstrip(".")
