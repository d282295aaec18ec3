"""One object's bytes into memory, whatever breaks on the way. Shared by S3 and HTTP.

A client library repeats a refused request but never a broken body (boto3 raises in its middle, its
raw stream just ends short). Here a body that ends early is asked for again from the byte reached,
with If-Match on its ETag: an object replaced meanwhile is noticed, and nothing short passes.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from datasets.errors import DataError, StoreBusyError, StoreError

CONNECT_LIMIT_S = 5.0
SILENCE_LIMIT_S = 30.0
ATTEMPTS = 6  # requests in a row that bring nothing new
FIRST_PAUSE_S = 0.2
READ_BYTES = 2**20  # one read call: 10 KiB reads cost four times the CPU (measured)
CAREFUL_READ_BYTES = 2**13  # the first after a break: a call that breaks loses what it had got
CONNECTIONS = 32  # kept open to one host


class Body(Protocol):
    """An answer's content, read once."""

    def read(self, amount: int, /) -> bytes: ...
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request for bytes gives: how many come, of which object, and the content."""

    length: int
    etag: str | None
    body: Body


@dataclass(frozen=True, slots=True)
class Entry:
    """One stored object."""

    url: str
    size_bytes: int
    etag: str | None


# (first byte, last byte or None for the end, ETag to match or None) -> answer. Both bytes None:
# the whole object. Raises DataError (not there, replaced, shorter), StoreError (refused).
Ask = Callable[[int | None, int | None, str | None], Answer]


def receive(
    ask: Ask,
    url: str,
    view: memoryview | None,
    start: int,
    etag: str | None,
    broken: tuple[type[Exception], ...],
) -> memoryview:
    """Fills `view` with the bytes from `start`; without a view, the whole object.

    broken: what the client raises for a body that breaks. Raises DataError, StoreError.
    """
    is_whole = view is None
    reached = fruitless = 0
    amount = READ_BYTES
    reason = "the body ended early"
    while view is None or reached < len(view):
        if fruitless == ATTEMPTS:
            wanted = "all" if view is None else len(view)
            raise StoreError(
                f"{url}: got {reached} of {wanted} bytes and then {ATTEMPTS} times nothing "
                f"({reason}); a body must arrive whole. Check the network between this machine "
                "and the store."
            )
        if fruitless:
            time.sleep(pause_s(fruitless - 1))
        fruitless += 1
        is_range = not is_whole or reached > 0
        last = None if view is None else start + len(view) - 1
        try:
            answer = ask(start + reached if is_range else None, last, etag)
        except StoreBusyError:
            # The client has asked a few times already, within seconds; a burst can last longer.
            if fruitless == ATTEMPTS:
                raise
            continue
        except broken as error:
            reason = type(error).__name__
            continue
        etag = etag or answer.etag
        if view is None:
            view = buffer(answer.length)
        elif answer.length != len(view) - reached:
            answer.body.close()
            raise DataError(short_object(url, start + reached, answer.length, len(view) - reached))
        body = answer.body
        try:
            while reached < len(view):
                piece = body.read(min(amount, len(view) - reached))
                if not piece:
                    reason = "the body ended early"
                    break
                view[reached : reached + len(piece)] = piece
                reached += len(piece)
                fruitless = 0
                amount = min(2 * amount, READ_BYTES)
        except broken as error:
            reason = type(error).__name__
            amount = CAREFUL_READ_BYTES
        finally:
            body.close()
    return view


def buffer(size: int) -> memoryview:
    """`size` bytes to be filled; they are not cleared first, as a bytearray's would be."""
    return np.empty(size, dtype=np.uint8).data


def pause_s(attempt: int) -> float:
    """Full jitter: uniform up to 0.2 s, 0.4 s, 0.8 s, ..."""
    return random.uniform(0, FIRST_PAUSE_S * 2**attempt)


def short_object(url: str, start: int, got: int, wanted: int) -> str:
    return (
        f"{url}: got {got} bytes from byte {start}; its index says {wanted}. The object was cut "
        "or replaced: upload it again, or index the split again."
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
