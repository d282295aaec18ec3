"""http(s):// URLs of web servers that answer byte ranges; read only. On urllib3."""

from threading import Lock
from typing import Any
from urllib.parse import unquote, urlsplit

from urllib3 import PoolManager, ProxyManager, Retry, Timeout, make_headers
from urllib3.exceptions import HTTPError

from datasets.errors import DataError, StoreBusyError, StoreError
from datasets.storage import transfer
from datasets.storage.proxy import proxy_of, through_proxy
from datasets.storage.transfer import Entry, Response, changed_object, check_range, receive

ATTEMPTS = 5  # of one request
RETRIED = (429, 500, 502, 503, 504)


class Http:
    """Thread-safe; connections are kept per host and shared."""

    def __init__(self) -> None:
        self._pools: dict[str | None, PoolManager] = {}  # by the proxy that requests go through
        self._lock = Lock()

    def _pool(self, url: str) -> PoolManager:
        proxy = proxy_of(url)
        with self._lock:
            if proxy not in self._pools:
                self._pools[proxy] = self._new_pool(proxy)
            return self._pools[proxy]

    def _new_pool(self, proxy: str | None) -> PoolManager:
        options: dict[str, Any] = {
            "maxsize": transfer.CONNECTIONS,
            "timeout": Timeout(connect=transfer.CONNECT_LIMIT_S, read=transfer.SILENCE_LIMIT_S),
            "retries": Retry(
                total=ATTEMPTS,
                status_forcelist=RETRIED,
                allowed_methods=("GET", "HEAD"),
                backoff_factor=transfer.FIRST_PAUSE_S,
                backoff_jitter=transfer.FIRST_PAUSE_S,
                raise_on_status=False,
            ),
        }
        if proxy is None:
            return PoolManager(**options)
        login = unquote(urlsplit(proxy).netloc.rpartition("@")[0])
        headers = make_headers(proxy_basic_auth=login) if login else None
        return ProxyManager(proxy, proxy_headers=headers, **options)

    def read(self, url: str) -> bytes:
        return bytes(self.read_into(url, None, 0, None))

    def read_into(
        self, url: str, view: memoryview | None, start: int, etag: str | None
    ) -> memoryview:
        def get(byte_range: str | None, match: str | None) -> Response:
            headers = {"If-Match": f'"{match}"'} if match else {}
            if byte_range:
                headers["Range"] = byte_range
            response = self._request("GET", url, headers)
            try:
                length = _content_length(url, response)
                if byte_range:
                    content_range = response.headers.get("Content-Range", "")
                    check_range(redacted(url), byte_range, response.status, length, content_range)
            except StoreError:
                response.close()
                raise
            current = _etag(response)
            if match and current != match:  # servers may ignore If-Match
                response.close()
                raise changed_object(redacted(url), 412)
            return Response(length, current, response)

        return receive(get, redacted(url), view, start, etag, (HTTPError, OSError))

    def stat(self, url: str) -> Entry:
        response = self._request("HEAD", url, {})
        response.close()
        return Entry(url, _content_length(url, response), _etag(response))

    def _request(self, method: str, url: str, headers: dict[str, str]) -> Any:
        headers["Accept-Encoding"] = "identity"
        try:
            response = self._pool(url).request(
                method, url, headers=headers, preload_content=False, decode_content=False
            )
        except HTTPError as error:
            proxy = through_proxy(url)
            check = "the proxy, or add the host to NO_PROXY" if proxy else "the URL and the network"
            raise StoreError(
                f"{redacted(url)}: got no answer{proxy} ({type(error).__name__}); the server must "
                f"be reachable. Check {check}."
            ) from error
        if response.status < 400:
            return response
        response.close()
        if response.status in (404, 410):
            raise DataError(f"{redacted(url)}: got no such object; it must exist. Fix the URL.")
        if response.status in (412, 416):
            raise changed_object(redacted(url), response.status)
        kind = StoreBusyError if response.status in RETRIED else StoreError
        raise kind(
            f"{redacted(url)}: got HTTP {response.status}; the server must give the object. "
            "Check that the URL may be read."
        )


def redacted(url: str) -> str:
    """The URL without its query and user part, which may hold a signature or a password."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _content_length(url: str, response: Any) -> int:
    if "Content-Length" not in response.headers:
        raise StoreError(
            f"{redacted(url)}: got an answer without Content-Length; objects are read with a known "
            "size. Copy them to a server that states it."
        )
    return int(response.headers["Content-Length"])


def _etag(response: Any) -> str | None:
    """The strong ETag, if there is one; a weak one does not promise equal bytes."""
    etag = response.headers.get("ETag")
    return etag.strip('"') if etag and not etag.startswith("W/") else None
