"""Tar members of a byte string: ustar, PAX and GNU long names. Pure.

Why not tarfile: a range in the middle of a shard is read member by member with no copy of the
content, and everything short, misnamed or misnumbered must raise instead of ending quietly.
"""

from collections.abc import Iterator

from datasets.errors import ShardError

BLOCK_BYTES = 512


def members(content: memoryview, where: str) -> Iterator[tuple[str, int, int, memoryview]]:
    """(name, start, end, content) of each regular file, in order.

    start: byte of the member's first header block (an extension header, where it has one). end:
    first byte after its padded content. Stops at a zero block or at the end of `content`. Raises
    ShardError where a header is damaged or the content is cut.
    """
    at = 0
    start = 0
    long_name: str | None = None
    while at + BLOCK_BYTES <= len(content):
        header = content[at : at + BLOCK_BYTES]
        if header[0] == 0 and not any(header):
            return
        size = _check_header(header, where, at)
        begin = at + BLOCK_BYTES
        end = begin + -(-size // BLOCK_BYTES) * BLOCK_BYTES
        if begin + size > len(content):
            raise ShardError(
                f"{where}: got {len(content)} bytes, but a member at byte {at} ends at "
                f"{begin + size}; the shard is cut. Upload it again."
            )
        body = content[begin : begin + size]
        kind = chr(header[156])
        if kind == "x":
            long_name = _pax_path(bytes(body), where, at) or long_name
        elif kind == "L":
            long_name = bytes(body).split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
        else:
            if kind in "0\0":
                yield long_name or _name(header), start, end, body
            long_name = None
            start = end
        at = end
    if at < len(content) and any(content[at:]):
        raise ShardError(
            f"{where}: got {len(content) - at} bytes after the last whole block; tar is made of "
            "blocks of 512 bytes. Upload the shard again."
        )


def _check_header(header: memoryview, where: str, at: int) -> int:
    """The member's size; raises ShardError where the checksum does not hold."""
    raw = bytes(header)
    try:
        stated = int(raw[148:156].split(b"\0", 1)[0].strip() or b"0", 8)
        size = _number(raw[124:136])
    except ValueError:
        stated, size = -1, 0
    actual = sum(raw) - sum(raw[148:156]) + 8 * 32
    if stated != actual:
        raise ShardError(
            f"{where}: got no tar header at byte {at} (checksum {stated}, {actual} computed); the "
            "shard is damaged, or its index belongs to another. Index or upload it again."
        )
    return size


def _number(digits: bytes) -> int:
    """Octal text, or base 256 where the first bit is set (files over 8 GiB)."""
    if digits[0] & 0x80:
        return int.from_bytes(bytes([digits[0] & 0x7F]) + digits[1:], "big")
    return int(digits.split(b"\0", 1)[0].strip() or b"0", 8)


def _name(header: memoryview) -> str:
    raw = bytes(header)
    name = raw[:100].split(b"\0", 1)[0]
    prefix = raw[345:500].split(b"\0", 1)[0] if raw[257:263] == b"ustar\0" else b""
    whole = prefix + b"/" + name if prefix else name
    return whole.decode("utf-8", "surrogateescape")


def _pax_path(body: bytes, where: str, at: int) -> str | None:
    """The `path` record of a PAX header: records are `LENGTH KEY=VALUE\n`."""
    while body:
        digits = body.split(b" ", 1)[0]
        length = int(digits) if digits.isdigit() else 0
        if not len(digits) < length <= len(body):
            raise ShardError(
                f"{where}: got a damaged PAX header at byte {at}; its records state their length. "
                "Upload the shard again."
            )
        key, _, value = body[:length].partition(b" ")[2].rstrip(b"\n").partition(b"=")
        if key == b"path":
            return value.decode("utf-8", "surrogateescape")
        body = body[length:]
    return None
