"""Images decoded on the CPU.

JPEGs go through libjpeg-turbo (simplejpeg): a quarter faster than PIL and strict, while PIL accepts
a scan that is damaged in its middle. Its exact DCT and upsampling are used, so pixels are PIL's.
PIL decodes the rest: other formats, CMYK, images that their EXIF turns.
"""

import io
import struct
from typing import Any

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from datasets.errors import ImageError
from datasets.images.augment import resize_into
from datasets.images.region import Box, ChooseBox, decode_region
from datasets.shards.labels import files_of

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
JPEG_MAGIC = b"\xff\xd8"
PLAIN_JPEG = ("Gray", "YCbCr", "RGB")
EXIF_SEARCH_BYTES = 4096  # the EXIF segment is among the first
PIL_FORMATS = ("JPEG", "PNG", "WEBP")  # of all that PIL can open
MAX_PIXELS = 100_000_000  # 300 MB of RGB; against decompression bombs
# What PIL raises for broken files and their EXIF, by its users' reports.
PIL_ERRORS = (OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError,
              struct.error)  # fmt: skip


class CpuDecoder:
    """Decodes crops into batches on the CPU, as GpuDecoder does on a GPU."""

    device = torch.device("cpu")

    def resize_into(
        self, target: torch.Tensor, content: bytes | memoryview, choose: ChooseBox, where: str
    ) -> None:
        """Resizes the crop choose(height, width) into `target`, uint8 (1, 3, S, S) in
        channels-last layout. Raises ImageError."""
        resize_into(target, *decode_crop(content, choose, where))


def decode_image(content: bytes | memoryview, where: str) -> NDArray[np.uint8]:
    """uint8 (H, W, 3) RGB of a JPEG, PNG or WebP of any mode, turned as its EXIF says.

    Grey, palette, CMYK and alpha become RGB (alpha over white); of 16-bit samples the upper 8 bits
    are kept. Raises ImageError for an incomplete, damaged or too large image.
    """
    try:
        if _is_plain(content):
            height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
            _check_size(height, width, where)
            if colours in PLAIN_JPEG:
                return np.asarray(simplejpeg.decode_jpeg(content, "RGB", False, False))
        with Image.open(io.BytesIO(content), formats=PIL_FORMATS) as image:
            _check_size(image.height, image.width, where)
            return np.array(_rgb(ImageOps.exif_transpose(image)), dtype=np.uint8)
    except Image.DecompressionBombError as error:  # PIL's limit is not ours
        raise _too_large("more pixels than PIL opens", where) from error
    except PIL_ERRORS as error:
        raise ImageError(
            f"{where}: got {len(content)} bytes that are no whole image ({type(error).__name__}); "
            "a sample holds a JPEG, PNG or WebP. Replace the file or take the sample out."
        ) from error


def decode_crop(
    content: bytes | memoryview, choose: ChooseBox, where: str
) -> tuple[NDArray[np.uint8], Box]:
    """(image, box): uint8 (H, W, 3) and the place in it of the crop choose(height, width).

    If a part can be decoded, the image is the crop alone; its pixels are the same either way.
    Raises ImageError.
    """
    if _is_plain(content):
        crop = decode_region(content, choose, MAX_PIXELS)
        if crop is not None:
            return crop, (0, 0, crop.shape[0], crop.shape[1])
    image = decode_image(content, where)
    return image, choose(image.shape[0], image.shape[1])


def find_image(sample: dict[str, Any], where: str) -> bytes | memoryview:
    """The sample's image file. Raises ImageError if it has none."""
    for extension in IMAGE_EXTENSIONS:
        if extension in sample:
            content: bytes | memoryview = sample[extension]
            return content
    raise ImageError(
        f"{where}: got {files_of(sample)}; a sample has an image, "
        f".{' or .'.join(IMAGE_EXTENSIONS)}. "
        "Pack the split again."
    )


def _is_plain(content: bytes | memoryview) -> bool:
    """Whether this is a JPEG without EXIF, which could turn it."""
    beginning = bytes(content[:EXIF_SEARCH_BYTES])
    return beginning[:2] == JPEG_MAGIC and b"Exif\0" not in beginning


def _check_size(height: int, width: int, where: str) -> None:
    if width * height > MAX_PIXELS:
        raise _too_large(f"{width} x {height} pixels", where)


def _too_large(size: str, where: str) -> ImageError:
    return ImageError(
        f"{where}: got {size}; at most {MAX_PIXELS:,}. Shrink the image or take it out."
    )


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":
        upper = np.asarray(image).astype(np.uint32) >> 8
        return Image.fromarray(np.minimum(upper, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")
