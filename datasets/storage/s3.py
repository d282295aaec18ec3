"""s3:// URLs. On boto3.

Credentials come from boto3's standard chain. botocore retries refused requests (5xx, timeouts,
resets before a response) with exponential backoff and jitter; `receive` continues broken bodies.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import Any, TypeVar

from datasets.errors import DataError
from datasets.storage import transfer
from datasets.storage.s3_errors import no_response, refusal
from datasets.storage.transfer import Entry, Response, receive

ATTEMPTS = 5  # of one request

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreConfig:
    """The service behind s3:// URLs. endpoint_url: None is AWS_ENDPOINT_URL, if set, else AWS."""

    endpoint_url: str | None = None
    region: str | None = None
    anonymous: bool = False
    addressing: str = "auto"  # "path", "virtual" or "auto"


class S3:
    """Thread-safe; connections are kept and shared."""

    def __init__(self, config: StoreConfig) -> None:
        self.config = config
        self._client: Any = None
        self._lock = Lock()

    def read(self, url: str) -> bytes:
        return bytes(self.read_into(url, None, 0, None))

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

        def get(byte_range: str | None, match: str | None) -> Response:
            options: dict[str, Any] = {"IfMatch": f'"{match}"'} if match else {}
            if byte_range:
                options["Range"] = byte_range
            result = self._call(url, lambda s3: s3.get_object(Bucket=bucket, Key=key, **options))
            return Response(result["ContentLength"], result["ETag"].strip('"'), result["Body"])

        broken = (
            IncompleteReadError, ReadTimeoutError, ResponseStreamingError, ConnectionClosedError,
            HTTPError, ConnectionError, TimeoutError,
        )  # fmt: skip
        return receive(get, url, view, start, etag, broken)

    def write(self, url: str, content: bytes) -> None:
        bucket, key = split_url(url)
        self._call(url, lambda s3: s3.put_object(Bucket=bucket, Key=key, Body=content))

    def delete(self, url: str) -> None:
        bucket, key = split_url(url)
        self._call(url, lambda s3: s3.delete_object(Bucket=bucket, Key=key))

    def stat(self, url: str) -> Entry:
        """Size and ETag of one object, from a listing: the response to HEAD has no body, and so
        cannot tell a missing bucket from a missing object."""
        bucket, key = split_url(url)
        page = self._call(url, lambda s3: s3.list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1))
        for item in page.get("Contents", []):
            if item["Key"] == key:
                return _entry(bucket, item)
        raise DataError(f"{url}: got no such object; it must exist. Fix the URL.")

    def entries(self, prefix: str) -> list[Entry]:
        bucket, key = split_url(prefix)

        def list_all(s3: Any) -> list[Entry]:
            pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=key)
            return [_entry(bucket, item) for page in pages for item in page.get("Contents", [])]

        return self._call(prefix, list_all)

    def _call(self, url: str, request: Callable[..., Result]) -> Result:
        """One request, with botocore's errors as DataError and StoreError."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return request(self._connect())
        except ClientError as error:
            raise refusal(url, self._service(), error, attempts=ATTEMPTS) from error
        except (BotoCoreError, ValueError) as error:  # ValueError: an endpoint that is no URL
            raise no_response(url, self._service(), error) from error

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
                        # Not every compatible store understands the newer checksum headers.
                        request_checksum_calculation="when_required",
                        response_checksum_validation="when_required",
                    ),
                )
            return self._client

    def _service(self) -> str:
        return self.config.endpoint_url or os.environ.get("AWS_ENDPOINT_URL") or "AWS"


def split_url(url: str) -> tuple[str, str]:
    """s3://bucket/key -> (bucket, key)."""
    bucket, _, key = url.removeprefix("s3://").partition("/")
    return bucket, key


def _entry(bucket: str, item: dict[str, Any]) -> Entry:
    return Entry(f"s3://{bucket}/{item['Key']}", item["Size"], item["ETag"].strip('"'))
