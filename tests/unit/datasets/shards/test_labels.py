"""Labels as WebDataset's users write them: .cls, .txt, .json; numbers or names."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasets.errors import ImageError, LabelError
from datasets.images.decode import find_image
from datasets.shards.labels import find_rule
from datasets.shards.manifest import Manifest

TEN = tuple(str(number) for number in range(10))


def class_of(sample: dict[str, bytes], label: str = "cls", classes: tuple[str, ...] = TEN) -> int:
    return Manifest(url="", classes=classes, shards=(), label=label).class_of(sample, "k")


def test_numbers_and_names() -> None:
    assert class_of({"cls": b" 7\n"}) == 7
    assert class_of({"txt": b"0"}) == 0  # in a .cls split, a sample without one may have a .txt
    assert class_of({"txt": b"dog"}, "txt", ("cat", "dog")) == 1
    assert class_of({"json": b'{"label": 3}'}, "json:label") == 3
    assert (
        class_of({"json": b'{"species": "dog", "label": 9}'}, "json:species", ("cat", "dog")) == 1
    )


@pytest.mark.parametrize("wrong", [b"10", b"-1", b"cat", b"", b"\xff", "²".encode(), b"1" * 5000])
def test_wrong_labels_are_one_line(wrong: bytes) -> None:
    with pytest.raises(LabelError, match="from 0 to 9 or one of the split's class names"):
        class_of({"cls": wrong})


@pytest.mark.parametrize(
    "wrong", [b"", b"{", b"[1]", b"3", b'{"other": 1}', b'{"label": null}', b'{"label": true}',
              b'{"label": 1.5}', b"[" * 100_000],
)  # fmt: skip
def test_wrong_json_is_one_line(wrong: bytes) -> None:
    with pytest.raises(LabelError, match=r"k\.json: got"):
        class_of({"json": wrong}, "json:label")


def test_missing_files_are_reported() -> None:
    with pytest.raises(LabelError, match=r"got \.jpg; a sample has a label, \.cls"):
        class_of({"__key__": b"k", "jpg": b""})
    with pytest.raises(ImageError, match="a sample has an image"):
        find_image({"__key__": "k", "cls": b"1"}, "k")


def test_the_rule_is_found_in_order() -> None:
    everything = {"json": b'{"label": 1}', "txt": b"a caption", "cls": b"1"}
    assert find_rule(everything) == "cls"
    assert find_rule({key: everything[key] for key in ("json", "txt")}) == "txt"
    assert find_rule({"json": b'{"class": "cat", "label": 2}'}) == "json:label"
    assert find_rule({"json": b'{"class": "cat"}'}) == "json:class"
    assert find_rule(everything, field="species") == "json:species"
    assert find_rule({"json": b"{}"}) is None
    assert find_rule({"jpg": b""}) is None


@given(content=st.binary(max_size=60), rule=st.sampled_from(["cls", "txt", "json:label"]))
def test_any_bytes_are_a_class_or_one_error(content: bytes, rule: str) -> None:
    with contextlib.suppress(LabelError):
        assert 0 <= class_of({rule[:4].rstrip(":"): content}, rule) < 10


@given(number=st.integers(0, 9), field=st.sampled_from(["label", "y"]))
def test_numbers_in_json_come_back(number: int, field: str) -> None:
    content = json.dumps({field: number, "note": "x"}).encode()
    assert class_of({"json": content}, f"json:{field}") == number
