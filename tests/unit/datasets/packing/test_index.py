"""Shards by GNU tar, Python's tarfile and webdataset, with .cls, .txt and .json labels: indexed
from their headers, by prefix or pattern, on disk, S3 and a web server."""

import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds
from PIL import Image

from datasets.errors import DataError, ShardError, StoreError
from datasets.loading.loader import EvalLoader
from datasets.loading.stream import Sample
from datasets.packing.index import IndexResult, find_shards, index_shards
from datasets.packing.pack import pack_shards
from datasets.packing.repack import plan_repack
from datasets.shards.manifest import Manifest, load_manifest, save_manifest
from datasets.shards.split_url import index_url
from datasets.storage.store import Store
from tests.forks import rayception
from tests.unit.datasets.loaders import order_of, train_loader

RAYCEPTION = str(Path(sys.executable).parent / "rayception")
NAMES = ("cat", "dog", "eel")


def jpeg(number: int, side: int = 40) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (side, side + number % 9, 3))
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def label_file(kind: str, number: int) -> bytes:
    name = NAMES[number % 3]
    values = {"note": "é" * 50, "label": name}
    return {"cls": str(number % 3), "txt": name, "json": json.dumps(values)}[kind].encode()


def rows(kind: str, count: int, first: int = 0, side: int = 40) -> list[Sample]:
    samples = []
    for number in range(first, first + count):
        files = {"jpg": jpeg(number, side), kind: label_file(kind, number)}
        samples.append({"__key__": f"{'deep/' * 30}ü{number:04d}", **files})
    return samples


def with_gnu_tar(path: Path, samples: list[Sample]) -> None:
    folder = path.with_suffix(".files")
    names = []
    for sample in samples:
        for extension, content in sample.items():
            if extension != "__key__":
                name = f"{sample['__key__']}.{extension}"
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content)
                names.append(name)
    # The folder is a member too, and so is a file that belongs to no sample.
    (folder / "README").write_text("notes")
    members = ["deep", "README", *names]
    command = ["tar", "--format=gnu", "--no-recursion", "-cf", str(path), *members]
    subprocess.run(command, cwd=folder, check=True)


def with_tarfile(path: Path, samples: list[Sample]) -> None:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for sample in samples:
            for extension, content in sample.items():
                if extension != "__key__":
                    info = tarfile.TarInfo(f"{sample['__key__']}.{extension.upper()}")
                    info.size, info.mtime = len(content), 12345.678
                    tar.addfile(info, io.BytesIO(content))


def with_webdataset(path: Path, samples: list[Sample]) -> None:
    with wds.TarWriter(str(path), encoder=False) as writer:
        for sample in samples:
            writer.write(sample)


WRITERS = [with_gnu_tar, with_tarfile, with_webdataset]


def write_shards(
    folder: Path, writer: Callable[[Path, list[Sample]], None], kind: str, side: int = 40
) -> list[Sample]:
    folder.mkdir(parents=True, exist_ok=True)
    samples = rows(kind, 70, side=side)
    for number, (begin, end) in enumerate([(0, 30), (30, 31), (31, 70)]):
        writer(folder / f"x-{number:03d}.tar", samples[begin:end])
    return samples


def indexed(store: Store, url: str) -> IndexResult:
    return index_shards(store, url, find_shards(store, url))


def read_classes(store: Store, manifest: Manifest) -> list[int]:
    """The class of every sample, as an evaluation reads them."""
    with EvalLoader(store, manifest, rank=0, world_size=1, batch_size=16, input_size=32) as loader:
        return [target for batch in loader for target in batch.targets[batch.weights > 0].tolist()]


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("kind", ["cls", "txt", "json"])
def test_foreign_shards_are_indexed_and_read(
    tmp_path: Path, writer: Callable[[Path, list[Sample]], None], kind: str
) -> None:
    samples = write_shards(tmp_path, writer, kind)
    result = indexed(Store(), tmp_path.as_uri())
    manifest = result.manifest
    assert [shard.num_samples for shard in manifest.shards] == [30, 1, 39]
    assert manifest.classes == (("0", "1", "2") if kind == "cls" else NAMES)
    assert result.without_image == result.without_label == (0, ())
    save_manifest(Store(), manifest)
    again = load_manifest(Store(), tmp_path.as_uri())
    assert again.fingerprint == manifest.fingerprint
    assert again.label == {"cls": "cls", "txt": "txt", "json": "json:label"}[kind]
    assert read_classes(Store(), again) == [i % 3 for i in range(len(samples))]


def test_only_headers_and_labels_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For large images a fraction of the bytes, in about one request per sample."""
    write_shards(tmp_path, with_webdataset, "cls", side=250)
    requests: list[int] = []
    read_into = Store.read_into

    def counted(self: Store, url: str, view: memoryview, start: int, etag: str | None) -> None:
        requests.append(len(view))
        read_into(self, url, view, start, etag)

    monkeypatch.setattr(Store, "read_into", counted)
    entries = find_shards(Store(), tmp_path.as_uri())
    total = sum(entry.size_bytes for entry in entries)
    index_shards(Store(), tmp_path.as_uri(), entries)
    assert total > 4_000_000
    assert sum(requests) < 0.25 * total
    assert len(requests) < 1.2 * 70


def test_patterns_name_splits_that_share_a_folder(s3: Store) -> None:
    base = "s3://data/shared"
    for split, count in (("train", 3), ("val", 2)):
        for number in range(count):
            buffer = io.BytesIO()
            with wds.TarWriter(buffer, encoder=False) as writer:
                for sample in rows("cls", 5, first=5 * number):
                    writer.write(sample)
            s3.write(f"{base}/{split}-{number:03d}.tar", buffer.getvalue())
    for split, last, count in (("train", 2, 15), ("val", 1, 10), ("train", 1, 10)):
        url = f"{base}/{split}-{{000..{last:03d}}}.tar"
        save_manifest(s3, indexed(s3, url).manifest)
        assert index_url(url) == f"{base}/{split}-000..{last:03d}.index.json"
        manifest = load_manifest(s3, url)
        assert manifest.num_samples == count
        assert len(read_classes(s3, manifest)) == count
    with pytest.raises(DataError, match="got no such object"):
        find_shards(s3, f"{base}/train-{{000..009}}.tar")
    with pytest.raises(DataError, match="rayception index"):
        load_manifest(s3, f"{base}/train-{{000..009}}.tar")


def test_shards_on_a_web_server_with_an_index_elsewhere(
    s3: Store, web_url: str, tmp_path: Path
) -> None:
    write_shards(tmp_path / "web", with_tarfile, "json")
    for path in (tmp_path / "web").glob("*.tar"):
        s3.write(f"s3://data/web/{path.name}", path.read_bytes())
    pattern = f"{web_url}/data/web/x-{{000..002}}.tar"
    place = (tmp_path / "index").as_uri()
    entries = find_shards(Store(), pattern)
    assert all(entry.etag for entry in entries)
    save_manifest(Store(), index_shards(Store(), place, entries).manifest)
    manifest = load_manifest(Store(), place)
    assert manifest.shard_url(0) == f"{web_url}/data/web/x-000.tar"
    assert read_classes(Store(), manifest) == [i % 3 for i in range(70)]
    s3.write("s3://data/web/x-001.tar", (tmp_path / "web" / "x-000.tar").read_bytes())
    with pytest.raises(DataError, match=r"another ETag|fewer bytes"):
        read_classes(Store(), manifest)
    with pytest.raises(StoreError, match="lists no files"):
        find_shards(Store(), f"{web_url}/data/web")
    with pytest.raises(StoreError, match="read only"):
        Store().write(f"{web_url}/data/web/y.tar", b"")
    with pytest.raises(DataError, match="got no such object"):
        Store().read(f"{web_url}/data/web/none.tar")


def test_missing_files_are_counted_and_nothing_at_all_is_an_error(tmp_path: Path) -> None:
    samples = rows("cls", 20)
    del samples[3]["jpg"], samples[5]["cls"]
    samples[7]["cls"] = b""
    with_webdataset(tmp_path / "a.tar", samples)
    result = indexed(Store(), tmp_path.as_uri())
    assert result.without_image[0] == 1
    assert "0003" in result.without_image[1][0]
    assert result.without_label[0] == 2  # an empty file is no label
    assert result.manifest.classes == ("0", "1", "2")
    with_webdataset(tmp_path / "a.tar", [{"__key__": "x", "wav": b"sound", "cls": b"1"}])
    with pytest.raises(DataError, match="none with an image"):
        indexed(Store(), tmp_path.as_uri())
    with_webdataset(tmp_path / "a.tar", [{"__key__": "x", "jpg": b"image"}])
    with pytest.raises(DataError, match="none with a label"):
        indexed(Store(), tmp_path.as_uri())


def test_a_number_among_names_is_not_taken_for_another_class(tmp_path: Path) -> None:
    """The sorted names are 0, 2, cat: the label 2 would be the class of the cats."""
    samples = [
        {"__key__": text, "jpg": jpeg(1), "txt": text.encode()} for text in ("0", "2", "cat")
    ]
    with_webdataset(tmp_path / "a.tar", samples)
    with pytest.raises(
        DataError, match=r"got the label '2' among names such as 'cat'; .*--classes"
    ):
        indexed(Store(), tmp_path.as_uri())
    entries = find_shards(Store(), tmp_path.as_uri())
    with pytest.raises(DataError, match="got the label '2'"):
        plan_repack(Store(), entries, shard_bytes=10**6)
    classes = ("a", "b", "c", "cat")
    manifest = index_shards(Store(), tmp_path.as_uri(), entries, classes=classes).manifest
    assert read_classes(Store(), manifest) == [0, 2, 3]
    with_webdataset(tmp_path / "a.tar", samples[::2])  # 0 and cat: 0 is the first name
    assert indexed(Store(), tmp_path.as_uri()).manifest.classes == ("0", "cat")


def test_cut_and_compressed_shards_are_reported(tmp_path: Path) -> None:
    with_webdataset(tmp_path / "a.tar", rows("cls", 9))
    content = (tmp_path / "a.tar").read_bytes()
    last = max(i for i in range(0, len(content), 512) if any(content[i : i + 512])) + 512
    for cut in range(512, last + 1, 512):  # also between members, where nothing else is missing
        (tmp_path / "a.tar").write_bytes(content[:cut])
        with pytest.raises(ShardError, match=r"a\.tar: got .*the shard is cut"):
            indexed(Store(), tmp_path.as_uri())
    (tmp_path / "a.tar").write_bytes(content[: last + 512])
    assert indexed(Store(), tmp_path.as_uri()).manifest.num_samples == 9
    (tmp_path / "a.tar").rename(tmp_path / "a.tar.gz")
    with pytest.raises(DataError, match=r"not a plain \.tar"):
        find_shards(Store(), tmp_path.as_uri())
    with pytest.raises(DataError, match=r"not a plain \.tar"):
        find_shards(Store(), f"{tmp_path.as_uri()}/{{a,b}}.tar.gz")
    with pytest.raises(DataError, match="unbalanced brace"):
        find_shards(Store(), f"{tmp_path.as_uri()}/a-{{0..3.tar")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no \.tar among them"):
        find_shards(Store(), (tmp_path / "empty").as_uri())


@pytest.mark.parametrize("kind", ["cls", "txt", "json"])
def test_tars_are_packed_into_shards_of_another_size(tmp_path: Path, kind: str) -> None:
    """Keys, order, files and classes stay; keys that two shards share are made different."""
    samples = write_shards(tmp_path / "in", with_gnu_tar, kind)
    with_webdataset(tmp_path / "in" / "x-003.tar", rows(kind, 4))  # the first four keys again
    source = Store(), find_shards(Store(), (tmp_path / "in").as_uri())
    fingerprints = []
    for workers in (1, 3):
        plans, classes = plan_repack(*source, shard_bytes=60_000)
        url = (tmp_path / f"out-{workers}").as_uri()
        packed = pack_shards(plans, Store(), url, classes=classes, workers=workers)
        fingerprints.append(packed.fingerprint)
    assert fingerprints[0] == fingerprints[1]
    assert packed.num_samples == 74
    assert len(packed.shards) > 4
    assert max(shard.size_bytes for shard in packed.shards) < 60_000 + 2 * 20_480  # end blocks
    assert packed.classes == (("0", "1", "2") if kind == "cls" else NAMES)
    urls = [packed.shard_url(i).removeprefix("file://") for i in range(len(packed.shards))]
    read = list(wds.WebDataset(urls, shardshuffle=False))
    assert [r["jpg"] for r in read] == [s["jpg"] for s in [*samples, *samples[:4]]]
    assert [int(r["cls"]) for r in read[:70]] == [i % 3 for i in range(70)]
    assert all(kind in r for r in read)
    assert read[0]["__key__"] == f"x-000/{samples[0]['__key__']}"
    assert read[10]["__key__"] == samples[10]["__key__"]


def test_the_verbs(tmp_path: Path) -> None:
    write_shards(tmp_path / "in", with_tarfile, "txt")
    pattern = f"{(tmp_path / 'in').as_uri()}/x-{{000..002}}.tar"
    (tmp_path / "names").write_text("eel\ndog\ncat\n")
    command = [RAYCEPTION, "index", pattern, "--classes", str(tmp_path / "names"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["classes"] == ["eel", "dog", "cat"]
    assert rayception("verify", pattern).returncode == 0
    assert rayception("inspect", pattern, "--sheet", str(tmp_path / "s.png")).returncode == 0
    packed = rayception("pack", str(tmp_path / "in"), (tmp_path / "out").as_uri(), "--json")
    assert packed.returncode == 0, packed.stderr
    assert json.loads(packed.stdout)["num_samples"] == 70
    for arguments, message in (
        (("index", pattern, pattern), "Quote the pattern"),
        (("index", "photos"), "a prefix or a pattern of shards"),
        (("index", "https://host/x-{0..9}.tar"), "--to: got"),
        (("index", pattern, "--classes", str(tmp_path / "none")), "--classes: got"),
        (("index", (tmp_path / "nothing").as_uri()), "no .tar among them"),
    ):
        failed = rayception(*arguments)
        assert failed.returncode == 2
        assert message in failed.stderr
        assert len(failed.stderr.strip().splitlines()) == 1


def test_an_indexed_split_trains(tmp_path: Path) -> None:
    """Order and loader need nothing that only `pack` writes."""
    write_shards(tmp_path, with_gnu_tar, "json")
    manifest = indexed(Store(), tmp_path.as_uri()).manifest
    order = order_of(manifest, lanes=3)
    with train_loader(
        Store(), manifest, order=order, global_batch_size=14, micro_batch_size=7
    ) as loader:
        batches = [batch for step in islice(loader, 5) for batch in step]
    seen = {tuple(row) for batch in batches for row in batch.samples.tolist()}
    assert len(seen) == 70
    for batch in batches:
        for (shard, sample), target in zip(batch.samples.tolist(), batch.targets, strict=True):
            assert int(target) == ([0, 30, 31][shard] + sample) % 3
