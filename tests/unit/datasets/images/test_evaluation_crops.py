"""The crops of an evaluation: GoogLeNet's protocol, computed by hand and on real pixels."""

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from datasets.images.augment import evaluation_boxes
from datasets.images.region import Box
from datasets.loading.loader import EvalLoader
from datasets.packing.pack import pack
from datasets.storage.store import Store


def boxes(height: int, width: int, crops: int, size: int = 299) -> list[Box]:
    return evaluation_boxes(height, width, crops=crops, fraction=0.875, input_size=size)


def test_twelve_are_one_squares_corners_centre_and_whole() -> None:
    """Shorter side 342 = 256 / 224 x 299: the image needs no scaling."""
    left = (500 - 342) // 2
    assert boxes(342, 500, 12) == [
        (0, left, 299, 299),
        (0, left + 43, 299, 299),
        (43, left, 299, 299),
        (43, left + 43, 299, 299),
        (21, left + 21, 299, 299),
        (0, left, 342, 342),
    ]


def test_144_are_four_scales_by_three_squares() -> None:
    wide = boxes(470, 700, 144)
    assert len(wide) == 72  # mirrored on the device
    # 299 of 342, 385, 428 and 470 pixels of a shorter side, and the square.
    assert sorted({side for _, _, side, _ in wide}) == [
        299, round(470 * 299 / 428), round(470 * 299 / 385), round(470 * 299 / 342), 470,
    ]  # fmt: skip
    assert sorted({left for _, left, side, _ in wide if side == 470}) == [0, 115, 230]
    tall = boxes(700, 470, 144)
    assert sorted((left, top, h, w) for top, left, h, w in wide) == sorted(tall)


def test_scales_of_a_224_network_are_the_papers() -> None:
    assert sorted({side for _, _, side, _ in boxes(352, 352, 144, size=224)}) == [
        224, round(352 * 224 / 320), round(352 * 224 / 288), round(352 * 224 / 256), 352,
    ]  # fmt: skip


@given(st.integers(1, 600), st.integers(1, 600), st.sampled_from([1, 12, 144]))
def test_every_crop_lies_in_the_image(height: int, width: int, crops: int) -> None:
    crop_boxes = boxes(height, width, crops)
    assert len(crop_boxes) == max(1, crops // 2)
    for top, left, rows, columns in crop_boxes:
        assert rows == columns >= 1
        assert 0 <= top <= top + rows <= height
        assert 0 <= left <= left + columns <= width


@pytest.mark.parametrize(("crops", "views"), [(1, 1), (12, 6), (144, 72)])
def test_the_loader_gives_each_sample_its_views(tmp_path: Path, crops: int, views: int) -> None:
    samples = []
    for number in range(5):
        content = io.BytesIO()
        Image.fromarray(np.full((40, 64, 3), 40 * number, dtype=np.uint8)).save(content, "PNG")
        label = str(number % 2).encode()
        samples.append({"__key__": f"image-{number}", "png": content.getvalue(), "cls": label})
    store = Store()
    manifest = pack(samples, store, tmp_path.as_uri(), classes=("a", "b"), samples_per_shard=3)
    with EvalLoader(
        store, manifest, rank=0, world_size=1, batch_size=3, input_size=16, crops=crops
    ) as loader:
        batches = list(loader)
    assert [len(batch.targets) for batch in batches] == [3, 3]
    assert [len(batch.images) for batch in batches] == [3 * views, 3 * views]
    assert batches[1].keys == ("image-3", "image-4", "")
    for number, batch in enumerate(batches):
        for row in range(3):
            images = batch.images[row * views : (row + 1) * views]
            value = 40 * (3 * number + row) if float(batch.weights[row]) else 0
            assert bool((images == value).all())
