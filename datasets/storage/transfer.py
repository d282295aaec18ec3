"""Downloads that survive broken connections. Shared by S3 and HTTP.

Client libraries retry a refused request but not a broken body: boto3 raises in its middle, its raw
stream just ends early. Here the rest is requested from the byte reached, with If-Match on the ETag,
so that an object replaced meanwhile is noticed and a short body never passes for a whole one.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from datasets.errors import DataError, StoreBusyError, StoreError

CONNECT_LIMIT_S = 5.0
SILENCE_LIMIT_S = 30.0
ATTEMPTS = 6  # consecutive requests that bring nothing new
FIRST_PAUSE_S = 0.2
READ_BYTES = 2**20  # of one read call: 10 KiB reads cost four times the CPU (measured)
CAREFUL_READ_BYTES = 2**13  # of the first after a break: a call that breaks loses its bytes
CONNECTIONS = 32  # kept open to one host


@dataclass(frozen=True, slots=True)
class Response:
    """length: bytes of the body. etag: of the object. body: has read(amount) -> bytes, close()."""

    length: int
    etag: str | None
    body: Any


@dataclass(frozen=True, slots=True)
class Entry:
    """One stored object."""

    url: str
    size_bytes: int
    etag: str | None


# (Range header or None for the whole object, ETag to match or None) -> response. Raises DataError
# (missing, replaced, too short), StoreError (refused).
Request = Callable[[str | None, str | None], Response]


def receive(
    request: Request,
    url: str,
    view: memoryview | None,
    start: int,
    etag: str | None,
    broken: tuple[type[Exception], ...],
) -> memoryview:
    """Fills `view` with the bytes from `start`; without a view, the whole object.

    broken: what the client raises for a broken body. Raises DataError, StoreError.
    """
    is_whole = view is None
    reached = failures = 0
    amount = READ_BYTES
    reason = "the body ended early"
    while view is None or reached < len(view):
        if failures == ATTEMPTS:
            size = "all" if view is None else len(view)
            raise StoreError(
                f"{url}: got {reached} of {size} bytes and then {ATTEMPTS} times nothing "
                f"({reason}); a body must arrive whole. Check the network between this machine "
                "and the store."
            )
        if failures:
            time.sleep(random.uniform(0, FIRST_PAUSE_S * 2 ** (failures - 1)))  # full jitter
        failures += 1
        byte_range = None
        if view is not None and (reached or not is_whole):
            byte_range = f"bytes={start + reached}-{start + len(view) - 1}"
        try:
            response = request(byte_range, etag)
        except StoreBusyError:
            # The client has retried for a few seconds; a burst can last longer.
            if failures == ATTEMPTS:
                raise
            continue
        except broken as error:
            reason = type(error).__name__
            continue
        etag = etag or response.etag
        body = response.body
        if view is None:
            view = buffer(response.length)
        elif response.length != len(view) - reached:
            body.close()
            raise short_object(url, start + reached, response.length, len(view) - reached)
        try:
            while reached < len(view):
                piece = body.read(min(amount, len(view) - reached))
                if not piece:
                    reason = "the body ended early"
                    break
                view[reached : reached + len(piece)] = piece
                reached += len(piece)
                failures = 0
                amount = min(2 * amount, READ_BYTES)
        except broken as error:
            reason = type(error).__name__
            amount = CAREFUL_READ_BYTES
        finally:
            body.close()
    return view


def buffer(size: int) -> memoryview:
    """`size` bytes to be filled; unlike a bytearray's, they are not cleared first."""
    return np.empty(size, dtype=np.uint8).data


def short_object(url: str, start: int, length: int, wanted: int) -> DataError:
    """The error of an object with fewer bytes than its index states."""
    return DataError(
        f"{url}: got {length} bytes from byte {start}; its index says {wanted}. The object was cut "
        "or replaced: upload it again, or index the split again."
    )


def check_range(url: str, byte_range: str, status: int, length: int, content_range: str) -> None:
    """Raises StoreError if a response is not that range: a server may ignore Range and answer 200
    with the whole object (RFC 9110, section 14.2), which is fine if that is what was asked for."""
    first, last = map(int, byte_range.removeprefix("bytes=").split("-"))
    is_whole = status == 200 and first == 0 and length == last + 1
    if is_whole or (status == 206 and content_range.startswith(f"bytes {first}-")):
        return
    raise StoreError(
        f"{url}: got HTTP {status} {content_range} to a request for bytes {first} to {last}; the "
        "server must answer a byte range with 206 and that range. Copy the shards to one that does."
    )


def changed_object(url: str, status: int) -> DataError:
    """The error of a conditional (412) or range request (416) that no longer fits the object."""
    if status == 412:
        return DataError(
            f"{url}: got another ETag than its index says; the object was replaced. "
            "Index the split again."
        )
    return DataError(
        f"{url}: got fewer bytes than its index says; the object was cut or replaced. "
        "Upload it again, or index the split again."
    )
