"""Reads broken archives, images and labels; a process of its own, which may crash or hang.

python -m tests.unit.datasets.fuzz COUNT SEED     -> counts of the outcomes, as JSON
"""

import io
import json
import random
import sys
import tarfile
from collections import Counter

import numpy as np
from PIL import Image

from datasets.errors import DataError
from datasets.images.decode import decode_crop, decode_image
from datasets.loading.stream import split_samples
from datasets.shards.labels import find_rule


def tars(rng: random.Random) -> list[bytes]:
    """Small intact archives of every dialect."""
    archives = []
    for format_ in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=format_) as tar:
            for number in range(4):
                long = "d/" * 60 if format_ != tarfile.USTAR_FORMAT else ""
                for extension in ("jpg", "cls", "json"):
                    info = tarfile.TarInfo(f"{long}{number:03d}.{extension}")
                    info.size = rng.randrange(900)
                    tar.addfile(info, io.BytesIO(rng.randbytes(info.size)))
        archives.append(buffer.getvalue())
    return archives


def images(rng: random.Random) -> list[bytes]:
    """Small intact images of every format and many modes."""
    base = np.random.default_rng(rng.randrange(99)).normal(120, 40, (37, 53, 3)).clip(0, 255)
    rgb = Image.fromarray(base.astype(np.uint8))
    contents = []
    for mode, format_, options in (
        ("RGB", "JPEG", {"quality": 90}),
        ("RGB", "JPEG", {"quality": 60, "subsampling": 2, "progressive": True}),
        ("RGB", "JPEG", {"quality": 80, "subsampling": 1, "restart_marker_blocks": 2}),
        ("L", "JPEG", {}),
        ("CMYK", "JPEG", {}),
        ("RGB", "PNG", {}),
        ("P", "PNG", {}),
        ("RGBA", "PNG", {}),
        ("RGB", "WEBP", {}),
        ("RGBA", "WEBP", {"lossless": True}),
    ):
        buffer = io.BytesIO()
        rgb.convert(mode).save(buffer, format_, **options)
        contents.append(buffer.getvalue())
    exif = Image.Exif()
    exif[0x0112] = 8
    buffer = io.BytesIO()
    rgb.save(buffer, "JPEG", exif=exif)
    return [*contents, buffer.getvalue()]


def broken(content: bytes, rng: random.Random) -> bytes:
    """A few random changes: bits, bytes, runs, truncation, insertions, extreme numbers."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data)) if data else 0
        kind = rng.randrange(7)
        if kind == 0 and data:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and data:
            data[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFE, 0xFF])
        elif kind == 2:
            data[at : at + rng.randrange(1, 64)] = rng.randbytes(rng.randrange(64))
        elif kind == 3:
            del data[at:]
        elif kind == 4:
            data[at:at] = rng.randbytes(rng.randrange(1, 600))
        elif kind == 5:
            data[at : at + 12] = rng.choice([b"\xff" * 12, b"7" * 12, b"\0" * 12, b"-1 " * 4])
        else:
            data = data[at:] + data[:at]
    return bytes(data)


def main(count: int, seed: int) -> None:
    rng = random.Random(seed)
    Image.MAX_IMAGE_PIXELS = 10**7  # no huge allocations here
    archives, pictures = tars(rng), images(rng)
    outcomes: Counter[str] = Counter()

    def some_crop(height: int, width: int) -> tuple[int, int, int, int]:
        top, left = rng.randrange(height), rng.randrange(width)
        return top, left, rng.randint(1, height - top), rng.randint(1, width - left)

    for number in range(count):
        kind = ("tar", "crop", "image", "label")[number % 4]
        source = rng.choice(archives if kind == "tar" else pictures)
        content = broken(source, rng)
        try:
            if kind == "tar":
                list(split_samples(memoryview(content), "x.tar"))
            elif kind == "crop":
                image, (top, left, height, width) = decode_crop(content, some_crop, "x")
                assert top + height <= image.shape[0]
                assert left + width <= image.shape[1]
                assert image.dtype == np.uint8
                assert image.shape[2] == 3
            elif kind == "image":
                decode_image(content, "x")
            else:
                find_rule({"json": content[:200]})
            outcomes[f"{kind} whole"] += 1
        except DataError:
            outcomes[f"{kind} refused"] += 1
    print(json.dumps(outcomes))  # noqa: T201 - what the test reads


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
