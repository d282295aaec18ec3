"""What others do with the same images: webdataset, torch's folders, timm's reader, MosaicML's
streaming. Each gives batches of 64 float tensors by the usual transforms on PIL images.

timm and streaming are imported without their packages' own `__init__`, which want torchvision
and transformers: only their readers are measured.
"""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset as wds
from PIL import Image
from torch.utils.data import DataLoader, Dataset, default_collate

from datasets.images.augment import Augment, crop_box, draw, is_mirrored
from datasets.shards.manifest import Manifest
from tests.bench.bare_import import without_init

PIXELS, BATCH = 299, 64
AUGMENT = Augment()


def usual_transform(image: Image.Image, number: int) -> torch.Tensor:
    """What the usual transforms do: crop and resize in PIL, flip, float tensor, normalise."""
    numbers = draw(0, 0, 0, number, AUGMENT)
    top, left, height, width = crop_box(numbers, image.height, image.width, AUGMENT)
    image = image.resize(
        (PIXELS, PIXELS), Image.Resampling.BILINEAR, box=(left, top, left + width, top + height)
    )
    if is_mirrored(numbers, AUGMENT):
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    array = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
    return (array.float() / 255 - 0.5) / 0.5


def webdataset_pil(manifest: Manifest) -> int:
    urls = [manifest.shard_url(i).removeprefix("file://") for i in range(len(manifest.shards))]
    numbers = iter(range(10**9))
    pipeline = (
        wds.WebDataset(urls, shardshuffle=len(urls))
        .shuffle(200)
        .decode("pil")
        .to_tuple("jpg", "cls")
        .map_tuple(lambda image: usual_transform(image, next(numbers)), lambda label: label)
        .batched(BATCH, collation_fn=default_collate)
    )
    return sum(len(labels) for _, labels in pipeline)


class _Folder(Dataset[tuple[torch.Tensor, int]]):
    """Files read one by one, as torch's image folders do."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        with Image.open(self.paths[index]) as image:
            return usual_transform(image.convert("RGB"), index), index


def folder_pil(paths: list[Path]) -> int:
    return sum(len(labels) for _, labels in DataLoader(_Folder(paths), BATCH, shuffle=True))


def timm_wds(manifest: Manifest) -> int:
    without_init("timm", "timm.data", "timm.data.readers")
    from timm.data.readers.reader_wds import ReaderWds

    logging.getLogger("timm").setLevel(logging.ERROR)  # it misses an info file that we do not write
    folder = manifest.url.removeprefix("file://")
    names = f"shard-{{000000..{len(manifest.shards) - 1:06d}}}.tar|{manifest.num_samples}"
    reader = ReaderWds(
        folder, split=names, is_training=True, num_samples=manifest.num_samples, batch_size=BATCH,
        sample_shuffle_size=200, sample_initial_size=100,
    )  # fmt: skip
    rows = (usual_transform(image, i) for i, (image, _) in enumerate(reader))
    return _count_batches(rows)


class MosaicStreaming:
    """Its own format, written once; read as its own documentation does."""

    def __init__(self, folder: Path, images: list[bytes]) -> None:
        without_init("streaming", "streaming.base")
        from streaming.base.format.mds.writer import MDSWriter

        self.folder = folder
        with MDSWriter(out=str(folder), columns={"jpg": "bytes", "cls": "int"}) as writer:
            for content in images:
                writer.write({"jpg": content, "cls": 0})

    def __call__(self) -> int:
        import io

        from streaming.base.dataset import StreamingDataset

        dataset = StreamingDataset(local=str(self.folder), shuffle=True, batch_size=BATCH)
        rows = (
            usual_transform(Image.open(io.BytesIO(row["jpg"])).convert("RGB"), i)
            for i, row in enumerate(dataset)
        )
        return _count_batches(rows)


def _count_batches(rows: Iterable[Any]) -> int:
    count = 0
    batch = []
    for row in rows:
        batch.append(row)
        if len(batch) == BATCH:
            count += len(default_collate(batch))
            batch = []
    return count + len(batch)
