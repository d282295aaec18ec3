"""Pixels: a region's are the whole image's, the resize is PIL's, colours are TensorFlow's, mirrors
and RandAugment's operations do what they are called."""

import colorsys
import io
import random
from typing import Any

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image

from datasets.errors import ImageError
from datasets.images import region
from datasets.images.augment import Augment, colour_of, crop_box, draw, resize_into
from datasets.images.decode import decode_crop
from datasets.images.randaugment import NAMES, rand_augment
from datasets.loading.batch import empty_buffer
from datasets.loading.device import ORDERS, distort_colours, to_device


@pytest.fixture(scope="module")
def photographs() -> list[Image.Image]:
    from sklearn.datasets import load_sample_images

    return [Image.fromarray(image) for image in load_sample_images().images]


def jpeg(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


@pytest.mark.skipif(not region.has_regions(), reason="no libjpeg-turbo 3 for this platform")
@pytest.mark.parametrize("subsampling", [0, 1, 2, "grey"])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_region_is_bit_for_bit_the_whole_images(
    photographs: list[Image.Image], subsampling: Any, progressive: bool
) -> None:
    rng = random.Random(str((subsampling, progressive)))
    for number in range(120):
        width, height = rng.randint(1, 300), rng.randint(1, 300)
        image = photographs[number % 2].crop((50, 50, 50 + width, 50 + height))
        options: dict[str, Any] = {"quality": rng.randint(30, 97), "progressive": progressive}
        if subsampling == "grey":
            image = image.convert("L")
        else:
            options["subsampling"] = subsampling
        if rng.random() < 0.3:
            options["restart_marker_blocks"] = rng.randint(1, 5)
        content = jpeg(image, **options)
        top, left = rng.randrange(height), rng.randrange(width)
        box = top, left, rng.randint(1, height - top), rng.randint(1, width - left)
        part = region.decode_region(content, lambda h, w, box=box: box, 10**8)  # type: ignore[misc]
        assert part is not None
        whole = simplejpeg.decode_jpeg(content, "RGB", False, False)
        assert np.array_equal(part, whole[top : top + box[2], left : left + box[3]])


def test_without_the_library_pixels_are_the_same(
    photographs: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = jpeg(photographs[0], quality=93)
    box = 31, 57, 200, 333
    views = []
    for has_library in (True, False):
        if not has_library:
            monkeypatch.setattr(region, "has_regions", lambda: False)
        target = torch.empty(1, 120, 120, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
        image, place = decode_crop(content, lambda h, w: box, "x")
        resize_into(target, image, place)
        views.append(target)
    assert torch.equal(*views)


def test_a_region_is_as_strict_as_the_whole(photographs: list[Image.Image]) -> None:
    """Damage down to the crop's last row and a missing end are refused, wherever the crop is."""
    content = jpeg(photographs[1], quality=90)
    box = 300, 10, 100, 100
    for change in (content[: len(content) - 2], content[: len(content) // 2]):
        with pytest.raises(ImageError, match="no whole image"):
            decode_crop(change, lambda h, w: box, "x")
    damaged = bytearray(content)
    damaged[len(content) // 3 : len(content) // 3 + 40] = b"\xff\xc4" * 20
    with pytest.raises(ImageError, match="no whole image"):
        decode_crop(bytes(damaged), lambda h, w: box, "x")
    padded = content + bytes(100)  # some files are
    image, place = decode_crop(padded, lambda h, w: box, "x")
    assert place[2:] == (100, 100)
    assert image.shape[2] == 3


def test_views_are_pils_within_50_db(photographs: list[Image.Image]) -> None:
    """Decode, crop and resize of 60 crops against PIL's own, antialiased."""
    ratios = []
    augment = Augment()
    for number in range(60):
        content = jpeg(photographs[number % 2], quality=90 + number % 8)
        reference = Image.open(io.BytesIO(content)).convert("RGB")
        numbers = draw(0, 0, 0, number, augment)
        box = crop_box(numbers, reference.height, reference.width, augment)
        target = torch.empty(1, 299, 299, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
        resize_into(target, *decode_crop(content, lambda h, w, box=box: box, "x"))  # type: ignore[misc]
        top, left, height, width = box
        theirs = reference.crop((left, top, left + width, top + height)).resize(
            (299, 299), Image.Resampling.BILINEAR
        )
        ours = target[0].permute(1, 2, 0).numpy().astype(float)
        error = np.mean((ours - np.asarray(theirs).astype(float)) ** 2)
        ratios.append(10 * np.log10(255**2 / max(error, 1e-3)))
    assert np.mean(ratios) > 50
    assert min(ratios) > 45


def batch_of(image: Image.Image, count: int, augment: Augment) -> Any:
    buffer = empty_buffer(count, 32, has_colours=bool(augment.colour))
    for row in range(count):
        small = np.asarray(image.resize((32, 32)))
        buffer.images[row] = torch.from_numpy(np.array(small)).permute(2, 0, 1)
        buffer.weights[row] = 1
        buffer.mirrored[row] = row % 2 == 0
        if buffer.colours is not None:
            buffer.colours[row] = colour_of(draw(0, 0, 0, row, augment), augment)
    return buffer.micro_batches([0], count)[0]


def test_the_device_mirrors_the_chosen_samples(photographs: list[Image.Image]) -> None:
    batch = batch_of(photographs[0], 6, Augment())
    moved = to_device(batch, torch.device("cpu"))
    assert moved.images.dtype == torch.uint8
    assert moved.images.is_contiguous(memory_format=torch.channels_last)
    for row in range(6):
        expected = batch.images[row].flip(-1) if row % 2 == 0 else batch.images[row]
        assert torch.equal(moved.images[row], expected)


def reference_colours(image: torch.Tensor, colour: list[float]) -> torch.Tensor:
    """TensorFlow's adjust_* on one image in 0..1, pixel by pixel with Python's own colorsys."""
    brightness, saturation, hue, contrast, order = colour
    pixels = image.permute(1, 2, 0).numpy().astype(np.float64) / 255
    for kind in ORDERS[int(order)]:
        if kind == 0:
            pixels = pixels + brightness
        elif kind == 3:
            mean = pixels.mean((0, 1), keepdims=True)
            pixels = (pixels - mean) * contrast + mean
        else:
            for place in np.ndindex(pixels.shape[:2]):
                h, s, v = colorsys.rgb_to_hsv(*pixels[place])
                if kind == 1:
                    s = min(max(s * saturation, 0.0), 1.0)
                else:
                    h = (h + hue) % 1.0
                pixels[place] = colorsys.hsv_to_rgb(h, s, v)
    return torch.from_numpy(pixels.clip(0, 1) * 2 - 1).permute(2, 0, 1)


def test_colours_are_tensorflows(photographs: list[Image.Image]) -> None:
    """With values that stay in 0..1 before a hue or saturation: beyond it, colorsys and TensorFlow
    differ."""
    augment = Augment(colour=0.3)
    image = Image.fromarray((np.asarray(photographs[1]) // 2 + 64).astype(np.uint8))
    batch = batch_of(image, 16, augment)
    assert batch.colours is not None
    distorted = distort_colours(batch.images, batch.colours)
    assert distorted.dtype == torch.float32
    assert len(set(batch.colours[:, 4].tolist())) == 4  # every order among them
    for row in range(16):
        expected = reference_colours(batch.images[row], batch.colours[row].tolist())
        assert float((distorted[row] - expected).abs().max()) < 2e-5


def test_no_colour_is_no_change_and_full_strength_stays_in_range(
    photographs: list[Image.Image],
) -> None:
    batch = batch_of(photographs[0], 8, Augment(colour=1.0))
    assert batch.colours is not None
    neutral = torch.tensor([[0.0, 1.0, 0.0, 1.0, 3.0]]).repeat(8, 1)
    plain = batch.images.float() / 127.5 - 1
    assert float((distort_colours(batch.images, neutral) - plain).abs().max()) < 1e-5
    strong = distort_colours(batch.images, batch.colours)
    assert float(strong.min()) >= -1
    assert float(strong.max()) <= 1
    assert float((strong - plain).abs().mean()) > 0.02


def test_damaged_rows_stay_black_and_weightless() -> None:
    buffer = empty_buffer(2, 8, has_colours=True)
    buffer.images[0] = 200
    buffer.weights[0] = 1
    buffer.blank(1)
    moved = to_device(buffer.micro_batches([0], 2)[0], torch.device("cpu"))
    assert moved.weights.tolist() == [1, 0]
    assert bool((moved.images[1] == -1).all())


def after(image: torch.Tensor, name: str, direction: float, magnitude: float) -> torch.Tensor:
    which = (NAMES.index(name) + 0.5) / len(NAMES)
    copy = image.clone(memory_format=torch.preserve_format)
    rand_augment(copy, [0.0] * 46 + [which, direction], operations=1, magnitude=magnitude)
    return copy


@pytest.mark.parametrize("name", NAMES)
def test_rand_augments_operations(photographs: list[Image.Image], name: str) -> None:
    pixels = np.array(photographs[0].resize((60, 60)))
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    strong = after(image, name, 0.2, 9.0)
    assert torch.equal(strong, after(image, name, 0.2, 9.0))
    assert strong.shape == image.shape
    ignores_magnitude = name in ("identity", "autocontrast", "equalize")
    assert torch.equal(after(image, name, 0.2, 0.0), image) or ignores_magnitude
    if name != "identity":
        assert not torch.equal(strong, image) or name == "autocontrast"
    if name in ("rotate", "shear_x", "shear_y", "translate_x", "translate_y", "brightness"):
        assert not torch.equal(strong, after(image, name, 0.8, 9.0))  # the other direction
    if name == "translate_x":
        moved = after(image, name, 0.2, 33.1 / 9)[:, :, :50]  # by ten pixels
        assert int((moved.int() - image[:, :, 10:].int()).abs().max()) <= 1


def test_rand_augment_draws_every_operation_equally_often() -> None:
    augment = Augment(operations=2)
    counts = [0] * len(NAMES)
    for sample in range(2000):
        numbers = draw(0, 0, 0, sample, augment)
        assert len(numbers) == 50
        for i in range(2):
            counts[int(numbers[46 + 2 * i] * len(NAMES))] += 1
    assert min(counts) > 0.8 * 4000 / len(NAMES)
