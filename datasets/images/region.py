"""Decodes a part of a JPEG: what is beside and below a crop is never reconstructed.

libjpeg-turbo 3 decodes a region (C API: tj3SetCroppingRegion; no Python package offers it) a
quarter faster than the whole image for Inception's crops; entropy decoding still walks down to the
crop's last row. The pixels are bit for bit those of the whole image (tested for every
subsampling): chroma is interpolated from its neighbours, so a margin of one MCU is decoded on both
sides and cut off. (Of a progressive image that lacks its last scans libjpeg smooths the blocks, at
the crop's border otherwise by a few levels.) Without the library (not installed, or no wheel for
the platform) the whole image is decoded, to the same pixels.
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
ChooseBox = Callable[[int, int], Box]  # (image height, width) -> the crop

# From turbojpeg.h of libjpeg-turbo 3.0.
_INIT_DECOMPRESS, _RGB = 1, 0
_STOP_ON_WARNING, _SUBSAMPLING, _WIDTH, _HEIGHT, _PRECISION, _COLOURS = 0, 4, 5, 6, 7, 8
_SCAN_LIMIT, _LOSSLESS = 13, 15
_PLAIN_COLOURS = (0, 1, 2)  # RGB, YCbCr, grey
_MCU_WIDTHS = (8, 16, 16, 8, 8, 32, 8)  # 4:4:4, 4:2:2, 4:2:0, grey, 4:4:0, 4:1:1, 4:4:1
_MAX_SCANS = 500  # of a progressive image; more are an attack
_END = b"\xff\xd9"
_PADDING_BYTES = 512  # zeros that may follow the end marker


class _Region(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in ("x", "y", "width", "height")]


@cache
def _library() -> Any:
    """The TurboJPEG 3 library: the `turbojpeg` wheel's, else the system's, else None."""
    wheel = Path(sysconfig.get_path("platlib")) / "turbojpeg.libs"
    for name in [*map(str, wheel.glob("libturbojpeg*.so*")), ctypes.util.find_library("turbojpeg")]:
        if not name:
            continue
        try:
            library = ctypes.CDLL(name)  # calls release the interpreter lock
            library.tj3SetCroppingRegion.argtypes = [ctypes.c_void_p, _Region]
        except (OSError, AttributeError):  # cannot be loaded, or older than 3.0
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
    """A handle of the library. Threads must not share one."""

    def __init__(self) -> None:
        self._library = _library()
        self.handle = self._library.tj3Init(_INIT_DECOMPRESS)
        if self.handle is None:
            raise MemoryError("libjpeg-turbo gave no decompressor")
        self._library.tj3Set(self.handle, _STOP_ON_WARNING, 1)
        self._library.tj3Set(self.handle, _SCAN_LIMIT, _MAX_SCANS)

    def __del__(self) -> None:
        self._library.tj3Destroy(self.handle)


class PerThread(threading.local):
    """A value for each thread."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.value = make()


@cache
def _decompressor() -> PerThread:
    return PerThread(_Decompressor)


def has_regions() -> bool:
    """Whether this machine can decode a part of a JPEG."""
    return _library() is not None


def decode_region(
    content: bytes | memoryview, choose: ChooseBox, max_pixels: int
) -> NDArray[np.uint8] | None:
    """uint8 (h, w, 3) RGB: the crop choose(height, width) of a JPEG.

    None if that is impossible or anything is unusual (another format, CMYK, 12 bits, no end marker,
    a warning): the caller then decodes the whole image, which reports what is wrong. Damage below
    the crop goes unnoticed.
    """
    if not has_regions() or not bytes(content[-_PADDING_BYTES:]).rstrip(b"\0").endswith(_END):
        return None
    library, handle = _library(), _decompressor().value.handle
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
