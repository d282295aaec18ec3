"""A folder or a CSV of images to shards: the same bytes each time, also after a kill; damage is
named; the contents are summarised."""

import csv
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.errors import DataError
from datasets.packing.audit import inspect, verify
from datasets.packing.files import list_images, plan_shards
from datasets.packing.pack import pack, pack_shards
from datasets.shards.manifest import Manifest, load_manifest
from datasets.storage.store import Store
from tests.forks import rayception

ROOT = Path(__file__).resolve().parents[4]
RAYCEPTION = str(Path(sys.executable).parent / "rayception")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 real crops in three class folders, with mixed formats and awkward names."""
    from sklearn.datasets import load_sample_images

    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for number in range(120):
        photograph = Image.fromarray(load_sample_images().images[number % 2])
        left, top = int(random.integers(0, 400)), int(random.integers(0, 200))
        crop = photograph.crop((left, top, left + 200, top + 150 + number))
        name = ["cat", "dog", "white bear"][number % 3]
        (folder / name / "deep").mkdir(parents=True, exist_ok=True)
        suffix = ["jpg", "JPEG", "png", "webp"][number % 4]
        place = folder / name / ("deep" if number % 5 == 0 else "")
        crop.save(place / f"im.age {number // 3}.{suffix}")
    (folder / "notes.txt").write_text("not an image")
    return folder


def packed(folder: Path, url: str, *, shard_bytes: int = 400_000, workers: int = 3) -> Manifest:
    images, classes = list_images(folder)
    plans = plan_shards(images, shard_bytes=shard_bytes, seed=1)
    return pack_shards(plans, Store(), url, classes=classes, workers=workers)


def test_folder_of_class_folders(photographs: Path, tmp_path: Path) -> None:
    manifest = packed(photographs, tmp_path.as_uri())
    assert manifest.classes == ("cat", "dog", "white bear")
    assert manifest.num_samples == 120
    assert len(manifest.shards) > 3
    assert all(shard.size_bytes < 400_000 + 20_480 for shard in manifest.shards)
    assert verify(Store(), manifest, threads=2, on_shard=lambda: None) == []
    assert not list(tmp_path.rglob(".parts/*"))


def test_same_files_same_bytes_whatever_the_workers(photographs: Path, tmp_path: Path) -> None:
    one = packed(photographs, (tmp_path / "one").as_uri(), workers=1)
    two = packed(photographs, (tmp_path / "two").as_uri(), workers=4)
    assert one.fingerprint == two.fingerprint


def test_csv_of_paths_and_labels(photographs: Path, tmp_path: Path) -> None:
    images, _ = list_images(photographs)
    table = photographs / "images.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["label", "path"])
        writer.writerows((f"c{i.label}", i.path.relative_to(photographs)) for i in images)
    try:
        listed, classes = list_images(table)
    finally:
        table.unlink()
    assert classes == ("c0", "c1", "c2")
    assert [(i.path, i.label) for i in listed] == [(i.path, i.label) for i in images]


def test_killed_pack_is_continued(photographs: Path, tmp_path: Path) -> None:
    destination = tmp_path / "split"
    command = [
        RAYCEPTION, "pack", str(photographs), destination.as_uri(), "--shard-mib", "1",
        "--threads", "1", "--json",
    ]  # fmt: skip
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(destination.glob(".parts/*.json")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    before = {path.name: path.stat().st_mtime_ns for path in destination.glob("*.tar")}
    finished = [path.name.removesuffix(".json") for path in destination.glob(".parts/*.json")]
    assert not (destination / "index.json").exists() or not finished
    done = rayception(*command[1:])
    assert done.returncode == 0, done.stderr
    for name in finished:  # not written again
        assert (destination / name).stat().st_mtime_ns == before[name]
    whole = packed(photographs, (tmp_path / "whole").as_uri(), shard_bytes=2**20)
    # The command's seed is 0 and `packed` has 1, so the reference is the same command elsewhere.
    fresh = [*command[:3], (tmp_path / "fresh").as_uri(), *command[4:]]
    again = rayception(*fresh[1:])
    assert json.loads(done.stdout)["fingerprint"] == json.loads(again.stdout)["fingerprint"]
    assert json.loads(done.stdout)["num_samples"] == whole.num_samples


def test_changed_source_is_packed_again(photographs: Path, tmp_path: Path) -> None:
    """A part file of another source is ignored."""
    images, classes = list_images(photographs)
    plans = plan_shards(images, shard_bytes=400_000, seed=1)
    store, url = Store(), tmp_path.as_uri()
    first = pack_shards(plans[:1], store, url, classes=classes)
    part = {
        "digest": "of another source", "size_bytes": first.size_bytes, "sha256": "x",
        "etag": None, "offsets": [0, 1],
    }  # fmt: skip
    store.write(f"{url}/.parts/shard-000000.tar.json", json.dumps(part).encode())
    assert pack_shards(plans[:1], store, url, classes=classes).fingerprint == first.fingerprint


def test_verify_names_each_damaged_sample(photographs: Path, tmp_path: Path) -> None:
    manifest = packed(photographs, tmp_path.as_uri())
    shard = tmp_path / manifest.shards[1].name
    content = bytearray(shard.read_bytes())
    start = int(manifest.shards[1].offsets[2]) * 512
    end = int(manifest.shards[1].offsets[3]) * 512
    label_and_header = 1024 + 512
    content[start + label_and_header + 200 : end - 600] = bytes(
        end - start - label_and_header - 800
    )
    shard.write_bytes(content)
    cut = tmp_path / manifest.shards[2].name
    cut.write_bytes(cut.read_bytes()[:200_000])
    (tmp_path / manifest.shards[3].name).unlink()
    damages = verify(Store(), manifest, threads=3, on_shard=lambda: None)
    by_shard = {
        name: [d for d in damages if d.shard == name] for name in {d.shard for d in damages}
    }
    assert sorted(by_shard) == [manifest.shards[i].name for i in (1, 2, 3)]
    assert [d.key is not None for d in by_shard[shard.name]] == [False, True]
    assert "another checksum" in by_shard[shard.name][0].message
    assert "no whole image" in by_shard[shard.name][1].message
    assert "cut" in by_shard[cut.name][-1].message
    assert "no such file" in by_shard[manifest.shards[3].name][0].message
    command = [RAYCEPTION, "verify", tmp_path.as_uri()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert f"{len(damages)} damaged" in done.stdout


def test_inspect_shows_counts_sizes_and_a_sheet(photographs: Path, tmp_path: Path) -> None:
    manifest = packed(photographs, (tmp_path / "x").as_uri())
    contents = inspect(Store(), manifest, look_at=120)
    assert contents.by_class == {"cat": 40, "dog": 40, "white bear": 40}
    assert contents.largest_size[0] > contents.median_size[0] > 150
    assert contents.sheet.size == (8 * 96, 8 * 96)
    sheet = tmp_path / "sheet.png"
    command = [RAYCEPTION, "inspect", manifest.url, "--sheet", str(sheet), "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["num_samples"] == 120
    with Image.open(sheet) as image:
        assert image.size == (768, 768)


def test_packed_split_trains_like_any_other(photographs: Path, tmp_path: Path) -> None:
    manifest = packed(photographs, tmp_path.as_uri())
    assert load_manifest(Store(), tmp_path.as_uri()).fingerprint == manifest.fingerprint


@pytest.mark.parametrize("form", ["{}/my split", "file://{}/my split"])
def test_a_split_may_be_at_any_path(tmp_path: Path, form: str) -> None:
    url = form.format(tmp_path)
    samples = [{"__key__": f"s{i}", "png": b"image", "cls": b"0"} for i in range(5)]
    manifest = pack(samples, Store(), url, classes=["a"], samples_per_shard=2)
    assert load_manifest(Store(), url).fingerprint == manifest.fingerprint
    assert not list(tmp_path.rglob(".parts/*"))


@pytest.mark.parametrize("keys", [["a.1", "a.2"], ["a", "b.c"], ["", "a"]])
def test_keys_that_readers_would_cut_are_refused(tmp_path: Path, keys: list[str]) -> None:
    """By webdataset's rule a.1 and a.2 are one sample, a; neither may be lost silently."""
    samples = [{"__key__": key, "png": b"image", "cls": b"0"} for key in keys]
    wrong = next(key for key in keys if key != "a")
    with pytest.raises(DataError, match=re.escape(f"got the key {wrong!r}; ")):
        pack(samples, Store(), tmp_path.as_uri(), classes=["a"], samples_per_shard=9)
    assert not (tmp_path / "index.json").exists()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p / "nothing", "nothing there"),
        (lambda p: p, "got no images"),
        (lambda p: _written(p / "x.csv", "file,label\n"), "got the columns file, label"),
        (lambda p: _written(p / "x.csv", "path,label\nno.jpg,a\n"), "no.jpg"),
        (lambda p: _written(p / "x.csv", "path,label\n"), "got no images"),
        (lambda p: _written(p / "x.zip", ""), "got a file"),
    ],
)
def test_wrong_source_is_one_line(
    tmp_path: Path, make: Callable[[Path], Path], message: str
) -> None:
    with pytest.raises(DataError) as caught:
        list_images(make(tmp_path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def _written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["verify", "data/train"], "s3://BUCKET/PATH"),
        (["verify", "file:///nothing/here"], "got no shards"),
        (["pack", "/nowhere", "file:///tmp/x"], "nothing there"),
        (["inspect", "s3://data/x", "--endpoint-url", "local"], "stack up"),
    ],
)
def test_mistakes_on_the_command_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYCEPTION_HOME", str(tmp_path))
    done = rayception(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
