"""CRC-32C (RFC 3720, appendix B.4): of bytes, and of files and JSON documents that carry their own.

It notices every change within 32 consecutive bits; any other passes with probability 2^-32. It
guards against accidents, not against people.
"""

import json
import operator
from typing import Any

import google_crc32c
import numpy as np

CHECKSUM_FIELD = "crc32c"
TRAILER = b"CRC-32C:"  # before the four bytes of a file's checksum, little-endian
NEAR_BITS = 8  # of 64, in which a damaged trailer may differ; those of a plain file do in 32


def crc32c(content: bytes | memoryview, before: int = 0) -> int:
    """The checksum of bytes, or of them after others whose checksum is `before`. Copies nothing."""
    # The library takes no writable memoryview, but an array over one.
    return int(google_crc32c.extend(before, np.asarray(memoryview(content))))


def seal(content: bytes) -> bytes:
    """The content with its checksum behind it."""
    return b"".join((content, TRAILER, crc32c(content).to_bytes(4, "little")))


def unseal(stored: bytes, *, or_plain: bool = False) -> bytes:
    """The content of `seal`. or_plain: a file without a checksum is taken as it is; earlier
    versions wrote none. Raises ValueError if the checksum is wrong or missing, also where a few
    bits of the trailer are damaged: what has nothing of a trailer is a plain file's end."""
    content, trailer, checksum = stored[:-12], stored[-12:-4], stored[-4:]
    differing = (int.from_bytes(trailer) ^ int.from_bytes(TRAILER)).bit_count()
    if or_plain and differing > NEAR_BITS:
        return stored
    if trailer != TRAILER or crc32c(content) != int.from_bytes(checksum, "little"):
        raise ValueError("bytes that differ from their checksum")
    return content


def encode_json(values: dict[str, Any], *, indent: int | None = None) -> bytes:
    """The document with the checksum of its values as its last field."""
    return json.dumps({**values, CHECKSUM_FIELD: _checksum(values)}, indent=indent).encode()


def decode_json(content: bytes) -> Any:
    """The document's values, without their checksum. A document that states none, such as one of an
    earlier version, is taken as it is. Raises ValueError if its text or its checksum is wrong, or
    the checksum's name in one or two characters."""
    values = json.loads(content)
    if not isinstance(values, dict):
        return values
    for name in values:
        if name != CHECKSUM_FIELD and _is_nearly(name, CHECKSUM_FIELD):
            raise ValueError(f"a field {name!r}, which was {CHECKSUM_FIELD}")
    if CHECKSUM_FIELD not in values:
        return values
    stated = values.pop(CHECKSUM_FIELD)
    if stated != (actual := _checksum(values)):
        raise ValueError(
            f"values with the checksum {actual} where its field {CHECKSUM_FIELD} says "
            f"{str(stated)[:8]!r} (delete that field if they were edited by hand)"
        )
    return values


def _is_nearly(name: str, other: str) -> bool:
    return len(name) == len(other) and sum(map(operator.ne, name, other)) <= 2


def _checksum(values: dict[str, Any]) -> str:
    """Eight hexadecimal digits. Of the values as they are read again, whatever the layout."""
    plain = json.loads(json.dumps(values))
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return f"{crc32c(text.encode()):08x}"
