"""Object storage as whole objects and byte ranges: s3:// and file://. The only S3 client.

Credentials come from boto3's standard chain alone. Every call is bounded: 5 s to connect, 30 s of
silence, five attempts with exponential backoff and jitter. botocore retries a refused request but
never a broken body, so a body that ends early is continued here from the byte reached, with
If-Match on its ETag: an object replaced meanwhile is noticed, nothing short passes.
"""

import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from threading import Lock
from typing import Any, TypeVar

from datasets.disk import disk_path, files_below, on_disk, read_part, short_object, write_whole
from datasets.errors import DataError, StoreError

CONNECT_LIMIT_S = 5
SILENCE_LIMIT_S = 30
ATTEMPTS = 5
FIRST_PAUSE_S = 0.2
READ_BYTES = 2**20  # one read call: 10 KiB reads cost four times the CPU (measured)
CONNECTIONS = 32

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreConfig:
    """Where s3:// URLs lie. endpoint_url None is AWS, or what AWS_ENDPOINT_URL says."""

    endpoint_url: str | None = None
    region: str | None = None
    anonymous: bool = False
    addressing: str = "auto"  # "path", "virtual" or "auto"


@dataclass(frozen=True, slots=True)
class Entry:
    """One stored object."""

    url: str
    size_bytes: int
    etag: str | None


class Store:
    """Reads and writes objects by URL. Thread-safe; pickles without its connection."""

    def __init__(self, config: StoreConfig | None = None) -> None:
        self.config = config or StoreConfig()
        self._client: Any = None
        self._lock = Lock()

    def __repr__(self) -> str:
        return f"Store({self.config.endpoint_url or 'AWS'})"

    def __getstate__(self) -> StoreConfig:
        return self.config

    def __setstate__(self, config: StoreConfig) -> None:
        self.__init__(config)  # type: ignore[misc]

    def read(self, url: str) -> bytes:
        """The whole object. Raises DataError (not there), StoreError."""
        if not url.startswith("s3://"):
            return on_disk(url, lambda path: path.read_bytes())
        return self._get(url, None, None, None)

    def read_range(self, url: str, start: int, length: int, etag: str | None = None) -> bytes:
        """Exactly `length` bytes from `start`.

        Raises DataError where the object is not there, is shorter, or no longer has `etag`;
        StoreError.
        """
        if length == 0:
            return b""
        if not url.startswith("s3://"):
            content = on_disk(url, lambda path: read_part(path, start, length))
            if len(content) != length:
                raise DataError(short_object(url, start, len(content), length))
            return content
        return self._get(url, start, length, etag)

    def write(self, url: str, content: bytes) -> None:
        """Stores the object whole or not at all. Raises StoreError."""
        if not url.startswith("s3://"):
            on_disk(url, lambda path: write_whole(path, content))
            return
        bucket, key = split_url(url)
        self._call(url, lambda s3: s3.put_object(Bucket=bucket, Key=key, Body=content))

    def delete(self, url: str) -> None:
        """Removes the object; no error where it is not there. Raises StoreError."""
        if not url.startswith("s3://"):
            on_disk(url, lambda path: path.unlink(missing_ok=True))
            return
        bucket, key = split_url(url)
        self._call(url, lambda s3: s3.delete_object(Bucket=bucket, Key=key))

    def list(self, prefix: str) -> list[Entry]:
        """Every object whose URL begins with `prefix`, sorted; URLs begin as `prefix` is written.

        Raises StoreError.
        """
        return sorted(self._entries(prefix), key=lambda entry: entry.url)

    def exists(self, url: str) -> bool:
        """Whether this very object is there. Raises StoreError (also for a missing bucket)."""
        if not url.startswith("s3://"):
            return disk_path(url).is_file()
        bucket, key = split_url(url)
        page = self._call(url, lambda s3: s3.list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1))
        return any(found["Key"] == key for found in page.get("Contents", []))

    def _entries(self, prefix: str) -> Iterator[Entry]:
        if not prefix.startswith("s3://"):
            for url, path in on_disk(prefix, lambda _: files_below(prefix)):
                yield Entry(url, path.stat().st_size, None)
            return
        bucket, key = split_url(prefix)
        token: dict[str, str] = {}
        while True:
            page = self._call(
                prefix,
                lambda s3, token=token: s3.list_objects_v2(Bucket=bucket, Prefix=key, **token),
            )
            for found in page.get("Contents", []):
                etag = found["ETag"].strip('"')
                yield Entry(f"s3://{bucket}/{found['Key']}", found["Size"], etag)
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def _get(self, url: str, start: int | None, length: int | None, etag: str | None) -> bytes:
        """One object or range, continued from the byte reached where its body breaks."""
        from botocore.exceptions import (
            ConnectionClosedError,
            IncompleteReadError,
            ReadTimeoutError,
            ResponseStreamingError,
        )
        from urllib3.exceptions import HTTPError

        broken = (
            IncompleteReadError,
            ReadTimeoutError,
            ResponseStreamingError,
            ConnectionClosedError,
            HTTPError,
            ConnectionError,
            TimeoutError,
        )
        bucket, key = split_url(url)
        first = start or 0
        pieces: list[bytes] = []
        reached = 0
        wanted = length
        reason = "the body ended early"
        for attempt in range(ATTEMPTS):
            options: dict[str, Any] = {"IfMatch": f'"{etag}"'} if etag else {}
            if start is not None or reached:
                end = "" if wanted is None else str(first + wanted - 1)
                options["Range"] = f"bytes={first + reached}-{end}"
            response = self._call(
                url, lambda s3, options=options: s3.get_object(Bucket=bucket, Key=key, **options)
            )
            etag = etag or response["ETag"].strip('"')
            if wanted is None:
                wanted = int(response["ContentLength"])
            elif reached == 0 and int(response["ContentLength"]) < wanted:
                raise DataError(short_object(url, first, int(response["ContentLength"]), wanted))
            body = response["Body"]
            try:
                while reached < wanted:
                    piece = body.read(min(READ_BYTES, wanted - reached))
                    if not piece:
                        break
                    pieces.append(piece)
                    reached += len(piece)
            except broken as error:
                reason = type(error).__name__
            finally:
                body.close()
            if reached == wanted:
                return b"".join(pieces)
            time.sleep(_pause_s(attempt))
        raise StoreError(
            f"{url}: got {reached} of {wanted} bytes in {ATTEMPTS} attempts ({reason}); a body "
            "must arrive whole. Check the network between this machine and the store."
        )

    def _call(self, url: str, request: Callable[..., Result]) -> Result:
        """One request; what botocore raises becomes one line."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return request(self._connect())
        except ClientError as error:
            raise self._refused(url, error) from error
        except BotoCoreError as error:
            raise self._unreachable(url, error) from error

    def _connect(self) -> Any:
        with self._lock:
            if self._client is None:
                import boto3
                from botocore import UNSIGNED
                from botocore.config import Config

                self._client = boto3.session.Session().client(
                    "s3",
                    endpoint_url=self.config.endpoint_url,
                    region_name=self.config.region,
                    config=Config(
                        connect_timeout=CONNECT_LIMIT_S,
                        read_timeout=SILENCE_LIMIT_S,
                        max_pool_connections=CONNECTIONS,
                        retries={"total_max_attempts": ATTEMPTS, "mode": "standard"},
                        s3={"addressing_style": self.config.addressing},
                        signature_version=UNSIGNED if self.config.anonymous else None,
                        # Newer checksum headers are not understood by every compatible store.
                        request_checksum_calculation="when_required",
                        response_checksum_validation="when_required",
                    ),
                )
            return self._client

    def _refused(self, url: str, error: Any) -> DataError | StoreError:
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        bucket, _ = split_url(url)
        if code == "NoSuchBucket":
            return StoreError(
                f"{url}: got no bucket {bucket} at {self._where()}; the bucket must exist. "
                "Create it, or mend the URL."
            )
        if code in ("NoSuchKey", "404") or status == 404:
            return DataError(f"{url}: got no such object; it must exist. Mend the URL.")
        if status == 412:
            return DataError(
                f"{url}: got another ETag than its index says; the object was replaced. "
                "Index the split again."
            )
        if status == 416:
            return DataError(
                f"{url}: got fewer bytes than its index says; the object was cut or replaced. "
                "Upload it again, or index the split again."
            )
        if status in (401, 403):
            return StoreError(
                f"{url}: got {code or status} from {self._where()}; the store knows other "
                "credentials. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE) "
                "to ones that may use this bucket."
            )
        return StoreError(
            f"{url}: got {code or 'an error'} (HTTP {status}) from {self._where()} after "
            f"{ATTEMPTS} attempts; the store failed. Look at its log and its disk space."
        )

    def _unreachable(self, url: str, error: Exception) -> StoreError:
        name = type(error).__name__
        if "Credential" in name:
            return StoreError(
                f"{url}: got no credentials ({name}); the store asks for them. Set "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE), or "
                "storage.anonymous=true for a public bucket."
            )
        return StoreError(
            f"{url}: got no answer from {self._where()} ({name}); the store must be reachable. "
            "Check storage.endpoint_url and the network."
        )

    def _where(self) -> str:
        return self.config.endpoint_url or os.environ.get("AWS_ENDPOINT_URL") or "AWS"


def split_url(url: str) -> tuple[str, str]:
    """s3://bucket/key -> (bucket, key)."""
    bucket, _, key = url.removeprefix("s3://").partition("/")
    return bucket, key


def _pause_s(attempt: int) -> float:
    """Full jitter: uniform up to 0.2 s, 0.4 s, 0.8 s, ..."""
    return random.uniform(0, FIRST_PAUSE_S * 2**attempt)
