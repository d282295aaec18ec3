"""Object storage as whole objects and byte ranges: s3://, file:// (and plain paths), http(s)://.

Every call is bounded: 5 s to connect, 30 s of silence, a handful of attempts. http(s) is read only.
"""

from datasets.errors import DataError, StoreError
from datasets.storage.cache import DiskCache
from datasets.storage.disk import disk_path, files_below, on_disk, read_part, write_whole
from datasets.storage.http import Http, shown
from datasets.storage.s3 import S3, StoreConfig
from datasets.storage.transfer import Entry, buffer, short_object

__all__ = ["Entry", "Store", "StoreConfig"]


class Store:
    """Reads and writes objects by URL. Thread-safe; pickles without its connections.

    cache: where parts of remote objects are kept that are read with their size and ETag.
    """

    def __init__(self, config: StoreConfig | None = None, cache: DiskCache | None = None) -> None:
        self.config, self.cache = config or StoreConfig(), cache
        self._s3 = S3(self.config)
        self._http = Http()

    def __repr__(self) -> str:
        return f"Store({self.config.endpoint_url or 'AWS'})"

    def __reduce__(self) -> tuple[type["Store"], tuple[StoreConfig, DiskCache | None]]:
        return Store, (self.config, self.cache)

    def read(self, url: str) -> bytes:
        """The whole object. Raises DataError (not there), StoreError."""
        remote = self._remote(url)
        if remote is None:
            return on_disk(url, lambda path: path.read_bytes())
        return bytes(remote.read_into(url, None, 0, None))

    def read_into(
        self,
        url: str,
        view: memoryview,
        start: int,
        etag: str | None = None,
        size_bytes: int | None = None,
    ) -> None:
        """Fills `view` with the object's bytes from `start`.

        Raises DataError where the object is not there, is shorter, or no longer has `etag`;
        StoreError.
        """
        if len(view) == 0:
            return
        remote = self._remote(url)
        if remote is not None:

            def fetch(first: int, part: memoryview) -> None:
                remote.read_into(url, part, first, etag)

            if self.cache is None or etag is None or size_bytes is None:
                fetch(start, view)
            else:
                self.cache.read_into(f"{url}\0{etag}", size_bytes, start, view, fetch)
            return
        got = on_disk(url, lambda path: read_part(path, start, view))
        if got != len(view):
            raise DataError(short_object(url, start, got, len(view)))

    def read_range(self, url: str, start: int, length: int, etag: str | None = None) -> memoryview:
        """Exactly `length` bytes from `start`. Raises as read_into."""
        view = buffer(length)
        self.read_into(url, view, start, etag)
        return view

    def write(self, url: str, content: bytes) -> None:
        """Stores the object whole or not at all. Raises StoreError."""
        if self._writable(url) is None:
            on_disk(url, lambda path: write_whole(path, content))
        else:
            self._s3.write(url, content)

    def delete(self, url: str) -> None:
        """Removes the object; no error where it is not there. Raises StoreError."""
        if self._writable(url) is None:
            on_disk(url, lambda path: path.unlink(missing_ok=True))
        else:
            self._s3.delete(url)

    def list(self, prefix: str) -> list[Entry]:
        """Every object whose URL begins with `prefix`, sorted; URLs begin as `prefix` is written.

        Raises StoreError, also for http(s), which lists nothing.
        """
        remote = self._remote(prefix)
        if remote is None:
            found = (
                Entry(url, path.stat().st_size, None)
                for url, path in on_disk(prefix, lambda _: files_below(prefix))
            )
        elif remote is self._http:
            raise StoreError(
                f"{shown(prefix)}: got a prefix; a web server lists no files. Name the shards: "
                "https://host/train-{000000..000099}.tar."
            )
        else:
            found = (entry for entry in self._s3.entries(prefix))
        return sorted(found, key=lambda entry: entry.url)

    def stat(self, url: str) -> Entry:
        """Size and ETag of one object. Raises DataError (not there), StoreError."""
        remote = self._remote(url)
        if remote is None:
            return Entry(url, on_disk(url, lambda path: path.stat().st_size), None)
        return remote.stat(url)

    def exists(self, url: str) -> bool:
        """Whether this very object is there. Raises StoreError (also for a missing bucket)."""
        remote = self._remote(url)
        if remote is None:
            return disk_path(url).is_file()
        try:
            remote.stat(url)
        except DataError:
            return False
        return True

    def _remote(self, url: str) -> S3 | Http | None:
        """What reads the URL; None for this machine's disk."""
        if url.startswith("s3://"):
            return self._s3
        return self._http if url.startswith(("http://", "https://")) else None

    def _writable(self, url: str) -> S3 | None:
        """What writes the URL; None for this machine's disk."""
        if self._remote(url) is self._http:
            raise StoreError(
                f"{shown(url)}: got a place to write; http(s) is read only. Write to s3:// or "
                "file://."
            )
        return self._s3 if url.startswith("s3://") else None
