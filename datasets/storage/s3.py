"""s3:// URLs, on boto3. The only S3 client.

Credentials come from boto3's standard chain alone. Refused requests (5xx, timeouts, resets before
an answer) are repeated by botocore, five attempts with exponential backoff and jitter; bodies that
break are continued by `receive`.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from threading import Lock
from typing import Any, TypeVar

from datasets.errors import DataError, StoreBusyError, StoreError
from datasets.storage import transfer
from datasets.storage.transfer import Answer, Entry, changed_object, receive

ATTEMPTS = 5  # of one request

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreConfig:
    """Where s3:// URLs lie. endpoint_url None is AWS, or what AWS_ENDPOINT_URL says."""

    endpoint_url: str | None = None
    region: str | None = None
    anonymous: bool = False
    addressing: str = "auto"  # "path", "virtual" or "auto"


class S3:
    """The objects of one service. Thread-safe; connections are kept and shared."""

    def __init__(self, config: StoreConfig) -> None:
        self.config = config
        self._client: Any = None
        self._lock = Lock()

    def read_into(
        self, url: str, view: memoryview | None, start: int, etag: str | None
    ) -> memoryview:
        from botocore.exceptions import (
            ConnectionClosedError,
            IncompleteReadError,
            ReadTimeoutError,
            ResponseStreamingError,
        )
        from urllib3.exceptions import HTTPError

        bucket, key = split_url(url)

        def ask(first: int | None, last: int | None, match: str | None) -> Answer:
            options: dict[str, Any] = {"IfMatch": f'"{match}"'} if match else {}
            if first is not None:
                options["Range"] = f"bytes={first}-{'' if last is None else last}"
            response = self._call(url, lambda s3: s3.get_object(Bucket=bucket, Key=key, **options))
            return Answer(response["ContentLength"], response["ETag"].strip('"'), response["Body"])

        broken = (
            IncompleteReadError, ReadTimeoutError, ResponseStreamingError, ConnectionClosedError,
            HTTPError, ConnectionError, TimeoutError,
        )  # fmt: skip
        return receive(ask, url, view, start, etag, broken)

    def write(self, url: str, content: bytes) -> None:
        bucket, key = split_url(url)
        self._call(url, lambda s3: s3.put_object(Bucket=bucket, Key=key, Body=content))

    def delete(self, url: str) -> None:
        bucket, key = split_url(url)
        self._call(url, lambda s3: s3.delete_object(Bucket=bucket, Key=key))

    def stat(self, url: str) -> Entry:
        """Size and ETag of one object, by the first entry of a listing: HEAD answers have no
        body, and so cannot tell a missing bucket from a missing object."""
        bucket, key = split_url(url)
        page = self._call(url, lambda s3: s3.list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1))
        for found in page.get("Contents", []):
            if found["Key"] == key:
                return _entry(bucket, found)
        raise DataError(f"{url}: got no such object; it must exist. Mend the URL.")

    def entries(self, prefix: str) -> Iterator[Entry]:
        bucket, key = split_url(prefix)
        token: dict[str, str] = {}
        while True:
            page = self._call(
                prefix,
                lambda s3, token=token: s3.list_objects_v2(Bucket=bucket, Prefix=key, **token),
            )
            for found in page.get("Contents", []):
                yield _entry(bucket, found)
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

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
                        connect_timeout=transfer.CONNECT_LIMIT_S,
                        read_timeout=transfer.SILENCE_LIMIT_S,
                        max_pool_connections=transfer.CONNECTIONS,
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
        if status in (412, 416):
            return changed_object(url, status)
        if status in (401, 403):
            return StoreError(
                f"{url}: got {code or status} from {self._where()}; the store knows other "
                "credentials. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE) "
                "to ones that may use this bucket."
            )
        failed = StoreBusyError if status >= 500 else StoreError
        return failed(
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


def _entry(bucket: str, found: dict[str, Any]) -> Entry:
    return Entry(f"s3://{bucket}/{found['Key']}", found["Size"], found["ETag"].strip('"'))
