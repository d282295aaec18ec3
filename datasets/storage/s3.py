"""s3:// URLs. On boto3.

Credentials come from boto3's standard chain. botocore retries refused requests (5xx, timeouts,
resets before a response) with exponential backoff and jitter; `receive` continues broken bodies.
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import Any, TypeVar

from datasets.errors import DataError, StoreError
from datasets.storage import transfer
from datasets.storage.s3_errors import EXPIRED, endless_redirects, no_response, refusal
from datasets.storage.transfer import Entry, Response, check_range, receive

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
            try:
                self._check_answer(url, result, {"ETag", "ContentLength"})
                if byte_range:
                    status = result["ResponseMetadata"]["HTTPStatusCode"]
                    content_range = result.get("ContentRange", "")
                    check_range(url, byte_range, status, result["ContentLength"], content_range)
            except StoreError:
                result["Body"].close()
                raise
            return Response(result["ContentLength"], result["ETag"].strip('"'), result["Body"])

        broken = (
            IncompleteReadError, ReadTimeoutError, ResponseStreamingError, ConnectionClosedError,
            HTTPError, ConnectionError, TimeoutError,
        )  # fmt: skip
        return receive(get, url, view, start, etag, broken)

    def write(self, url: str, content: bytes) -> None:
        bucket, key = split_url(url)
        result = self._call(url, lambda s3: s3.put_object(Bucket=bucket, Key=key, Body=content))
        self._check_answer(url, result, {"ETag"})

    def delete(self, url: str) -> None:
        bucket, key = split_url(url)
        self._call(url, lambda s3: s3.delete_object(Bucket=bucket, Key=key))

    def stat(self, url: str) -> Entry:
        """Size and ETag of one object, from a listing: the response to HEAD has no body, and so
        cannot tell a missing bucket from a missing object."""
        bucket, key = split_url(url)
        page = self._call(url, lambda s3: s3.list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1))
        self._check_answer(url, page, {"IsTruncated"})
        for item in page.get("Contents", []):
            if item["Key"] == key:
                return _entry(bucket, item)
        raise DataError(f"{url}: got no such object; it must exist. Fix the URL.")

    def entries(self, prefix: str) -> list[Entry]:
        bucket, key = split_url(prefix)

        def list_all(s3: Any) -> list[Entry]:
            entries = []
            for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=key):
                self._check_answer(prefix, page, {"IsTruncated"})
                entries += [_entry(bucket, item) for item in page.get("Contents", [])]
            return entries

        return self._call(prefix, list_all)

    def _call(self, url: str, request: Callable[..., Result]) -> Result:
        """One request, with botocore's errors as DataError and StoreError.

        A session token that has expired is read anew, once: botocore refreshes those of roles and
        processes, but keeps what it read from a file.
        """
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            client = self._connect()
            try:
                return request(client)
            except ClientError as error:
                if error.response.get("Error", {}).get("Code") not in EXPIRED:
                    raise
                self._forget(client)
                return request(self._connect())
        except ClientError as error:
            raise refusal(url, self._service(), error, attempts=ATTEMPTS) from error
        except RecursionError as error:  # botocore follows each redirect to find the region
            raise endless_redirects(url, self._service()) from error
        except (BotoCoreError, ValueError) as error:  # ValueError: an endpoint that is no URL
            raise no_response(url, self._service(), error) from error

    def _check_answer(self, url: str, result: dict[str, Any], names: set[str]) -> None:
        """Raises StoreError for a 200 of something that is no S3 service, such as a login page: it
        would pass for an empty list, or for an object that was stored."""
        if not names <= result.keys():
            raise StoreError(
                f"{url}: got an answer without {', '.join(sorted(names - result.keys()))} from "
                f"{self._service()}; an S3 service gives it. Set storage.endpoint_url to the "
                "service itself, not to a page in front of it."
            )

    def _forget(self, client: Any) -> None:
        """The next request connects anew, unless another thread's already has."""
        with self._lock:
            if self._client is client:
                self._client = None

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
        named = (os.environ.get(f"AWS_ENDPOINT_URL{end}") for end in ("_S3", ""))  # as botocore
        url = self.config.endpoint_url or next(filter(None, named), None)
        return re.sub(r"//[^/]*@", "//", url) if url else "AWS"


def split_url(url: str) -> tuple[str, str]:
    """s3://bucket/key -> (bucket, key)."""
    bucket, _, key = url.removeprefix("s3://").partition("/")
    return bucket, key


def _entry(bucket: str, item: dict[str, Any]) -> Entry:
    etag = item.get("ETag")
    return Entry(f"s3://{bucket}/{item['Key']}", item["Size"], etag and etag.strip('"'))
