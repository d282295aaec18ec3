"""Archives of the kinds that the users of other readers reported, which cannot be read: refused by
name when they are indexed, or counted and named. Each kind names a report."""

import bz2
import gzip
import lzma
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from datasets.errors import DataError, ShardError
from datasets.packing.index import find_shards
from datasets.packing.repack import plan_repack
from datasets.storage.store import Store
from tests.unit.datasets.reports.archives import (
    END,
    damages_of,
    evaluate,
    indexed,
    label,
    member,
    pax,
    picture,
    read,
    sample,
    train,
    write,
)

needs_tar = pytest.mark.skipif(shutil.which("tar") is None, reason="GNU tar is not installed")

# kind -> (archive, what the message says: the member, and what to do)
REFUSED = {
    # mxmlnkn/ratarmount#28
    "a hard link": (
        sample(0) + member("b.cls", label(1)) + member("b.png", kind=b"1", link=b"0000.png"),
        r"got b\.png stored as a hard link; .* with --dereference --hard-dereference\.",
    ),
    # NVIDIA-NeMo/Speech#2216
    "a symbolic link": (
        member("a.png", kind=b"2", link=b"/data/images/a.png") + member("a.cls", label(0)),
        r"got a\.png stored as a symbolic link; .* with --dereference --hard-dereference\.",
    ),
    # onekey-sec/unblob#683: GNU's old format, whose map may go on in blocks that no size counts
    "a sparse file": (
        sample(0) + member("b.cls", label(1)) + member("b.png", picture(1), kind=b"S"),
        r"got b\.png stored with holes; .* without --sparse\.",
    ),
    # mxmlnkn/ratarmount#23, python/cpython#83869: the content begins with the map of the holes
    "a sparse file in PAX 1.0": (
        member("b.cls", label(1))
        + pax({"GNU.sparse.major": "1", "GNU.sparse.name": "b.png", "GNU.sparse.realsize": "99"})
        + member("GNUSparseFile.0/b.png", b"1\n0\n99\n".ljust(512, b"\0") + bytes(99)),
        r"got b\.png stored with holes; .* without --sparse\.",
    ),
    # webdataset/webdataset#140, ray-project/ray#63407
    "samples interleaved": (
        member("a.png", picture(0)) + member("b.png", picture(1))
        + member("a.cls", label(0)) + member("b.cls", label(1)),
        r"got files of sample a in 2 places; .* with --sort=name\.",
    ),
    # webdataset/webdataset#100: labels appended later
    "a label at the end": (
        member("a.png", picture(0)) + sample(1, "b") + member("a.cls", label(0)),
        r"got files of sample a in 2 places; .* with --sort=name\.",
    ),
    # webdataset/webdataset#157
    "a file twice": (
        member("a.png", picture(0)) + member("a.cls", label(0)) + member("a.png", picture(1)),
        r"got a\.png twice in sample a; a sample has each file once\. Pack the shard again\.",
    ),
    # libarchive/libarchive#1620, plougher/squashfs-tools#212: `cat a.tar b.tar`
    "two archives joined": (
        (sample(0) + END).ljust(10_240, b"\0") + sample(1),
        r"got another archive at byte 10240, after the end of the first; .* --concatenate",
    ),
    # huggingface/datasets#7144
    "a name with a dot": (
        member("22.05.png", picture(0)) + member("22.05.cls", label(0)),
        r"got 1 samples, none with an image; .* its key ends at the first dot",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_is_refused_by_name_when_indexed(tmp_path: Path, kind: str) -> None:
    archive, message = REFUSED[kind]
    url = write(tmp_path, archive + END)
    with pytest.raises(DataError, match=message) as caught:
        indexed(url)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    with pytest.raises(DataError):
        plan_repack(Store(), find_shards(Store(), url), shard_bytes=10**6)


UNREAD = {
    "latest.txt": b"2", "docs.d": b"2", "._0000.png": b"1", ".0000.cls": b"2", "d/._1.png": b"2",
    "0000.orig.png": b"1", "0000.json.bak": b"S", "0000.pth": b"1", "link": b"2",
}  # fmt: skip


def test_links_and_holes_that_are_no_part_of_a_sample_are_skipped(tmp_path: Path) -> None:
    """A link to the newest log or to a folder, a second name of another file: as GNU tar stores
    what lies beside samples."""
    cls, png = sample(0)[:1024], sample(0)[1024:]
    between = b"".join(member(name, kind=kind, link=b"x") for name, kind in UNREAD.items())
    url = write(tmp_path, cls + between + png + between + sample(1) + END)
    assert indexed(url).manifest.num_samples == 2
    assert read(url) == ({"0000": 0, "0001": 1}, [])
    assert damages_of(url) == []


def test_links_in_a_split_that_is_indexed_are_skipped_as_ever(tmp_path: Path) -> None:
    """Indexes of earlier versions have such shards: a run on them goes on."""
    shard = sample(0) + member("0000.a") + member("0000.b") + sample(1) + END
    url = write(tmp_path, shard)
    indexed(url)
    links = member("0000.jpg", kind=b"1") + member("0000.webp", kind=b"2")
    write(tmp_path, shard.replace(member("0000.a") + member("0000.b"), links))
    assert read(url) == ({"0000": 0, "0001": 1}, [])
    with pytest.raises(ShardError, match=r"got 0000\.jpg stored as a hard link"):
        indexed(url)


@needs_tar
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format=gnu", "--sparse"], r"b\.png stored with holes"),
        (["--format=posix", "--sparse"], r"b\.png stored with holes"),
        (["--format=gnu"], r"c\.png stored as a hard link"),
        (["--format=posix", "--hard-dereference"], None),
    ],
)
def test_what_gnu_tar_writes(tmp_path: Path, options: list[str], message: str | None) -> None:
    """mxmlnkn/ratarmount#23, #28: holes and hard links as GNU tar stores them; with its options of
    our message they are plain files."""
    for name, number in (("b", 0), ("c", 1)):
        (tmp_path / f"{name}.cls").write_bytes(label(number))
    with (tmp_path / "b.png").open("wb") as file:
        file.write(picture(0))
        file.truncate(4 * 2**20)  # a picture, then nothing
    (tmp_path / "c.png").hardlink_to(tmp_path / "b.png")
    (tmp_path / "c.cls").write_bytes(label(0))
    names = ["b.cls", "b.png", "c.cls", "c.png"]
    subprocess.run(["tar", *options, "-cf", "x.tar", *names], cwd=tmp_path, check=True)
    if message is not None:
        with pytest.raises(ShardError, match=message):
            indexed(tmp_path.as_uri())
    else:
        indexed(tmp_path.as_uri())
        assert read(tmp_path.as_uri()) == ({"b": 0, "c": 0}, [])


def test_nothing_but_empty_shards_is_refused(tmp_path: Path) -> None:
    """webdataset/webdataset#376, #2 (a file of no bytes)."""
    with pytest.raises(DataError, match="got 0 samples"):
        indexed(write(tmp_path, END, END))
    with pytest.raises(ShardError, match=r"x-0\.tar: got 0 bytes without the zero block"):
        indexed(write(tmp_path, b""))


def test_cut_and_unclosed_shards_are_refused(tmp_path: Path) -> None:
    """webdataset/webdataset#142 (a truncated shard), #32 (a writer that was not closed), wherever
    the archive ends before its end blocks."""
    whole = sample(0) + sample(1)
    for cut in (*range(0, len(whole), 512), len(whole) - 1, len(whole) - 600):
        with pytest.raises(ShardError, match=r"x-0\.tar: got .*(cut|512 bytes)"):
            indexed(write(tmp_path, whole[:cut]))
    with pytest.raises(ShardError, match="or its writer was not closed"):
        indexed(write(tmp_path, whole))


def test_a_shard_cut_after_it_was_indexed_is_counted_and_named(tmp_path: Path) -> None:
    """webdataset/webdataset#142, wenet-e2e/wenet#981."""
    url = write(tmp_path, sample(0) + sample(1) + END)
    indexed(url)
    content = (tmp_path / "x-0.tar").read_bytes()
    (tmp_path / "x-0.tar").write_bytes(content[:2_600])
    for classes, messages in (evaluate(url), train(url)):
        assert classes.items() <= {"0000": 0}.items()  # of whose bytes none is missing
        assert len(classes) + len(messages) == 2
        assert all("x-0.tar" in message for message in messages)
    assert any("x-0.tar" in message for message in damages_of(url))


def test_files_of_no_bytes_are_counted_and_named(tmp_path: Path) -> None:
    """fastai/course-v3#82 (images of no bytes), pytorch/vision#485 (name the damaged file)."""
    url = write(
        tmp_path,
        sample(0)
        + member("1.cls", label(1)) + member("1.png")
        + member("2.cls") + member("2.png", picture(1))
        + END,
    )  # fmt: skip
    result = indexed(url)
    assert result.without_label == (1, (f"{url}/x-0.tar:2",))
    assert result.manifest.classes == ("0", "1")  # "" is no class
    expected = [
        f"{url}/x-0.tar:1: got 0 bytes that are no whole image",
        f"{url}/x-0.tar:2: got the label ''",
    ]
    classes, messages = read(url)
    assert classes == {"0000": 0}
    for found in (messages, damages_of(url)):
        assert [message.partition(";")[0].partition(" (")[0] for message in sorted(found)] == (
            expected
        )


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_a_compressed_archive_that_is_called_tar_is_refused(
    tmp_path: Path, compress: Callable[[bytes], bytes]
) -> None:
    """webdataset/webdataset#331: SA-1B's shards were gzip by their content."""
    noise = member("x.bin", np.random.default_rng(0).bytes(4096))
    url = write(tmp_path, compress(sample(0) + noise + END))
    with pytest.raises(ShardError, match=r"x-0\.tar: got a compressed archive, .* Unpack it\."):
        indexed(url)


def test_some_names_with_dots_are_counted_and_named(tmp_path: Path) -> None:
    """webdataset/webdataset#288, huggingface/datasets#7144: neighbours that are equal up to the
    first dot are one sample, which lacks its files."""
    dotted = member("22.05.png", picture(1)) + member("22.06.png", picture(1))
    url = write(tmp_path, sample(0) + dotted + sample(1, "z") + END)
    result = indexed(url)
    assert result.without_image == result.without_label == (1, (f"{url}/x-0.tar:22",))
    classes, messages = read(url)
    assert classes == {"0000": 0, "z": 1}
    assert len(messages) == 1
    assert "x-0.tar:22" in messages[0]


@pytest.mark.parametrize("length", [b"9" * 5_000, b"-1", b"\xb2"])
def test_absurd_numbers_in_a_pax_header_are_damage(tmp_path: Path, length: bytes) -> None:
    """python/cpython#153637: a number that is none is one error, not a traceback."""
    for header in (
        pax({"size": length}),
        member("PaxHeaders/x", length + b" path=a.png\n", kind=b"x"),
    ):
        with pytest.raises(ShardError, match=r"x-0\.tar: got (a PAX size of|a damaged PAX header)"):
            indexed(write(tmp_path, header + sample(0) + END))
