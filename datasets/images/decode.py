"""Image bytes -> arrays.

JPEGs go through libjpeg-turbo (simplejpeg): a quarter faster than PIL, and strict, where PIL lets
a scan damaged in its middle pass. Its DCT and upsampling are the exact ones, so pixels are PIL's.
PIL takes the rest: other formats, CMYK, images to be turned.
"""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageOps

from datasets.errors import ImageError
from datasets.images.region import Box, decode_region
from datasets.shards.labels import files_of

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
JPEG_MAGIC = b"\xff\xd8"
PLAIN_JPEG = ("Gray", "YCbCr", "RGB")
EXIF_SEARCH_BYTES = 4096  # the EXIF segment stands among the first
PIL_FORMATS = ("JPEG", "PNG", "WEBP")  # nothing else of what PIL can open is taken
MAX_PIXELS = 100_000_000  # a decompression bomb's guard: 300 MB of RGB


def decode_image(content: bytes | memoryview, where: str) -> NDArray[np.uint8]:
    """uint8 (H, W, 3) RGB of a JPEG, PNG or WebP of any mode, turned as its EXIF says.

    Grey, palette, CMYK and alpha become RGB (alpha over white), 16-bit samples keep their upper
    8 bits. Raises ImageError for bytes that are no whole image or too large.
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
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ImageError(
            f"{where}: got {len(content)} bytes that are no whole image ({type(error).__name__}); "
            "a sample holds a JPEG, PNG or WebP. Replace the file or take the sample out."
        ) from error


def decode_crop(
    content: bytes | memoryview, choose: Callable[[int, int], Box], where: str
) -> tuple[NDArray[np.uint8], Box]:
    """(image, box): the crop that choose(height, width) names lies at `box` of uint8 (H, W, 3).

    The image is no more than the crop where a part can be decoded; the crop's pixels are the same
    either way. Raises ImageError.
    """
    if _is_plain(content):
        crop = decode_region(content, choose, MAX_PIXELS)
        if crop is not None:
            return crop, (0, 0, crop.shape[0], crop.shape[1])
    image = decode_image(content, where)
    return image, choose(image.shape[0], image.shape[1])


def _is_plain(content: bytes | memoryview) -> bool:
    """A JPEG that nothing says to turn."""
    beginning = bytes(content[:EXIF_SEARCH_BYTES])
    return beginning[:2] == JPEG_MAGIC and b"Exif\0" not in beginning


def _check_size(height: int, width: int, where: str) -> None:
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{where}: got {width} x {height} pixels; at most {MAX_PIXELS:,}. "
            "Shrink the image or take it out."
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


def find_image(sample: dict[str, Any], where: str) -> bytes | memoryview:
    """The sample's image file. Raises ImageError where it has none."""
    for extension in IMAGE_EXTENSIONS:
        if extension in sample:
            found: bytes | memoryview = sample[extension]
            return found
    raise ImageError(
        f"{where}: got {files_of(sample)}; a sample has an image, "
        f".{' or .'.join(IMAGE_EXTENSIONS)}. "
        "Pack the split again."
    )
