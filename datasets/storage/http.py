"""http(s):// URLs, read only: plain web servers that answer byte ranges. On urllib3."""

from threading import Lock
from typing import Any
from urllib.parse import urlsplit

from datasets.errors import DataError, StoreBusyError, StoreError
from datasets.storage import transfer
from datasets.storage.transfer import Answer, Entry, changed_object, receive

ATTEMPTS = 5  # of one request
REPEATED = (429, 500, 502, 503, 504)


class Http:
    """Objects behind URLs. Thread-safe; connections are kept per host and shared."""

    def __init__(self) -> None:
        self._pool: Any = None
        self._lock = Lock()

    def read_into(
        self, url: str, view: memoryview | None, start: int, etag: str | None
    ) -> memoryview:
        from urllib3.exceptions import HTTPError

        def ask(first: int | None, last: int | None, match: str | None) -> Answer:
            headers = {"If-Match": f'"{match}"'} if match else {}
            if first is not None:
                headers["Range"] = f"bytes={first}-{'' if last is None else last}"
            response = self._request("GET", url, headers)
            if first is not None and response.status != 206:
                response.close()
                raise StoreError(
                    f"{shown(url)}: got HTTP {response.status} to a request for a byte range; the "
                    "server must answer ranges with 206. Copy the shards to one that does."
                )
            found = _etag(response)
            if match and found != match:  # servers may ignore If-Match
                response.close()
                raise changed_object(shown(url), 412)
            return Answer(int(response.headers["Content-Length"]), found, response)

        return receive(ask, shown(url), view, start, etag, (HTTPError, OSError))

    def stat(self, url: str) -> Entry:
        response = self._request("HEAD", url, {})
        response.close()
        if "Content-Length" not in response.headers:
            raise StoreError(
                f"{shown(url)}: got an answer without Content-Length; shards are read by ranges of "
                "a known size. Copy them to a server that states it."
            )
        return Entry(url, int(response.headers["Content-Length"]), _etag(response))

    def _request(self, method: str, url: str, headers: dict[str, str]) -> Any:
        from urllib3.exceptions import HTTPError

        headers["Accept-Encoding"] = "identity"
        try:
            response = self._connect().request(
                method, url, headers=headers, preload_content=False, decode_content=False
            )
        except HTTPError as error:
            raise StoreError(
                f"{shown(url)}: got no answer ({type(error).__name__}); the server must be "
                "reachable. Check the URL and the network."
            ) from error
        if response.status < 400:
            return response
        response.close()
        if response.status in (404, 410):
            raise DataError(f"{shown(url)}: got no such object; it must exist. Mend the URL.")
        if response.status in (412, 416):
            raise changed_object(shown(url), response.status)
        failed = StoreBusyError if response.status in REPEATED else StoreError
        raise failed(
            f"{shown(url)}: got HTTP {response.status}; the server must give the object. "
            "Check that the URL may be read."
        )

    def _connect(self) -> Any:
        with self._lock:
            if self._pool is None:
                from urllib3 import PoolManager, Retry, Timeout

                self._pool = PoolManager(
                    maxsize=transfer.CONNECTIONS,
                    timeout=Timeout(
                        connect=transfer.CONNECT_LIMIT_S, read=transfer.SILENCE_LIMIT_S
                    ),
                    retries=Retry(
                        total=ATTEMPTS,
                        status_forcelist=REPEATED,
                        allowed_methods=("GET", "HEAD"),
                        backoff_factor=transfer.FIRST_PAUSE_S,
                        backoff_jitter=transfer.FIRST_PAUSE_S,
                        raise_on_status=False,
                    ),
                )
            return self._pool


def shown(url: str) -> str:
    """The URL without its query and user part, which may hold a signature or a password."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _etag(response: Any) -> str | None:
    """The strong ETag, if the server gives one; weak ones do not promise equal bytes."""
    etag = response.headers.get("ETag")
    return etag.strip('"') if etag and not etag.startswith("W/") else None
