"""Image files of the kinds that users reported elsewhere, and what is to be seen in each.

READ: kind -> (file, its pixels, how far a pixel may be off). REFUSED: kind -> (file, the message).
Each kind names a report, or the specification where we know none.
"""

import base64
import io
import struct
import zlib
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
WHITE = (255, 255, 255)


def encoded(image: Image.Image, format_: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def photograph(height: int = 48, width: int = 64) -> Image.Image:
    """Smooth colours that no turn and no mirror leaves as they are."""
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([x * 250 / width, y * 250 / height, 255 - x * 120 / width], axis=-1)
    return Image.fromarray(pixels.astype(np.uint8))


def pixels_of(content: bytes) -> Pixels:
    """As PIL decodes a plain file."""
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, bits: int, colours: int, rows: bytes, extra: bytes = b"") -> bytes:
    """A PNG chunk by chunk. colours: its colour type. rows: each a filter byte and samples."""
    header = struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0)
    data = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + data + chunk(b"IEND", b"")


def with_exif(jpeg: bytes, tiff: bytes) -> bytes:
    body = b"Exif\0\0" + tiff
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + jpeg[2:]


def tiff(*entries: bytes, tail: bytes = b"") -> bytes:
    """An EXIF block of these entries; `tail` begins at byte 14 + 12 x their number."""
    count = struct.pack("<H", len(entries))
    return b"II*\0" + struct.pack("<I", 8) + count + b"".join(entries) + bytes(4) + tail


def entry(tag: int, kind: int, count: int, value: bytes) -> bytes:
    return struct.pack("<HHI", tag, kind, count) + value.ljust(4, b"\0")


UPRIGHT = entry(0x0112, 3, 1, b"\1")
TURNED = entry(0x0112, 3, 1, b"\6")  # to be turned clockwise by 90 degrees
PHOTO = photograph()
JPEG = encoded(PHOTO, "JPEG", quality=92)
PNG = encoded(PHOTO, "PNG")
WEBP = encoded(PHOTO, "WEBP", lossless=True)
PROGRESSIVE = encoded(PHOTO, "JPEG", quality=92, progressive=True)

# Cyan, magenta, yellow and black ink of eight patches, and the colour by the usual formula.
INKS = np.array(
    [(0, 0, 0, 0), (255, 0, 0, 0), (0, 255, 0, 0), (0, 0, 255, 0), (0, 0, 0, 255),
     (255, 255, 0, 0), (100, 50, 20, 30), (0, 0, 0, 128)]
)  # fmt: skip
PATCHES = np.repeat(INKS[None], 16, axis=0).repeat(8, axis=1).astype(np.uint8)  # (16, 64, 4)
RGB_OF_PATCHES = np.round((255.0 - PATCHES[..., :3]) * (255.0 - PATCHES[..., 3:]) / 255).astype(
    np.uint8
)

# 32 x 24 pixels of PHOTO's kind by libjpeg-turbo's encoder with arithmetic coding, quality 90.
ARITHMETIC = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAMCAgMCAgMDAwMEAwMEBQgFBQQEBQoHBwYIDAoMDAsKCwsNDhIQDQ4RDgsL"
    "EBYQERMUFRUVDA8XGBYUGBIUFRT/2wBDAQMEBAUEBQkFBQkUDQsNFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQU"
    "FBQUFBQUFBQUFBQUFBQUFBQUFBT/yQARCAAYACADASIAAhEBAxEB/8wACgAQEAUBEBEF/9oADAMBAAIRAxEAPwD/ANw1"
    "TniqxGMyAnaDf3zzlt+ufBoxdPaxvgaR9+BNu5denvA/WCxS6Vpt3ODak/QNUtz8i7bEZ77hRcjHuqwrtW0hFJ0Dxspk"
    "XQT5v0ezKIILd93xLWWhy75IIsdJ+0ui/byhB9W6RY81SWYJwP/Z"
)
_Y, _X = np.mgrid[:24, :32]
RAMP = np.stack([_X * 8, _Y * 10, 255 - _X * 4], axis=-1).astype(np.uint8)


def row(*colours: tuple[int, int, int]) -> Pixels:
    return np.array([colours], dtype=np.uint8)


def _motion_photo(jpeg: bytes) -> bytes:
    return jpeg + b"\0\0\0\x18ftypmp42" + bytes(range(256)) * 9


READ: dict[str, tuple[bytes, Pixels, int]] = {
    # haraldk/TwelveMonkeys#141, tensorflow/datasets#590 (ImageNet has some)
    "CMYK JPEG": (
        encoded(Image.fromarray(PATCHES, "CMYK"), "JPEG", quality=100, subsampling=0),
        RGB_OF_PATCHES, 3,
    ),
    # etemesi254/zune-image#442
    "YCCK JPEG": (
        simplejpeg.encode_jpeg(255 - PATCHES, 100, "CMYK", "444"), RGB_OF_PATCHES, 3,
    ),
    # pytorch/vision#2218 (16-bit images all white), Nerogar/mgds#55
    "16-bit grey PNG": (
        png(2, 2, 16, 0, b"\0\x12\x34\x80\x00" + b"\0\xff\xff\x00\xff"),
        np.array([[18, 128], [255, 0]], dtype=np.uint8)[..., None].repeat(3, axis=2), 0,
    ),
    # pytorch/vision#4731
    "16-bit RGB PNG": (
        png(2, 1, 16, 2, b"\0\x12\x34\x80\x00\xff\xff\xff\xff\x00\xff\x11\x11"),
        row((18, 128, 255), (255, 0, 17)), 0,
    ),
    # python-pillow/Pillow#6348; NVIDIA/DIGITS#85 (white is expected behind)
    "palette with a transparent colour": (
        png(2, 1, 8, 3, b"\0\0\1", chunk(b"PLTE", bytes([10, 20, 30, 40, 50, 60]))
            + chunk(b"tRNS", b"\0")),
        row(WHITE, (40, 50, 60)), 0,
    ),
    # python-pillow/Pillow#6348
    "palette with half transparent colours": (
        png(2, 1, 8, 3, b"\0\0\1", chunk(b"PLTE", bytes([0, 20, 30, 40, 50, 60]))
            + chunk(b"tRNS", b"\x80\xff")),
        row((127, 137, 142), (40, 50, 60)), 1,
    ),
    # python-pillow/Pillow#154
    "grey with alpha": (
        png(3, 1, 8, 4, b"\0\x40\xff\x40\x00\x00\x80"), row((64,) * 3, WHITE, (127,) * 3), 1,
    ),
    # python-pillow/Pillow#154
    "grey with a transparent value": (
        png(2, 1, 8, 0, b"\0\x10\x20", chunk(b"tRNS", b"\0\x10")), row(WHITE, (32,) * 3), 0,
    ),
    # python-pillow/Pillow#7888
    "RGB with a transparent colour": (
        png(2, 1, 8, 2, b"\0\1\2\3\4\5\6", chunk(b"tRNS", b"\0\1\0\2\0\3")),
        row(WHITE, (4, 5, 6)), 0,
    ),
    # W3C PNG, table 11.1: 1, 2 and 4 bits a sample
    "two colours": (png(8, 1, 1, 0, b"\0\xa5"), row(*(
        WHITE if bit == "1" else (0, 0, 0) for bit in "10100101")), 0),
    # python-pillow/Pillow#1138, #4603: the first of several pictures
    "MPO": (
        encoded(PHOTO, "MPO", quality=92, save_all=True, append_images=[PHOTO.rotate(180)]),
        pixels_of(JPEG), 0,
    ),
    # python-pillow/Pillow#5164, #8977: what is said of the other pictures is wrong
    "MPO that is cut in its second picture": (
        encoded(PHOTO, "MPO", quality=92, save_all=True, append_images=[PHOTO.rotate(180)])[:-200],
        pixels_of(JPEG), 0,
    ),
    # chai2010/webp#46
    "animated WebP": (
        encoded(PHOTO, "WEBP", lossless=True, save_all=True, append_images=[PHOTO.rotate(180)]),
        np.asarray(PHOTO), 0,
    ),
    # W3C PNG third edition, 4.9: viewers show the default image
    "animated PNG": (
        encoded(PHOTO, "PNG", save_all=True, append_images=[PHOTO.rotate(180)]),
        np.asarray(PHOTO), 0,
    ),
    # albumentations-team/albumentations#915 (images smaller than the crop)
    "one pixel": (encoded(PHOTO.crop((9, 9, 10, 10)), "PNG"), np.asarray(PHOTO)[9:10, 9:10], 0),
    # mindee/doctr#695
    "30,000 x 10 pixels": (
        encoded(PHOTO.resize((30_000, 10)), "PNG"), np.asarray(PHOTO.resize((30_000, 10))), 0,
    ),
    # tensorflow/datasets#590 (ImageNet has one of that name): all files are called .jpg here
    "PNG called .jpg": (PNG, np.asarray(PHOTO), 0),
    "WebP called .jpg": (WEBP, np.asarray(PHOTO), 0),  # the same
    # 3rd/image.nvim#379 (films behind the picture), libjpeg-turbo/libjpeg-turbo#163
    "JPEG with a film behind it": (_motion_photo(JPEG), pixels_of(JPEG), 0),
    "PNG with bytes behind it": (_motion_photo(PNG), np.asarray(PHOTO), 0),  # the same
    "WebP with bytes behind it": (_motion_photo(WEBP), np.asarray(PHOTO), 0),  # the same
    # image-rs/jpeg-decoder#43, #147: before the end marker
    "JPEG with spare bytes before its end": (
        JPEG[:-2] + b"\0\0" + JPEG[-2:], pixels_of(JPEG), 0,
    ),
    "JPEG with fill bytes before its end": (
        JPEG[:-2] + b"\xff\xff" + JPEG[-2:], pixels_of(JPEG), 0,
    ),
    # NVIDIA/DALI#1204, Bodmer/JPEGDecoder#28
    "progressive JPEG": (PROGRESSIVE, pixels_of(PROGRESSIVE), 0),
    # etemesi254/zune-image#318
    "arithmetic-coded JPEG": (ARITHMETIC, RAMP, 8),
    # opentoonz/opentoonz#1046: profiles are not applied, so that what is wrong in one does no harm
    "broken ICC profile in a JPEG": (
        encoded(PHOTO, "JPEG", quality=92, icc_profile=b"garbage" * 900), pixels_of(JPEG), 0,
    ),
    # python-pillow/Pillow#3319
    "broken ICC profile in a PNG": (
        PNG[:33] + chunk(b"iCCP", b"x\0\0no zlib stream") + PNG[33:], np.asarray(PHOTO), 0,
    ),
    # Exif 2.32, 4.6.4 (tag 274); decode_image says that it is heeded
    "JPEG that its EXIF turns": (
        with_exif(JPEG, tiff(TURNED)), np.rot90(pixels_of(JPEG), -1), 0,
    ),
    # python-pillow/Pillow#6123, #7879
    "JPEG with EXIF of nothing": (with_exif(JPEG, b""), pixels_of(JPEG), 0),
    "JPEG with EXIF that is none": (with_exif(JPEG, b"http://ns"), pixels_of(JPEG), 0),
}  # fmt: skip

_NO_IMAGE = r"got \d+ bytes that are no whole image \(\w+\); a sample holds a JPEG, PNG or WebP"
_TOO_LARGE = r"got (\d+ x \d+ pixels|more pixels than PIL opens); at most 100,000,000\. Shrink"
_SIZE_AT = JPEG.index(b"\xff\xc0") + 5

REFUSED: dict[str, tuple[bytes, str]] = {
    # NVIDIA/DALI#5151
    "GIF": (encoded(PHOTO, "GIF"), _NO_IMAGE),
    "BMP": (encoded(PHOTO, "BMP"), _NO_IMAGE),  # the same
    # pytorch/vision#485, fastai/course-v3#82
    "no bytes": (b"", _NO_IMAGE),
    "text": (b"<html>404 Not Found</html>", _NO_IMAGE),  # rom1504/clip-retrieval#13
    # pytorch/vision#138, #2471
    "half a JPEG": (JPEG[: len(JPEG) // 2], _NO_IMAGE),
    "half a progressive JPEG": (PROGRESSIVE[: len(PROGRESSIVE) // 2], _NO_IMAGE),
    "JPEG without its last byte": (JPEG[:-1], _NO_IMAGE),
    "half a PNG": (PNG[: len(PNG) // 2], _NO_IMAGE),
    "half a WebP": (WEBP[: len(WEBP) // 2], _NO_IMAGE),
    "WebP without its last byte": (WEBP[:-1], _NO_IMAGE),
    # libjpeg-turbo/libjpeg-turbo#163: a trailer where the end marker is to be
    "JPEG with a trailer for its end": (_motion_photo(JPEG[:-2]), _NO_IMAGE),
    # python-pillow/Pillow#5672
    "PNG with a wrong checksum": (
        PNG[:33] + chunk(b"iCCP", b"x\0\0")[:-4] + b"four" + PNG[33:], _NO_IMAGE,
    ),
    # junyanz/pytorch-CycleGAN-and-pix2pix#1592
    "PNG of 65,000 x 65,000": (png(65_000, 65_000, 8, 2, b"\0"), _TOO_LARGE),
    "PNG of 12,000 x 10,000": (png(12_000, 10_000, 8, 2, b"\0"), _TOO_LARGE),
    "JPEG of 65,000 x 65,000": (
        JPEG[:_SIZE_AT] + struct.pack(">HH", 65_000, 65_000) + JPEG[_SIZE_AT + 4 :], _TOO_LARGE,
    ),
    # W3C PNG, 11.2.2: zero is no size
    "PNG of no width": (png(0, 5, 8, 2, b""), _NO_IMAGE),
    "JPEG of no height": (
        JPEG[:_SIZE_AT] + struct.pack(">HH", 0, 64) + JPEG[_SIZE_AT + 4 :], _NO_IMAGE,
    ),
    # python-pillow/Pillow#2445, #5610: 80 MB of text in 78 kB
    "PNG with a bomb for a profile": (
        PNG[:33] + chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(80_000_000))) + PNG[33:],
        _NO_IMAGE,
    ),
    "PNG with a bomb for a text": (
        PNG[:33] + chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(80_000_000))) + PNG[33:],
        _NO_IMAGE,
    ),
}  # fmt: skip

# kind -> EXIF with something wrong in it.
RATIONAL = 14 + 12 * 2  # where the tail of two entries begins
BROKEN_EXIF: dict[str, bytes] = {
    # python-pillow/Pillow#8965
    "a rational of -1 / 0": tiff(
        UPRIGHT, entry(0x011A, 10, 1, struct.pack("<I", RATIONAL)), tail=struct.pack("<ii", -1, 0)
    ),
    "the same, and turned": tiff(
        TURNED, entry(0x011A, 10, 1, struct.pack("<I", RATIONAL)), tail=struct.pack("<ii", -1, 0)
    ),
    # python-pillow/Pillow#4665, #3973
    "two rationals for one": tiff(
        TURNED,
        entry(0x011A, 5, 2, struct.pack("<I", RATIONAL)),
        tail=struct.pack("<4I", 72, 1, 72, 1),
    ),
    # python-pillow/Pillow#8348
    "its own header twice": b"Exif\0\0" + tiff(TURNED),
    # python-pillow/Pillow#518, matthewwithanm/pilkit#12
    "a text beyond its end": tiff(TURNED, entry(0x010F, 2, 100, struct.pack("<I", 10**8))),
    # hMatoba/Piexif#17
    "half an entry": tiff(TURNED)[:17],
    # python-pillow/Pillow#4215
    "an orientation of no value": tiff(entry(0x0112, 3, 0, b"")),
    "an orientation of 99": tiff(entry(0x0112, 3, 1, b"\x63")),
    "an orientation in words": tiff(entry(0x0112, 2, 4, b"top")),
    # Exif 2.32, 4.6.3: a pointer to itself
    "a loop": tiff(TURNED, entry(0x8769, 4, 1, struct.pack("<I", 8))),
}
