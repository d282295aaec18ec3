"""A disk cache of remote objects, shared by the processes of a machine.

An object is kept in parts of 8 MiB. Each part is a file: its bytes, then a CRC-32 of every 128 KiB,
so that a short read checks little; a corrupt part is fetched again. Files appear by renaming, so
neither a reader nor a kill meets half of one. A file under a lock holds the total, which stays
under the limit by evicting the least recently used parts. A kill between counting and renaming
leaves the total too high; the next eviction counts the files.
"""

import fcntl
import hashlib
import os
import struct
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from datasets.errors import StoreError
from datasets.storage.disk import write_atomically
from datasets.storage.transfer import buffer

PART_BYTES = 8 * 2**20
PAGE_BYTES = 128 * 2**10
FILL_AFTER_EVICTION = 0.9  # of the limit
STALE_S = 3600.0  # the writer of a temporary file of this age is dead

Fetch = Callable[[memoryview, int], object]  # (buffer to fill, first byte)


class DiskCache:
    """A folder of at most `limit_bytes` of parts. Safe between threads and processes."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder, self.limit_bytes = folder, limit_bytes

    def check(self) -> None:
        """Raises StoreError if the folder cannot be written."""
        try:
            self._reserve(0)
        except OSError as error:
            raise StoreError(
                f"data.cache_folder: got {str(self.folder)!r} ({error.strerror}); every node's "
                "ranks write there. Name a folder that they may write, or set data.cache_gib=0."
            ) from error

    def read_into(
        self, identity: str, size_bytes: int, start: int, view: memoryview, fetch: Fetch
    ) -> None:
        """Fills `view` with the object's bytes from `start`, from the disk if they are there.

        identity: names the object's exact bytes (URL and ETag or checksum). fetch: called for
        whole parts; its errors are raised, while a failing disk only costs speed.
        """
        end = start + len(view)
        for number in range(start // PART_BYTES, -(-end // PART_BYTES)):
            first = number * PART_BYTES
            length = min(PART_BYTES, size_bytes - first)
            begin, stop = max(start, first), min(end, first + length)
            wanted = view[begin - start : stop - start]
            path = self._path(identity, number)
            if _read_part(path, length, begin - first, wanted):
                continue
            part = buffer(length)
            fetch(part, first)
            wanted[:] = part[begin - first : stop - first]
            with suppress(OSError):
                self._write_part(path, part)

    def _path(self, identity: str, number: int) -> Path:
        name = hashlib.sha256(f"{identity}\0{number}".encode()).hexdigest()
        return self.folder / name[:2] / name[2:]

    def _write_part(self, path: Path, part: memoryview) -> None:
        checksums = struct.pack(f"<{-(-len(part) // PAGE_BYTES)}I", *_checksums(part))
        size = len(part) + len(checksums)
        if size > self.limit_bytes or path.exists():  # too large, or another was faster
            return
        self._reserve(size)
        write_atomically(path, part, checksums, is_durable=False)

    def _reserve(self, size: int) -> None:
        """Adds to the total, under the lock; evicts parts if it would exceed the limit."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "total").open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            content = file.read()
            total = int.from_bytes(content, "little") if len(content) == 8 else self._evict()
            if total + size > self.limit_bytes:
                total = self._evict(int(FILL_AFTER_EVICTION * self.limit_bytes) - size)
            file.truncate(0)
            file.write((total + size).to_bytes(8, "little"))

    def _evict(self, target: int | None = None) -> int:
        """Removes the least recently used parts until at most `target` bytes are left (None: none
        is removed); -> the bytes left, counted from the files."""
        parts = []
        for path in self.folder.glob("??/*"):
            with suppress(OSError):  # removed meanwhile
                status = path.stat()
                if path.name.startswith("."):
                    if time.time() - status.st_mtime > STALE_S:
                        path.unlink()
                    continue
                parts.append((status.st_mtime_ns, status.st_size, path))
        left = sum(size for _, size, _ in parts)
        for _, size, path in sorted(parts):
            if target is None or left <= target:
                break
            path.unlink(missing_ok=True)
            left -= size
        return left


def _read_part(path: Path, length: int, offset: int, wanted: memoryview) -> bool:
    """Fills `wanted` from `offset` of a part; False if the part is missing or not intact."""
    num_pages = -(-length // PAGE_BYTES)
    first, last = offset // PAGE_BYTES, (offset + len(wanted) - 1) // PAGE_BYTES
    begin, stop = first * PAGE_BYTES, min(length, (last + 1) * PAGE_BYTES)
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size != length + 4 * num_pages:
                raise OSError("wrong length")
            content = buffer(stop - begin)
            file.seek(begin)
            reached = file.readinto(content)
            file.seek(length + 4 * first)
            checksums = struct.unpack(f"<{last - first + 1}I", file.read(4 * (last - first + 1)))
        if reached != len(content) or checksums != _checksums(content):
            raise OSError("corrupt")
    except FileNotFoundError:
        return False
    except (OSError, struct.error):
        with suppress(OSError):
            path.unlink()
        return False
    wanted[:] = content[offset - begin : offset - begin + len(wanted)]
    with suppress(OSError):
        os.utime(path)  # now the most recently used
    return True


def _checksums(content: memoryview) -> tuple[int, ...]:
    """CRC-32 of each page."""
    starts = range(0, len(content), PAGE_BYTES)
    return tuple(zlib.crc32(content[at : at + PAGE_BYTES]) for at in starts)
