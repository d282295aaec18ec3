"""Archives of the kinds that the users of other readers reported: read right, refused when they are
indexed, or counted and named. Each kind names a report, or the specification where we know none."""

from dataclasses import replace
from pathlib import Path

import pytest

from datasets.packing.files import list_images
from datasets.packing.index import find_shards
from datasets.packing.pack import pack_shards
from datasets.packing.repack import plan_repack
from datasets.shards.manifest import save_manifest
from datasets.storage.store import Store
from tests.unit.datasets.reports.archives import (
    END,
    damages_of,
    indexed,
    label,
    member,
    pax,
    picture,
    read,
    sample,
    write,
)

LONG = "folder-with-a-long-name/" * 9

# kind -> (archive, the keys of samples 0 and 1)
READ_RIGHT = {
    # webdataset/webdataset#237 (names of `tar -cf x.tar .`)
    "names that begin with ./": (sample(0, "./a") + sample(1, "./b"), ("./a", "./b")),
    # huggingface/datasets#7150
    "folders with dots": (sample(0, "v1.0/a") + sample(1, "v1.0/b.c/d"), ("v1.0/a", "v1.0/b.c/d")),
    # pytorch/vision#552, NVIDIA/DALI_extra#122
    "extensions in capitals": (
        member("A.CLS", label(0)) + member("A.PNG", picture(0)) + sample(1, "b"),
        ("A", "b"),
    ),
    # OpenNeuroOrg/openneuro#2520, libarchive/libarchive#3334: macOS writes one before each member
    "AppleDouble files": (
        b"".join(
            member(f"d/._{name}", b"\0\x05\x16\x07" + bytes(160)) + member(f"d/{name}", content)
            for number in (0, 1)
            for name, content in (
                (f"{number}.cls", label(number)),
                (f"{number}.png", picture(number)),
            )
        ),
        ("d/0", "d/1"),
    ),
    # ultralytics/hub#89
    "a folder __MACOSX": (
        sample(0, "a")
        + member("__MACOSX/", kind=b"5")
        + member("__MACOSX/._a.png", b"\0\x05\x16\x07")
        + member(".DS_Store", b"Bud1")
        + sample(1, "b"),
        ("a", "b"),
    ),
    # NVIDIA/DALI#3645
    "long names in PAX headers": (
        b"".join(
            pax({"path": f"{LONG}{number}.{extension}", "mtime": "1.5"})
            + member("cut", content(number))
            for number in (0, 1)
            for extension, content in (("cls", label), ("png", picture))
        ),
        (f"{LONG}0", f"{LONG}1"),
    ),
    # webdataset/webdataset#207 (GNU's format); GNU tar manual, "Standard Archive Format"
    "long names in GNU headers": (
        b"".join(
            member("././@LongLink", f"{LONG}{number}.{extension}".encode() + b"\0", kind=b"L")
            + member("cut", content(number))
            for number in (0, 1)
            for extension, content in (("cls", label), ("png", picture))
        ),
        (f"{LONG}0", f"{LONG}1"),
    ),
    # POSIX pax, ustar interchange format: the size of a folder is no number of bytes that follow
    "a folder between a sample's files": (
        member("a.cls", label(0))
        + member("d/", kind=b"5", size=b"%011o\0" % 4096)
        + member("a.png", picture(0))
        + sample(1, "d/b"),
        ("a", "d/b"),
    ),
    # adamhathcock/sharpcompress#836
    "a global PAX header": (
        pax({"comment": "0f00ba"}, kind=b"g") + sample(0, "a") + sample(1, "b"),
        ("a", "b"),
    ),
    # POSIX pax, ustar interchange format: type 7 is read as a file where it means nothing else
    "contiguous files": (
        member("a.cls", label(0)) + member("a.png", picture(0), kind=b"7") + sample(1, "b"),
        ("a", "b"),
    ),
    # mafintosh/tar-stream#62
    "base-256 sizes": (
        member("a.cls", label(0))
        + member("a.png", picture(0), size=b"\x80" + len(picture(0)).to_bytes(11, "big"))
        + sample(1, "b"),
        ("a", "b"),
    ),
    # halostatue/minitar#152
    "PAX sizes": (
        member("a.cls", label(0))
        + pax({"size": str(len(picture(0)))})
        + member("a.png", picture(0), size=b"%011o\0" % 0)
        + sample(1, "b"),
        ("a", "b"),
    ),
    # devsnd/tarindexer#9, mxmlnkn/ratarmount#32: the bytes are Latin-1
    "names that are no UTF-8": (
        member(b"caf\xe9.cls", label(0)) + member(b"caf\xe9.png", picture(0)) + sample(1, "b"),
        ("caf\\xe9", "b"),
    ),
    # POSIX, base definitions 3.170: a name has any bytes but / and NUL
    "names with line breaks": (
        sample(0, "x\ny/a\tb") + sample(1, "b"),
        ("x\\x0ay/a\\x09b", "b"),
    ),
    # systemd/systemd#16930
    "garbage after the end": (
        sample(0, "a") + sample(1, "b") + END + b"\x8fgarbage" * 90,
        ("a", "b"),
    ),
    # mendersoftware/mender#1702
    "many zeros after the end": (sample(0, "a") + sample(1, "b") + bytes(40_960), ("a", "b")),
    # square/p2#623: links that are no sample's file do no harm
    "links to folders": (
        sample(0, "a")
        + member("././@LongLink", b"t" * 150 + b"\0", kind=b"K")
        + member("latest", kind=b"2", link=b"t" * 100)
        + sample(1, "b"),
        ("a", "b"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", READ_RIGHT)
def test_is_read_right(tmp_path: Path, kind: str) -> None:
    """By index, verify, training and evaluation; and what is packed from it."""
    archive, keys = READ_RIGHT[kind]
    url = write(tmp_path, archive + END)
    result = indexed(url)
    assert result.manifest.classes == ("0", "1")
    assert result.without_image == result.without_label == (0, ())
    assert damages_of(url) == []
    expected = {keys[0]: 0, keys[1]: 1}
    assert read(url) == (expected, [])
    plans, classes = plan_repack(Store(), find_shards(Store(), url), shard_bytes=10**6)
    (tmp_path / "packed").mkdir()
    packed = (tmp_path / "packed").as_uri()
    pack_shards(plans, Store(), packed, classes=classes)
    assert read(packed) == (expected, [])


def test_empty_shards_and_shards_of_one_sample(tmp_path: Path) -> None:
    """webdataset/webdataset#376 (a writer that leaves an empty shard), #188 (fewer shards than
    workers): the label's form is that of the first shard that has any."""
    shards = []
    for number in (0, 1):
        values = b'{"label": %d}' % number
        shards.append(member(f"{number}.json", values) + member(f"{number}.png", picture(number)))
    url = write(tmp_path, END, shards[0] + END, bytes(10_240), shards[1] + END)
    manifest = indexed(url).manifest
    assert [shard.num_samples for shard in manifest.shards] == [0, 1, 0, 1]
    assert manifest.label == "json:label"
    assert damages_of(url) == []
    assert read(url) == ({"0": 0, "1": 1}, [])


def test_an_appledouble_file_beside_a_shard_is_none(tmp_path: Path) -> None:
    """unslothai/unsloth#8919: it has the extension of the file that it describes."""
    url = write(tmp_path, sample(0) + END)
    (tmp_path / "._x-0.tar").write_bytes(b"\0\x05\x16\x07" + bytes(4_092))
    assert len(indexed(url).manifest.shards) == 1


def test_the_same_keys_in_two_shards_are_two_samples(tmp_path: Path) -> None:
    """webdataset/webdataset#327."""
    url = write(tmp_path, sample(0) + END, sample(0) + sample(1) + END)
    assert indexed(url).manifest.num_samples == 3
    assert damages_of(url) == []


def test_labels_from_windows_editors(tmp_path: Path) -> None:
    """vilcans/screenplain#5 (a byte order mark is read as text), with the line's end that they
    write."""
    files = [
        member(f"{number}.txt", b"\xef\xbb\xbf%d\r\n" % number)
        + member(f"{number}.png", picture(number))
        for number in (0, 1)
    ]
    url = write(tmp_path, b"".join(files) + END)
    assert indexed(url).manifest.classes == ("0", "1")
    assert read(url) == ({"0": 0, "1": 1}, [])


def test_labels_from_windows_editors_in_an_index_of_an_earlier_version(tmp_path: Path) -> None:
    """The mark was a part of the name: the same samples have the same classes as ever, also where a
    number with a mark was the name of another class."""
    mark = b"\xef\xbb\xbf"
    url = write(
        tmp_path,
        member("a.cls", mark + b"1") + member("a.png", picture(0))
        + member("b.cls", mark + b"0\r\n") + member("b.png", picture(1))
        + member("c.cls", mark + b"cat") + member("c.png", picture(2))
        + member("d.cls", b"cat") + member("d.png", picture(3))
        + END,
    )  # fmt: skip
    manifest = indexed(url).manifest
    assert manifest.classes == ("0", "1", "cat")
    names = ("\ufeff1", "\ufeff0", "\ufeffcat", "cat")
    save_manifest(Store(), replace(manifest, classes=names))
    assert read(url) == ({"a": 0, "b": 1, "c": 2, "d": 3}, [])


def test_webdatasets_own_fields_in_an_archive_are_no_files(tmp_path: Path) -> None:
    """webdataset/webdataset's reader skips `__meta__` names; a sample's file cannot stand for what
    the reader itself says of the sample."""
    hostile = b"".join(member(f"0000.{name}", b"x") for name in ("__damage__", "__key__"))
    url = write(tmp_path, hostile + sample(0) + sample(1) + END)
    indexed(url)
    assert read(url) == ({"0000": 0, "0001": 1}, [])


def test_hidden_files_and_folders_are_not_packed(tmp_path: Path) -> None:
    """pytorch/vision#2831 (`.ipynb_checkpoints` became a class), hako-mikan/sd-webui-traintrain#26
    (`._` files became images), huggingface/pytorch-image-models#334 (links to images are)."""
    for name in ("cat/a.png", "dog/b.png", ".ipynb_checkpoints/a.png", "cat/._a.png",
                 "dog/.cache/b.png", "__MACOSX/cat/._a.png"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(picture(0))
    (tmp_path / "dog/c.png").symlink_to(tmp_path / "cat/a.png")
    images, classes = list_images(tmp_path)
    assert classes == ("cat", "dog")
    assert [image.key for image in images] == ["cat/a", "dog/b", "dog/c"]
