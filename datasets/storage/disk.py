"""file:// URLs and plain paths. A file's size and modification time stand for an ETag."""

import datetime
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, unquote, urlsplit

from datasets.errors import DataError, StoreError
from datasets.storage.transfer import Entry, short_object

ETAG_PREFIX = "mtime:"  # as no server's ETag begins

Result = TypeVar("Result")


class Disk:
    """Files of this machine."""

    def read(self, url: str) -> bytes:
        return _on_disk(url, Path.read_bytes)

    def read_into(self, url: str, view: memoryview, start: int, etag: str | None) -> None:
        def read(path: Path) -> int:
            with path.open("rb") as file:
                if etag is not None:
                    _check_etag(url, os.fstat(file.fileno()), etag)
                file.seek(start)
                return file.readinto(view)

        length = _on_disk(url, read)
        if length != len(view):
            raise short_object(url, start, length, len(view))

    def write(self, url: str, content: bytes) -> None:
        _on_disk(url, lambda path: write_atomically(path, content, is_durable=True))

    def delete(self, url: str) -> None:
        _on_disk(url, lambda path: path.unlink(missing_ok=True))

    def stat(self, url: str) -> Entry:
        return _on_disk(url, lambda path: _entry(url, path))

    def is_file(self, url: str) -> bool:
        return _path_of(url).is_file()

    def entries(self, prefix: str) -> list[Entry]:
        return _on_disk(prefix, lambda _: _list_files(prefix))


def _path_of(url: str) -> Path:
    return Path(unquote(urlsplit(url).path) if url.startswith("file://") else url)


def _on_disk(url: str, work: Callable[[Path], Result]) -> Result:
    """work(path), with its errors as DataError and StoreError."""
    try:
        return work(_path_of(url))
    except FileNotFoundError as error:
        raise DataError(f"{url}: got no such file; it must exist. Fix the path.") from error
    except OSError as error:
        raise StoreError(
            f"{url}: got {error.strerror}; the disk refused. Check its space and permissions."
        ) from error


def _list_files(prefix: str) -> list[Entry]:
    """URLs begin with `prefix` as it is written, quoted or not: one made of it and a name compares
    equal to the one listed. Without a last slash the folder of that name is listed, if any."""
    if not prefix.endswith("/") and _path_of(prefix).is_dir():
        prefix += "/"
    folder, _, name_prefix = prefix.rpartition("/")
    folder += "/" if folder or prefix.startswith("/") else ""
    root, is_url = _path_of(folder), prefix.startswith("file://")
    if is_url:
        name_prefix = unquote(name_prefix)
    entries = []
    for path in root.rglob("*"):
        name = path.relative_to(root).as_posix()
        if name.startswith(name_prefix) and path.is_file():
            url = folder + (quote(os.fsencode(name)) if is_url else name)
            entries.append(_entry(url, path))
    return entries


def _entry(url: str, path: Path) -> Entry:
    status = path.stat()
    return Entry(url, status.st_size, _etag(status))


def _etag(status: os.stat_result) -> str:
    return f"{ETAG_PREFIX}{status.st_size}-{status.st_mtime_ns}"


def _check_etag(url: str, status: os.stat_result, etag: str) -> None:
    if _etag(status) != etag:
        changed = datetime.datetime.fromtimestamp(status.st_mtime, datetime.UTC)
        raise DataError(
            f"{url}: got a file of {status.st_size} bytes, changed at {changed:%Y-%m-%d %H:%M:%S} "
            "UTC; its index, or this process when it began, knew another. The file was cut or "
            "replaced: put the old one back, or index the split again."
        )


def write_atomically(path: Path, *contents: bytes | memoryview, is_durable: bool) -> None:
    """Writes the file whole or not at all; if durable, it survives a power cut. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name[:16]}.{os.getpid()}.{random.getrandbits(32):08x}")
    try:
        with temporary.open("wb") as file:
            file.writelines(contents)
            if is_durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
