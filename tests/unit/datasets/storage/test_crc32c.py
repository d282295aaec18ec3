"""CRC-32C, and JSON documents that carry their own: what changed is noticed."""

import io
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from datasets.storage.checksums import crc32c, decode_json, encode_json, seal, unseal

VALUES = {
    "name": "naïve", "loss": 0.1 + 0.2, "best": math.inf, "none": None, "steps": [1, 2, (3, 4)],
    "job": {"data": {"train": "s3://data/train"}, "flags": {10: True, 9: False}},
}  # fmt: skip


def test_the_published_check_value_and_an_array_that_nobody_may_copy() -> None:
    """RFC 3720, appendix B.4, and the check value of catalogues of CRCs."""
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(np.full(32, 255, dtype=np.uint8).data) == 0x62A8AB43
    assert crc32c(b"") == 0


@given(content=st.binary(max_size=200), cut=st.integers(0, 200))
def test_pieces_give_the_checksum_of_the_whole(content: bytes, cut: int) -> None:
    assert crc32c(memoryview(content)[cut:], crc32c(content[:cut])) == crc32c(content)


@pytest.mark.parametrize("indent", [None, 2])
def test_a_document_is_read_again_whatever_its_layout(indent: int | None) -> None:
    content = encode_json(VALUES, indent=indent)
    expected = json.loads(json.dumps(VALUES))
    assert decode_json(content) == expected
    assert (
        decode_json(json.dumps(json.loads(content), sort_keys=True, indent=7).encode()) == expected
    )
    assert decode_json(json.dumps(VALUES).encode()) == expected  # of an earlier version
    assert decode_json(b"[1, 2]") == [1, 2]


def test_no_flipped_bit_of_a_document_changes_a_value_unnoticed() -> None:
    content = encode_json(VALUES, indent=1)
    expected = decode_json(content)
    noticed = 0
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            values = decode_json(bytes(flipped))
        except ValueError:
            noticed += 1
        else:  # such as \u00EF for \u00ef
            assert values == expected
    assert noticed > 0.97 * 8 * len(content)


def test_a_document_that_states_no_checksum_in_its_field_is_damaged() -> None:
    stated: object
    for stated in (None, "", 0, [], "00000000"):
        with pytest.raises(ValueError, match="delete that field"):
            decode_json(json.dumps({"a": 1, "crc32c": stated}).encode())
    assert decode_json(b'{"a": 1, "cdrom0": 2, "crc32": 3, "step": 4}')["crc32"] == 3


@given(content=st.binary(max_size=99), bits=st.sets(st.integers(0, 95), min_size=1, max_size=4))
def test_flipped_bits_of_a_trailer_are_noticed(content: bytes, bits: set[int]) -> None:
    """In its name too, without which the file would pass for one that never had a checksum."""
    sealed = bytearray(seal(content))
    for bit in bits:
        sealed[len(content) + bit // 8] ^= 1 << bit % 8
    for or_plain in (True, False):
        with pytest.raises(ValueError, match="differ from their checksum"):
            unseal(bytes(sealed), or_plain=or_plain)


def test_a_file_of_an_earlier_version_is_taken_as_it_is() -> None:
    """torch.save writes an archive in zip's format."""
    buffer = io.BytesIO()
    torch.save({"a": torch.arange(5)}, buffer)
    for plain in (buffer.getvalue(), b"", b"CRC-32C"):
        assert unseal(plain, or_plain=True) == plain
        assert unseal(seal(plain), or_plain=True) == plain
        with pytest.raises(ValueError, match="differ from their checksum"):
            unseal(plain)
