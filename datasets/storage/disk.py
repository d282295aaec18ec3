"""file:// URLs and plain paths, as the store reads and writes them."""

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, unquote, urlsplit

from datasets.errors import DataError, StoreError

Result = TypeVar("Result")


def disk_path(url: str) -> Path:
    return Path(unquote(urlsplit(url).path) if url.startswith("file://") else url)


def on_disk(url: str, work: Callable[[Path], Result]) -> Result:
    try:
        return work(disk_path(url))
    except FileNotFoundError as error:
        raise DataError(f"{url}: got no such file; it must exist. Mend the path.") from error
    except OSError as error:
        raise StoreError(
            f"{url}: got {error.strerror}; the disk refused. Check its space and permissions."
        ) from error


def files_below(prefix: str) -> list[tuple[str, Path]]:
    """(URL, path) of each file whose URL begins with `prefix`, a file:// URL or a plain path.

    URLs begin with `prefix` as it is written, quoted or not: one made of it and a name compares
    equal to the one found here. Without a last slash the folder of that name is meant, if any.
    """
    if not prefix.endswith("/") and disk_path(prefix).is_dir():
        prefix += "/"
    folder, _, beginning = prefix.rpartition("/")
    folder += "/" if folder or prefix.startswith("/") else ""
    start, is_url = disk_path(folder), prefix.startswith("file://")
    if is_url:
        beginning = unquote(beginning)
    found = []
    for path in start.rglob("*"):
        name = path.relative_to(start).as_posix()
        if name.startswith(beginning) and path.is_file():
            found.append((folder + (quote(os.fsencode(name)) if is_url else name), path))
    return found


def read_part(path: Path, start: int, view: memoryview) -> int:
    """Fills `view` from byte `start` as far as the file goes; -> the bytes read."""
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        reached = 0
        while reached < len(view) and (got := file.readinto(view[reached:])):
            reached += got
        return reached


def write_whole(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{random.getrandbits(32):08x}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
