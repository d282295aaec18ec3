"""Images of every mode become RGB, damage is one line, crops depend on the sample alone."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from datasets.errors import DataError
from datasets.images import decode
from datasets.images.augment import Augment, center_box, crop_box, draw, is_mirrored, resize_into
from datasets.images.decode import decode_image


def encoded(image: Image.Image, format_: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


GREY = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8) * 5)


@pytest.mark.parametrize(
    ("image", "format_"),
    [
        (GREY, "PNG"),
        (GREY.convert("RGB"), "PNG"),
        (GREY.convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE), "PNG"),
        (Image.merge("LA", [GREY, Image.new("L", GREY.size, 255)]), "PNG"),
        (GREY.convert("RGBA"), "WEBP"),
        (GREY.convert("CMYK"), "JPEG"),
        (GREY.convert("RGB"), "JPEG"),
        (Image.fromarray(np.asarray(GREY).astype(np.uint16) << 8), "PNG"),
    ],
    ids=["grey", "rgb", "palette", "alpha", "webp", "cmyk", "jpeg", "16-bit"],
)
def test_every_mode_becomes_rgb(image: Image.Image, format_: str) -> None:
    options: dict[str, object] = {"lossless": True} if format_ == "WEBP" else {"quality": 100}
    decoded = decode_image(encoded(image, format_, **options), "x")
    assert decoded.shape == (6, 8, 3)
    assert decoded.dtype == np.uint8
    expected = np.asarray(GREY).astype(int)[..., None]
    assert np.abs(decoded.astype(int) - expected).max() <= (6 if format_ == "JPEG" else 2)


def test_exif_turns_the_image() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    turned = decode_image(encoded(GREY.convert("RGB"), "JPEG", exif=exif), "x")
    assert turned.shape == (8, 6, 3)


@pytest.mark.parametrize("content", [b"", b"not an image", encoded(GREY)[:40]])
def test_damage_is_one_line(content: bytes) -> None:
    with pytest.raises(DataError, match=r"^s\.tar:k: got \d+ bytes that are no whole image"):
        decode_image(content, "s.tar:k")


def test_cut_jpeg_is_damage() -> None:
    content = encoded(Image.effect_noise((300, 300), 80).convert("RGB"), "JPEG")
    with pytest.raises(DataError, match="no whole image"):
        decode_image(content[: len(content) // 2], "x")


def test_decompression_bomb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "MAX_PIXELS", 40)
    with pytest.raises(DataError, match="8 x 6 pixels"):
        decode_image(encoded(GREY), "x")


@given(
    height=st.integers(1, 600), width=st.integers(1, 600), seed=st.integers(0, 99),
    low=st.floats(0.01, 1.0),
)  # fmt: skip
def test_crop_lies_within_the_image(height: int, width: int, seed: int, low: float) -> None:
    numbers = draw(seed, 1, 2, 3, Augment())
    top, left, h, w = crop_box(numbers, height, width, Augment(area=(low, 1.0)))
    assert 0 <= top <= top + h <= height
    assert 0 <= left <= left + w <= width
    assert h >= 1
    assert w >= 1


def test_crop_areas_are_spread_over_the_range() -> None:
    augment = Augment(area=(0.25, 1.0), aspect=(0.8, 1.25))
    shares = []
    for sample in range(500):
        _, _, h, w = crop_box(draw(0, 0, 0, sample, augment), 300, 400, augment)
        shares.append(h * w / 120_000)
        assert 0.78 < w / h < 1.35
    assert 0.24 < min(shares) < 0.3
    assert 0.8 < max(shares) <= 1.0
    assert 0.5 < float(np.mean(shares)) < 0.7


def test_numbers_depend_on_the_sample_alone_and_new_ones_move_none() -> None:
    plain = draw(1, 2, 3, 4, Augment())
    torch.manual_seed(9)
    assert plain == draw(1, 2, 3, 4, Augment())
    assert plain != draw(1, 3, 3, 4, Augment())
    for more in (Augment(colour=1.0), Augment(operations=3), Augment(colour=1.0, operations=3)):
        assert draw(1, 2, 3, 4, more)[: len(plain)] == plain


def test_mirrors_are_drawn_with_the_given_probability() -> None:
    for flip in (0.0, 0.25, 1.0):
        augment = Augment(flip=flip)
        share = np.mean([is_mirrored(draw(0, 0, 0, i, augment), augment) for i in range(800)])
        assert abs(share - flip) < 0.05


def test_resize_is_pils_antialiased_one() -> None:
    image = Image.effect_noise((300, 260), 60).convert("RGB")
    box = center_box(260, 300, 0.875)
    top, left, h, w = box
    target = torch.empty(1, 75, 75, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
    resize_into(target, np.array(image), box)
    ours = target[0].permute(1, 2, 0).numpy().astype(float)
    cropped = image.crop((left, top, left + w, top + h))
    theirs = np.asarray(cropped.resize((75, 75), Image.Resampling.BILINEAR)).astype(float)
    psnr = 10 * np.log10(255**2 / np.mean((ours - theirs) ** 2))
    assert psnr > 50
