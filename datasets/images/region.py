"""Part of a JPEG: what lies beside and below a crop is never reconstructed.

libjpeg-turbo 3 decodes a region (its C API, tj3SetCroppingRegion; no Python package offers it), a
quarter faster than the whole image for Inception's crops: entropy decoding must still walk down to
the crop's last row. The pixels are bit for bit those of the whole image's decode (tested over
every subsampling): chroma is interpolated from its neighbours, so a margin of one MCU is decoded
on both sides and left out of the result. Where the library is missing (no wheel of it for the
platform, none installed), the whole image is decoded, and pixels stay the same.
"""

import ctypes
import ctypes.util
import sysconfig
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Box = tuple[int, int, int, int]  # top, left, height, width

# From turbojpeg.h of libjpeg-turbo 3.0.
_INIT_DECOMPRESS, _RGB = 1, 0
_STOP_ON_WARNING, _SUBSAMPLING, _WIDTH, _HEIGHT, _PRECISION, _COLOURS = 0, 4, 5, 6, 7, 8
_SCAN_LIMIT, _LOSSLESS = 13, 15
_PLAIN_COLOURS = (0, 1, 2)  # RGB, YCbCr, grey
_MCU_WIDTHS = (8, 16, 16, 8, 8, 32, 8)  # 4:4:4, 4:2:2, 4:2:0, grey, 4:4:0, 4:1:1, 4:4:1
_MAX_SCANS = 500  # of a progressive image; more are an attack
_END = b"\xff\xd9"
_PADDING = 512  # as many zeros may follow the end mark


class _Region(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in ("x", "y", "width", "height")]


@cache
def _library() -> Any:
    """The TurboJPEG 3 library: the one that the `turbojpeg` wheel carries, else the system's."""
    wheel = Path(sysconfig.get_path("platlib")) / "turbojpeg.libs"
    for name in [*map(str, wheel.glob("libturbojpeg*.so*")), ctypes.util.find_library("turbojpeg")]:
        if not name:
            continue
        try:
            library = ctypes.CDLL(name)  # calls release the interpreter lock
            library.tj3SetCroppingRegion.argtypes = [ctypes.c_void_p, _Region]
        except (OSError, AttributeError):  # not loadable here, or older than 3.0
            continue
        pointer, number = ctypes.c_void_p, ctypes.c_int
        header: Any = [pointer, pointer, ctypes.c_size_t]
        library.tj3Init.restype = pointer
        library.tj3Destroy.argtypes = [pointer]
        library.tj3Set.argtypes = [pointer, number, number]
        library.tj3Get.argtypes = [pointer, number]
        library.tj3DecompressHeader.argtypes = header
        library.tj3Decompress8.argtypes = [*header, pointer, number, number]
        return library
    return None


class _Decompressor:
    """A handle of the library; one a thread, they are not to be shared."""

    def __init__(self) -> None:
        self._library = _library()
        self.handle = self._library.tj3Init(_INIT_DECOMPRESS)
        if self.handle is None:
            raise MemoryError("libjpeg-turbo gave no decompressor")
        self._library.tj3Set(self.handle, _STOP_ON_WARNING, 1)
        self._library.tj3Set(self.handle, _SCAN_LIMIT, _MAX_SCANS)

    def __del__(self) -> None:
        self._library.tj3Destroy(self.handle)


class _Thread(threading.local):
    """Made anew in each thread."""

    def __init__(self) -> None:
        self.decompressor = _Decompressor()


@cache
def _thread() -> _Thread:
    return _Thread()


def has_regions() -> bool:
    """Whether this machine can decode a part of a JPEG."""
    return _library() is not None


def decode_region(
    content: bytes | memoryview, choose: Callable[[int, int], Box], max_pixels: int
) -> NDArray[np.uint8] | None:
    """uint8 (h, w, 3) RGB, the crop that choose(height, width) names, of a JPEG.

    None where that cannot be done or anything is odd (another format, CMYK, 12 bits, no end mark,
    a warning): decoding the whole image then says what is wrong, if anything is. Damage below the
    crop is not seen.
    """
    if not has_regions() or not bytes(content[-_PADDING:]).rstrip(b"\0").endswith(_END):
        return None
    library, handle = _library(), _thread().decompressor.handle
    source = np.frombuffer(content, dtype=np.uint8).ctypes.data
    if library.tj3DecompressHeader(handle, source, len(content)) != 0:
        return None
    width, height = library.tj3Get(handle, _WIDTH), library.tj3Get(handle, _HEIGHT)
    subsampling = library.tj3Get(handle, _SUBSAMPLING)
    is_plain = (
        library.tj3Get(handle, _COLOURS) in _PLAIN_COLOURS
        and library.tj3Get(handle, _PRECISION) == 8
        and library.tj3Get(handle, _LOSSLESS) != 1
        and 0 <= subsampling < len(_MCU_WIDTHS)
        and 0 < width * height <= max_pixels
    )
    if not is_plain:
        return None
    top, left, rows, columns = choose(height, width)
    step = _MCU_WIDTHS[subsampling]
    begin = max(0, left // step - 1) * step
    end = min(width, left + columns + step)
    if library.tj3SetCroppingRegion(handle, _Region(begin, top, end - begin, rows)) != 0:
        return None
    pixels = np.empty((rows, end - begin, 3), dtype=np.uint8)
    if library.tj3Decompress8(handle, source, len(content), pixels.ctypes.data, 0, _RGB) != 0:
        return None
    return pixels[:, left - begin : left - begin + columns]
