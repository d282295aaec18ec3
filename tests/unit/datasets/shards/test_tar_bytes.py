"""The tar reader against GNU tar, Python's tarfile and webdataset; damage never passes."""

import contextlib
import io
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
import webdataset as wds
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.errors import DataError
from datasets.loading.stream import fetch_run, split_samples
from datasets.packing.pack import describe_shard
from datasets.shards.manifest import Manifest
from datasets.shards.tar import members
from datasets.storage.store import Store

NAMES = [
    "a.jpg",
    "a.cls",
    "folder/b.jpg",
    "folder/b.cls",
    f"{'long/' * 30}c.jpg",
    f"{'ü' * 80}d.png",
]


def python_tar(format_: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format_) as tar:
        for i, name in enumerate(NAMES):
            info = tarfile.TarInfo(name)
            info.size = 100 * i + 1
            tar.addfile(info, io.BytesIO(bytes([i]) * info.size))
    return buffer.getvalue()


def files_of(content: bytes) -> list[tuple[str, bytes]]:
    found = members(memoryview(content), "x.tar")
    return [(m.name, content[m.begin : m.begin + m.size]) for m in found]


@pytest.mark.parametrize("format_", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_reads_what_python_writes(format_: int) -> None:
    expected = [(name, bytes([i]) * (100 * i + 1)) for i, name in enumerate(NAMES)]
    assert files_of(python_tar(format_)) == expected


@pytest.mark.skipif(shutil.which("tar") is None, reason="GNU tar is not installed")
@pytest.mark.parametrize("format_", ["gnu", "pax", "ustar"])
def test_reads_what_gnu_tar_writes(format_: str, tmp_path: Path) -> None:
    for i, name in enumerate(NAMES[:4]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(bytes([i]) * (700 * i))
    archive = tmp_path / "x.tar"
    command = ["tar", f"--format={format_}", "-cf", str(archive), *NAMES[:4]]
    subprocess.run(command, cwd=tmp_path, check=True)
    expected = [(name, bytes([i]) * (700 * i)) for i, name in enumerate(NAMES[:4])]
    assert files_of(archive.read_bytes()) == expected


def test_samples_are_grouped_by_webdatasets_rule(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with wds.TarWriter(str(path)) as writer:
        for i in range(5):
            writer.write({"__key__": f"s{i}", "JPG": b"image", "cls": str(i), "seg.png": b"mask"})
    content = path.read_bytes()
    ours = [sample for _, sample in split_samples(memoryview(content), "x.tar")]
    theirs = list(wds.WebDataset(str(path), shardshuffle=False))
    assert [s["__key__"] for s in ours] == [s["__key__"] for s in theirs]
    for our, their in zip(ours, theirs, strict=True):
        assert {k: bytes(v) for k, v in our.items() if k[0] != "_"} == {
            k: v for k, v in their.items() if k[0] != "_" and k != "__url__"
        }


def test_offsets_cut_a_shard_into_whole_samples() -> None:
    content = python_tar(tarfile.PAX_FORMAT)
    shard = describe_shard("x.tar", content, None)
    assert shard.num_samples == 4
    for i in range(4):
        start, length = shard.byte_range(i, 1)
        part = memoryview(content)[start : start + length]
        assert len(list(split_samples(part, "x.tar"))) == 1


def test_cut_shard_is_noticed_wherever_it_is_cut(tmp_path: Path) -> None:
    """Truncated at a tar boundary, between image and label, or inside a member. Readers of streams
    accept half a shard or a sample without label; here both are damage, because the index states
    the number of bytes and samples."""
    content = python_tar(tarfile.PAX_FORMAT)
    shard = describe_shard("x.tar", content, None)
    manifest = Manifest(url=tmp_path.as_uri(), classes=("a",), shards=(shard,))
    end = int(shard.offsets[-1]) * 512

    def damaged() -> list[bool]:
        run = fetch_run(Store(), manifest, (0, 0, shard.num_samples))
        return ["__damage__" in run.sample(number) for number in range(shard.num_samples)]

    for cut in [*range(0, end, 256), end - 1]:
        (tmp_path / "x.tar").write_bytes(content[:cut])
        assert all(damaged()), cut
    (tmp_path / "x.tar").write_bytes(content[:end])
    assert not any(damaged())


@settings(max_examples=300, deadline=None)
@given(at=st.integers(0, 511), value=st.integers(0, 255))
def test_damaged_header_raises(at: int, value: int) -> None:
    content = bytearray(python_tar(tarfile.GNU_FORMAT))
    if content[at] == value or 148 <= at < 156:
        return
    content[at] = value
    with pytest.raises(DataError, match=r"x\.tar: got"):
        list(members(memoryview(bytes(content)), "x.tar"))


@settings(max_examples=1000, deadline=None)
@given(content=st.binary(max_size=3000))
def test_any_bytes_end_in_members_or_in_one_error(content: bytes) -> None:
    with contextlib.suppress(DataError):
        list(split_samples(memoryview(content), "x.tar"))
