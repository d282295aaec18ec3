"""Broken bytes through our readers, in a process of its own: a crash or a hang is its exit.

python -m tests.unit.datasets.fuzz COUNT SEED     -> counts of what came of them, as JSON
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


def tars(choose: random.Random) -> list[bytes]:
    """Small whole archives of every dialect."""
    found = []
    for format_ in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=format_) as tar:
            for number in range(4):
                long = "d/" * 60 if format_ != tarfile.USTAR_FORMAT else ""
                for extension in ("jpg", "cls", "json"):
                    info = tarfile.TarInfo(f"{long}{number:03d}.{extension}")
                    info.size = choose.randrange(900)
                    tar.addfile(info, io.BytesIO(choose.randbytes(info.size)))
        found.append(buffer.getvalue())
    return found


def images(choose: random.Random) -> list[bytes]:
    """Small whole images of every format and many modes."""
    base = np.random.default_rng(choose.randrange(99)).normal(120, 40, (37, 53, 3)).clip(0, 255)
    rgb = Image.fromarray(base.astype(np.uint8))
    found = []
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
        found.append(buffer.getvalue())
    exif = Image.Exif()
    exif[0x0112] = 8
    buffer = io.BytesIO()
    rgb.save(buffer, "JPEG", exif=exif)
    return [*found, buffer.getvalue()]


def broken(content: bytes, choose: random.Random) -> bytes:
    """A few random changes: bits, bytes, runs, cuts, insertions, the ends of numbers."""
    data = bytearray(content)
    for _ in range(choose.randint(1, 4)):
        at = choose.randrange(len(data)) if data else 0
        kind = choose.randrange(7)
        if kind == 0 and data:
            data[at] ^= 1 << choose.randrange(8)
        elif kind == 1 and data:
            data[at] = choose.choice([0, 1, 0x7F, 0x80, 0xFE, 0xFF])
        elif kind == 2:
            data[at : at + choose.randrange(1, 64)] = choose.randbytes(choose.randrange(64))
        elif kind == 3:
            del data[at:]
        elif kind == 4:
            data[at:at] = choose.randbytes(choose.randrange(1, 600))
        elif kind == 5:
            data[at : at + 12] = choose.choice([b"\xff" * 12, b"7" * 12, b"\0" * 12, b"-1 " * 4])
        else:
            data = data[at:] + data[:at]
    return bytes(data)


def main(count: int, seed: int) -> None:
    choose = random.Random(seed)
    Image.MAX_IMAGE_PIXELS = 10**7  # a huge header must not become a huge allocation here
    archives, pictures = tars(choose), images(choose)
    came: Counter[str] = Counter()

    def some_crop(height: int, width: int) -> tuple[int, int, int, int]:
        top, left = choose.randrange(height), choose.randrange(width)
        return top, left, choose.randint(1, height - top), choose.randint(1, width - left)

    for number in range(count):
        kind = ("tar", "crop", "image", "label")[number % 4]
        source = choose.choice(archives if kind == "tar" else pictures)
        content = broken(source, choose)
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
            came[f"{kind} whole"] += 1
        except DataError:
            came[f"{kind} refused"] += 1
    print(json.dumps(came))  # noqa: T201 - what the test reads


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
