"""Image files of the kinds that users of other readers reported: their pixels are right, in whole
and in part, in training and in evaluation; or they are counted and named. pictures.py has them."""

import io
import random
import re
import struct
import warnings
from itertools import islice
from typing import Any

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image

from datasets.errors import ImageError
from datasets.images.augment import Augment, center_box, crop_box, draw, resize_into, resize_views
from datasets.images.decode import decode_crop, decode_image
from datasets.loading.loader import EvalLoader
from datasets.packing.audit import verify
from datasets.packing.pack import pack
from datasets.shards.manifest import Manifest
from datasets.storage.store import Store
from tests.unit.datasets.loaders import order_of, train_loader
from tests.unit.datasets.reports.pictures import (
    BROKEN_EXIF,
    JPEG,
    PHOTO,
    PNG,
    PROGRESSIVE,
    READ,
    REFUSED,
    WEBP,
    Pixels,
    chunk,
    encoded,
    pixels_of,
    with_exif,
)

SIZE = 16
AUGMENT = Augment()


def off(image: Any, expected: Any) -> int:
    """By how much the worst sample of a pixel is off."""
    return int(np.abs(np.asarray(image, dtype=int) - np.asarray(expected, dtype=int)).max())


def test_the_files_are_what_they_are_called() -> None:
    for kind, colours in (("CMYK JPEG", "CMYK"), ("YCCK JPEG", "YCCK")):
        assert simplejpeg.decode_jpeg_header(READ[kind][0])[2] == colours
        assert b"Adobe" in READ[kind][0]
    assert b"\xff\xc9" in READ["arithmetic-coded JPEG"][0]  # SOF9
    assert b"\xff\xc2" in PROGRESSIVE
    assert Image.open(io.BytesIO(READ["MPO"][0])).format == "MPO"
    for kind in ("animated WebP", "animated PNG"):
        assert getattr(Image.open(io.BytesIO(READ[kind][0])), "n_frames", 1) == 2


@pytest.mark.parametrize("kind", READ)
def test_pixels_are_right(kind: str) -> None:
    content, expected, tolerance = READ[kind]
    image = decode_image(content, "x.tar:k")
    assert image.dtype == np.uint8
    assert image.shape == expected.shape
    assert off(image, expected) <= tolerance
    for fraction in (1.0, 0.6):
        height, width = image.shape[:2]
        box = top, left, rows, columns = center_box(height, width, fraction)
        part, place = decode_crop(memoryview(content), lambda h, w, box=box: box, "x.tar:k")  # type: ignore[misc]
        cut = part[place[0] : place[0] + place[2], place[1] : place[1] + place[3]]
        assert np.array_equal(cut, image[top : top + rows, left : left + columns])


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_wrong_is_one_line(kind: str) -> None:
    content, message = REFUSED[kind]
    for decode in (decode_image, lambda c, w: decode_crop(c, lambda h, w: (0, 0, h, w), w)):
        with pytest.raises(ImageError, match=f"^x\\.tar:k: {message}") as caught:
            decode(content, "x.tar:k")
        assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """All kinds, right and wrong ones mixed, each called .jpg."""
    files = {kind: content for kind, (content, *_) in [*READ.items(), *REFUSED.items()]}
    kinds = random.Random(0).sample(sorted(files), len(files))
    samples = [
        {"__key__": kind.replace(".", "_"), "jpg": files[kind], "cls": b"0"} for kind in kinds
    ]
    url = tmp_path_factory.mktemp("pictures").as_uri()
    return pack(samples, Store(), url, classes=["a"], samples_per_shard=17)


RIGHT = {kind.replace(".", "_"): kind for kind in READ}
WRONG = {kind.replace(".", "_"): kind for kind in REFUSED}


def resized(image: Pixels, box: tuple[int, int, int, int]) -> torch.Tensor:
    target = torch.empty(1, SIZE, SIZE, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
    resize_into(target, np.ascontiguousarray(image.astype(np.uint8)), box)
    return target


def assert_named(messages: list[str], total: int) -> None:
    """The wrong ones are counted, and the first of them are named."""
    assert total == len(WRONG)
    for message in messages:
        key = re.match(r"^file:.*\.tar:([^:]+): got", message)
        assert key is not None
        assert key[1] in WRONG


@pytest.mark.parametrize("crops", [1, 12])
def test_an_evaluation_shows_them_and_counts_the_wrong_ones(split: Manifest, crops: int) -> None:
    seen = set()
    with EvalLoader(
        Store(), split, rank=0, world_size=1, batch_size=8, input_size=SIZE, crops=crops,
        threads=2, is_skipping=True,
    ) as loader:  # fmt: skip
        for batch in loader:
            views = len(batch.images) // len(batch.keys)
            for number, key in enumerate(batch.keys):
                images = batch.images[number * views : (number + 1) * views]
                if not float(batch.weights[number]):
                    assert key not in RIGHT
                    assert not images.any()
                    continue
                seen.add(key)
                _, expected, tolerance = READ[RIGHT[key]]
                pixels = np.ascontiguousarray(expected.astype(np.uint8))
                if crops == 1:
                    wanted = resized(pixels, center_box(pixels.shape[0], pixels.shape[1], 0.875))
                else:
                    wanted = torch.empty(views, SIZE, SIZE, 3, dtype=torch.uint8)
                    wanted = wanted.permute(0, 3, 1, 2)
                    resize_views(wanted, pixels, crops=crops, fraction=0.875)
                assert off(images, wanted) <= tolerance + 1, key
    assert seen == set(RIGHT)
    assert_named(loader.damages.first, loader.damages.total)


def test_training_shows_them_and_counts_the_wrong_ones(split: Manifest) -> None:
    order = order_of(split, lanes=1, pieces=2, slices=2)
    count = split.num_samples
    seen = set()
    with train_loader(
        Store(), split, order=order, global_batch_size=count, micro_batch_size=count,
        input_size=SIZE, augment=AUGMENT, threads=2, is_skipping=True,
    ) as loader:  # fmt: skip
        (batches,) = islice(loader, 1)
    for batch in batches:
        for number, key in enumerate(batch.keys):
            if not float(batch.weights[number]):
                assert key not in RIGHT
                continue
            seen.add(key)
            _, expected, tolerance = READ[RIGHT[key]]
            shard, sample = batch.samples[number].tolist()
            numbers = draw(order.seed, 0, shard, sample, AUGMENT)
            box = crop_box(numbers, expected.shape[0], expected.shape[1], AUGMENT)
            assert off(batch.images[number], resized(expected, box)[0]) <= tolerance + 1, key
    assert seen == set(RIGHT)
    assert_named(loader.damages.first, loader.damages.total)


def test_verify_names_each_wrong_one(split: Manifest) -> None:
    """pytorch/pytorch#7238, pytorch/vision#485: which file is it?"""
    damages = verify(Store(), split, threads=2, on_shard=lambda: None)
    assert {damage.key for damage in damages} == set(WRONG)
    for damage in damages:
        assert re.search(REFUSED[WRONG[str(damage.key)]][1], damage.message)


@pytest.mark.parametrize("kind", BROKEN_EXIF)
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_broken_exif_breaks_no_reader(kind: str, form: str) -> None:
    """The reports are in pictures.py; python-pillow/Pillow#5528 is of a PNG. The picture is upright
    or as its EXIF turns it, or the sample is damaged: never another error."""
    exif = BROKEN_EXIF[kind]
    if form == "JPEG":
        content, plain = with_exif(JPEG, exif), pixels_of(JPEG)
    elif form == "PNG":
        content, plain = PNG[:33] + chunk(b"eXIf", exif) + PNG[33:], np.asarray(PHOTO)
    else:
        content, plain = encoded(PHOTO, "WEBP", lossless=True, exif=exif), np.asarray(PHOTO)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = decode_image(content, "x.tar:k")
        except ImageError:
            return
    assert np.array_equal(image, plain) or np.array_equal(image, np.rot90(plain, -1))


def test_exif_of_any_bytes_breaks_no_reader() -> None:
    """python-pillow/Pillow#8965 and its siblings: 600 random blocks of entries."""
    rng = random.Random(5)
    small = encoded(PHOTO.crop((0, 0, 8, 8)), "JPEG")
    small_png = encoded(PHOTO.crop((0, 0, 8, 8)), "PNG")
    tags = (0x0112, 0x010F, 0x011A, 0x8769, 0x8825, 0x927C, 0x014A, 0x0201, 0x02BC)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(600):
            order = rng.choice("<>")
            block = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, 3)
            for _ in range(3):
                kind, count = rng.randrange(14), rng.choice([0, 1, 2, 4, 2**31])
                block += struct.pack(order + "HHI", rng.choice(tags), kind, count)
                block += struct.pack(order + "I", rng.choice([8, 26, 50, 60, rng.getrandbits(32)]))
            block += bytes(4) + rng.randbytes(rng.randrange(40))
            block = block[: rng.choice([len(block), rng.randrange(len(block))])]
            content = with_exif(small, block)
            if number % 2:
                content = small_png[:33] + chunk(b"eXIf", block) + small_png[33:]
            try:
                image = decode_image(content, "x.tar:k")
            except ImageError:
                continue
            assert image.shape == (8, 8, 3)


@pytest.mark.parametrize("content", [JPEG, PROGRESSIVE, PNG, WEBP], ids=["J", "P", "PNG", "WEBP"])
def test_a_cut_image_is_whole_or_damage(content: bytes) -> None:
    """pytorch/vision#138, #2471, microsoft/Biodiversity#605: cut anywhere, no pixel is made up. (A
    PNG without its last chunk has all pixels.)"""
    whole = pixels_of(content)
    refused = 0
    for length in [*range(8, len(content), 37), *range(len(content) - 40, len(content))]:
        try:
            assert np.array_equal(decode_image(content[:length], "x"), whole), length
        except ImageError:
            refused += 1
    assert refused > 20


def test_a_progressive_jpeg_without_its_last_scans_is_coarse() -> None:
    """libjpeg-turbo/libjpeg-turbo#456: such a file is a whole JPEG, of fewer details. Its blocks
    are smoothed, at a crop's border a little differently."""
    scans = [match.start() for match in re.finditer(b"\xff\xda", PROGRESSIVE)]
    content = PROGRESSIVE[: scans[2]] + b"\xff\xd9"
    image = decode_image(content, "x")
    assert off(image, PHOTO) < 60
    part, place = decode_crop(content, lambda h, w: (8, 9, 24, 31), "x")
    cut = part[place[0] : place[0] + place[2], place[1] : place[1] + place[3]]
    assert off(cut, image[8:32, 9:40]) <= 4
