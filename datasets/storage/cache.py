"""Parts of remote objects on a local disk, shared by the processes of a machine.

An object is kept in parts of 8 MiB, each a file of its own: the bytes, then a CRC-32 of every
128 KiB, so that a short read checks little. A part that fails its check is fetched again. Parts
appear by renaming, so a reader or a kill never meets half of one; the total is kept in a file under
a lock and stays under the limit, the parts used longest ago go first. A kill between count and
rename leaves the total too high at worst: the next clearing counts the files.
"""

import fcntl
import hashlib
import os
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from datasets.errors import StoreError
from datasets.storage.transfer import buffer

PART_BYTES = 8 * 2**20
PAGE_BYTES = 128 * 2**10
KEPT_SHARE = 0.9  # what a clearing leaves of the limit
STALE_S = 3600.0  # after which a writer's temporary file is a dead one's

Fetch = Callable[[int, memoryview], None]  # (first byte, where to) -> filled


class DiskCache:
    """A folder of at most `limit_bytes` of parts. Safe between threads and processes."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder, self.limit_bytes = folder, limit_bytes

    def check(self) -> None:
        """Raises StoreError where the folder cannot be written."""
        try:
            with self._locked():
                pass
        except OSError as error:
            raise StoreError(
                f"data.cache_folder: got {str(self.folder)!r} ({error.strerror}); every node's "
                "ranks write there. Name a folder that they may write, or set data.cache_gib=0."
            ) from error

    def read_into(
        self, identity: str, size_bytes: int, start: int, view: memoryview, fetch: Fetch
    ) -> None:
        """Fills `view` with the object's bytes from `start`, from the disk where they are there.

        identity: names the object's exact bytes (URL and ETag or checksum). fetch is called for
        whole parts and raises what it raises; a disk that refuses is done without.
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
            fetch(first, part)
            wanted[:] = part[begin - first : stop - first]
            with suppress(OSError):  # a full or broken disk costs speed, not the run
                self._keep(path, part)

    def _path(self, identity: str, number: int) -> Path:
        name = hashlib.sha256(f"{identity}\0{number}".encode()).hexdigest()
        return self.folder / name[:2] / name[2:]

    def _keep(self, path: Path, part: memoryview) -> None:
        pages = [part[at : at + PAGE_BYTES] for at in range(0, len(part), PAGE_BYTES)]
        checks = struct.pack(f"<{len(pages)}I", *map(zlib.crc32, pages))
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._locked() as total:
            if path.exists():  # another process was faster
                return
            size = len(part) + len(checks)
            if size > self.limit_bytes:
                return
            if total.value + size > self.limit_bytes:
                total.value = self._clear(int(KEPT_SHARE * self.limit_bytes) - size)
            total.value += size
        temporary = path.with_name(f".{path.name[:16]}.{os.getpid()}.{time.monotonic_ns()}")
        try:
            with temporary.open("wb") as file:
                file.write(part)
                file.write(checks)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    @contextmanager
    def _locked(self) -> Iterator["_Total"]:
        """The total's file, for one process and thread at a time."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "total").open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            content = file.read()
            known = int.from_bytes(content, "little") if len(content) == 8 else self._clear()
            total = _Total(known)
            yield total
            if total.value != known or len(content) != 8:
                file.truncate(0)
                file.write(total.value.to_bytes(8, "little"))

    def _clear(self, target: int | None = None) -> int:
        """Removes the parts used longest ago until at most `target` bytes are left (None: none is
        removed); -> the bytes left, as the files themselves say."""
        found = []
        for path in self.folder.glob("??/*"):
            with suppress(OSError):  # gone meanwhile
                status = path.stat()
                if path.name.startswith("."):
                    if time.time() - status.st_mtime > STALE_S:
                        path.unlink()
                    continue
                found.append((status.st_mtime_ns, status.st_size, path))
        left = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if target is None or left <= target:
                break
            path.unlink(missing_ok=True)
            left -= size
        return left


class _Total:
    def __init__(self, value: int) -> None:
        self.value = value


def _read_part(path: Path, length: int, offset: int, wanted: memoryview) -> bool:
    """Fills `wanted` from `offset` of a part; False where it is not there or not whole."""
    num_pages = -(-length // PAGE_BYTES)
    first, last = offset // PAGE_BYTES, (offset + len(wanted) - 1) // PAGE_BYTES
    begin, stop = first * PAGE_BYTES, min(length, (last + 1) * PAGE_BYTES)
    try:
        with path.open("rb", buffering=0) as file:
            if os.fstat(file.fileno()).st_size != length + 4 * num_pages:
                raise OSError("not of its length")
            content = buffer(stop - begin)
            file.seek(begin)
            reached = 0
            while reached < len(content) and (got := file.readinto(content[reached:])):
                reached += got
            file.seek(length + 4 * first)
            checks = struct.unpack(f"<{last - first + 1}I", file.read(4 * (last - first + 1)))
    except FileNotFoundError:
        return False
    except (OSError, struct.error):
        _remove(path)
        return False
    pages = [content[at : at + PAGE_BYTES] for at in range(0, len(content), PAGE_BYTES)]
    if reached != len(content) or checks != tuple(map(zlib.crc32, pages)):
        _remove(path)  # rotten: fetched again
        return False
    wanted[:] = content[offset - begin : offset - begin + len(wanted)]
    with suppress(OSError):
        os.utime(path)  # what was used last goes last
    return True


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()
