"""Object storage as whole objects and byte ranges: s3://, file:// (and plain paths), http(s)://.

Every call is bounded: 5 s to connect, 30 s of silence, a few attempts. http(s) is read only.
"""

from functools import partial

from datasets.errors import DataError, StoreError
from datasets.storage.cache import DiskCache
from datasets.storage.disk import ETAG_PREFIX, Disk
from datasets.storage.http import Http, redacted
from datasets.storage.s3 import S3, StoreConfig
from datasets.storage.transfer import Entry, buffer

__all__ = ["Entry", "Store", "StoreConfig"]


class Store:
    """Reads and writes objects by URL. Thread-safe; pickles without its connections.

    cache: keeps parts of the remote objects that are read with their size and ETag.
    """

    def __init__(self, config: StoreConfig | None = None, cache: DiskCache | None = None) -> None:
        self.config, self.cache = config or StoreConfig(), cache
        self._s3, self._http, self._disk = S3(self.config), Http(), Disk()

    def __reduce__(self) -> tuple[type["Store"], tuple[StoreConfig, DiskCache | None]]:
        return Store, (self.config, self.cache)

    def read(self, url: str) -> bytes:
        """The whole object. Raises DataError (not there), StoreError."""
        return self._backend(url).read(url)

    def read_into(
        self,
        url: str,
        view: memoryview,
        start: int,
        etag: str | None = None,
        size_bytes: int | None = None,
    ) -> None:
        """Fills `view` with the object's bytes from `start`.

        etag: as `stat` or `list` gave it; that of another kind of store is ignored. Raises
        DataError if the object is missing, too short or no longer has `etag`; StoreError.
        """
        if len(view) == 0:
            return
        backend = self._backend(url)
        if etag is not None and etag.startswith(ETAG_PREFIX) != (backend is self._disk):
            etag = None  # of the disk or the server that the object was copied from
        fetch = partial(backend.read_into, url, etag=etag)
        if self.cache is None or backend is self._disk or etag is None or size_bytes is None:
            fetch(view, start)
        else:
            self.cache.read_into(f"{url}\0{etag}", size_bytes, start, view, fetch)

    def read_range(self, url: str, start: int, length: int, etag: str | None = None) -> memoryview:
        """Exactly `length` bytes from `start`. Raises as read_into."""
        view = buffer(length)
        self.read_into(url, view, start, etag)
        return view

    def write(self, url: str, content: bytes) -> None:
        """Stores the object whole or not at all. Raises StoreError."""
        self._writable_backend(url).write(url, content)

    def delete(self, url: str) -> None:
        """Removes the object, if it is there. Raises StoreError."""
        self._writable_backend(url).delete(url)

    def list(self, prefix: str) -> list[Entry]:
        """Every object whose URL begins with `prefix`, sorted; URLs begin as `prefix` is written.

        Raises StoreError, for http(s) always.
        """
        backend = self._backend(prefix)
        if isinstance(backend, Http):
            raise StoreError(
                f"{redacted(prefix)}: got a prefix; a web server lists no files. Name the shards: "
                "https://host/train-{000000..000099}.tar."
            )
        return sorted(backend.entries(prefix), key=lambda entry: entry.url)

    def stat(self, url: str) -> Entry:
        """Size and ETag of one object; a file's is made of its size and time. Raises DataError (not
        there), StoreError."""
        return self._backend(url).stat(url)

    def exists(self, url: str) -> bool:
        """Whether there is an object of exactly this URL. Raises StoreError, also for a missing
        bucket."""
        backend = self._backend(url)
        if isinstance(backend, Disk):
            return backend.is_file(url)
        try:
            backend.stat(url)
        except DataError:
            return False
        return True

    def is_on_disk(self, url: str) -> bool:
        """Whether the URL names a file of this machine."""
        return self._backend(url) is self._disk

    def _backend(self, url: str) -> S3 | Http | Disk:
        if url.startswith("s3://"):
            return self._s3
        return self._http if url.startswith(("http://", "https://")) else self._disk

    def _writable_backend(self, url: str) -> S3 | Disk:
        backend = self._backend(url)
        if isinstance(backend, Http):
            raise StoreError(
                f"{redacted(url)}: got a URL to write to; http(s) is read only. Write to s3:// or "
                "file://."
            )
        return backend
