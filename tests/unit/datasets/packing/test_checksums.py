"""Checksums of samples: where they come from, what they notice, and splits without them."""

import json
import os
import shutil
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from datasets.errors import DataError, ShardError
from datasets.loading import stream
from datasets.loading.loader import EvalLoader
from datasets.packing.audit import verify
from datasets.packing.checksum import add_checksums, keep_index
from datasets.packing.index import find_shards, index_shards
from datasets.packing.pack import pack
from datasets.shards.manifest import Manifest, load_manifest, save_manifest
from datasets.storage.cache import DiskCache
from datasets.storage.checksums import decode_json, encode_json
from datasets.storage.store import Store
from tests.forks import rayception
from tests.unit.datasets.loaders import train_loader
from tests.unit.datasets.photos import photo_samples

CLASSES = ("cat", "dog")
STORE = Store()


@pytest.fixture
def split(tmp_path: Path) -> Manifest:
    """Three packed shards of ten photographs."""
    url = (tmp_path / "split").as_uri()
    return pack(photo_samples(30), STORE, url, classes=CLASSES, samples_per_shard=10)


def path_of(manifest: Manifest, shard: int) -> Path:
    return Path(manifest.shard_url(shard).removeprefix("file://"))


def flip_bit(manifest: Manifest, shard: int, sample: int, *, at: float = 0.5) -> None:
    """Flips a bit of a sample where it lies: size and modification time stay. at: where in it."""
    path = path_of(manifest, shard)
    status, content = path.stat(), bytearray(path.read_bytes())
    start, length = manifest.shards[shard].byte_range(sample, 1)
    content[start + int(at * length)] ^= 4
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def as_old(manifest: Manifest) -> None:
    """Makes its index one of an earlier version, which had no checksum of anything but bytes."""
    url = f"{manifest.url}/index.json"
    values = json.loads(STORE.read(url))
    del values["checksums"], values["crc32c"]
    for shard in values["shards"]:
        shard["etag"] = None
    STORE.write(url, json.dumps(values).encode())


def damaged_samples(manifest: Manifest) -> tuple[list[tuple[int, ...]], list[str]]:
    """((shard, sample), message) of what an evaluation skips."""
    with EvalLoader(
        STORE, manifest, rank=0, world_size=1, batch_size=10, input_size=16, is_skipping=True
    ) as loader:
        lost = [
            tuple(row) for batch in loader for row in batch.samples[batch.weights == 0].tolist()
        ]
    return lost, loader.damages.first


def test_a_flipped_bit_is_a_damaged_sample_counted_and_named(split: Manifest) -> None:
    flip_bit(split, 1, 4)
    flip_bit(split, 2, 0, at=0.999)  # in the padding after its label
    manifest = load_manifest(STORE, split.url)
    lost, messages = damaged_samples(manifest)
    assert lost == [(1, 4), (2, 0)]
    assert (
        f"{split.shard_url(1)}:0014: got bytes that differ from the split's checksum" in messages[0]
    )
    assert f"{split.shard_url(2)}:0020: got bytes that differ" in messages[1]
    with (
        train_loader(STORE, manifest, global_batch_size=30, micro_batch_size=10, is_skipping=True)
        as loader
    ):  # fmt: skip
        [batches] = islice(loader, 1)
    weights = {
        tuple(s): w for b in batches for s, w in zip(b.samples.tolist(), b.weights, strict=True)
    }
    assert sorted(sample for sample, weight in weights.items() if not weight) == [(1, 4), (2, 0)]
    assert loader.damages.counts == {"shard": 2}
    with pytest.raises(ShardError, match="0014: got bytes that differ"):
        list(EvalLoader(STORE, manifest, rank=0, world_size=1, batch_size=10, input_size=16))


def test_without_checksums_or_verification_it_passes(split: Manifest) -> None:
    flip_bit(split, 1, 4)
    assert damaged_samples(load_manifest(STORE, split.url, verify=False)) == ([], [])
    as_old(split)
    assert damaged_samples(load_manifest(STORE, split.url)) == ([], [])
    with pytest.raises(DataError, match=r"^data\.verify: got true, and no checksums in ") as caught:
        load_manifest(STORE, split.url, verify=True)
    assert "rayception index --checksums" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", ["hides", "adds", "cuts"])
def test_a_changed_header_is_damage_and_no_reason_to_index_again(
    split: Manifest, change: str
) -> None:
    """Bytes that still are a tar, but of more or fewer samples: to index them would bless them."""
    path, (start, length) = path_of(split, 1), split.shards[1].byte_range(4, 1)
    content = path.read_bytes()
    part = bytearray(content[start : start + length])
    if change == "cuts":
        part[148] ^= 1  # in the header's own checksum
    else:
        name = b".0014.cls" if change == "hides" else b"0099.cls"
        part[: len(name) + 1] = name + b"\0"
        part[148:156] = b" " * 8
        part[148:156] = b"%06o\0 " % sum(part[:512])
    path.write_bytes(content[:start] + part + content[start + length :])
    lost, [message] = damaged_samples(load_manifest(STORE, split.url))
    assert lost == [(1, 4)]
    assert "got bytes that differ from the split's checksum" in message
    assert "Restore the shard from a copy" in message
    unverified = load_manifest(STORE, split.url, verify=False)
    assert damaged_samples(unverified)[0] == [(1, 4)]


def test_verify_names_what_still_decodes(split: Manifest) -> None:
    flip_bit(split, 0, 7)
    [of_shard, of_sample] = verify(
        STORE, load_manifest(STORE, split.url), threads=2, on_shard=lambda: None
    )
    assert (of_shard.shard, of_shard.key) == (split.shards[0].name, None)
    assert (of_sample.shard, of_sample.key) == (split.shards[0].name, "0007")
    assert "differ from the split's checksum" in of_sample.message


@pytest.mark.parametrize("piece", [512, 5_000, 8 * 2**20])
def test_read_from_existing_shards_they_are_those_of_packing(
    split: Manifest, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However the reads cut the samples."""
    monkeypatch.setattr(stream, "REQUEST_BYTES", piece)
    found = index_shards(STORE, split.url, find_shards(STORE, split.url)).manifest
    seen: list[str] = []
    added = add_checksums(STORE, found, workers=2, on_shard=lambda shard: seen.append(shard.name))
    assert seen == [shard.name for shard in split.shards]
    for shard, packed in zip(added.shards, split.shards, strict=True):
        assert np.array_equal(shard.checksums, packed.checksums)  # type: ignore[arg-type]
    assert added.fingerprint == found.fingerprint
    size = len(STORE.read(f"{split.url}/index.checksums"))
    assert size == 4 * split.num_samples


def test_adding_them_to_an_index_keeps_what_a_run_depends_on(split: Manifest) -> None:
    as_old(split)
    for path in Path(split.url.removeprefix("file://")).glob("*.tar"):
        os.utime(path)  # copied
    before = load_manifest(STORE, split.url)
    assert not before.has_checksums
    done = rayception("index", split.url, "--checksums", "--json")
    assert done.returncode == 0, done.stderr
    values = json.loads(done.stdout)
    assert values["has_checksums"] is True
    assert values["classes"] == ["cat", "dog"]  # headers only know 0 and 1
    assert values["fingerprint"] == before.fingerprint
    after = load_manifest(STORE, split.url, verify=True)
    assert after.fingerprint == before.fingerprint
    flip_bit(split, 2, 2)
    assert damaged_samples(after)[0] == [(2, 2)]


def test_damaged_shards_get_no_checksums_if_that_can_be_known(split: Manifest) -> None:
    as_old(split)
    flip_bit(split, 1, 4)
    done = rayception("index", split.url, "--checksums")
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert f"{split.shard_url(1)}: got bytes with another SHA-256" in done.stderr
    assert "if the change is meant, run `rayception index` without --checksums first" in done.stderr


def test_an_index_of_other_samples_is_not_kept(split: Manifest) -> None:
    found = index_shards(STORE, split.url, find_shards(STORE, split.url)).manifest
    assert keep_index(STORE, found).classes == CLASSES
    path_of(split, 1).write_bytes(path_of(split, 0).read_bytes())
    found = index_shards(STORE, split.url, find_shards(STORE, split.url)).manifest
    assert keep_index(STORE, found).classes == ("0", "1")
    STORE.write(f"{split.url}/index.json", b"{")
    assert keep_index(STORE, found) is found


@pytest.mark.parametrize(("old", "kept"), [("of-old-bytes", False), ("mtime:9-9", True)])
def test_an_index_of_other_bytes_of_the_same_sizes_is_not_kept(
    s3: Store, old: str, kept: bool
) -> None:
    """As after labels were changed in place; a file's time, of a split that was indexed on disk,
    says nothing. Where there is a SHA-256, reading the bytes decides."""
    url = f"s3://data/relabelled-{kept}"
    packed = pack(photo_samples(4), s3, url, classes=CLASSES, samples_per_shard=2)
    found = index_shards(s3, url, find_shards(s3, url)).manifest
    shards = [replace(packed.shards[0], etag=old), packed.shards[1]]
    save_manifest(s3, replace(packed, shards=tuple(shards)))
    assert keep_index(s3, found).classes == CLASSES
    add_checksums(s3, keep_index(s3, found), workers=1)
    save_manifest(s3, replace(packed, shards=tuple(replace(s, sha256=None) for s in shards)))
    assert keep_index(s3, found).classes == (CLASSES if kept else ("0", "1"))


def test_a_file_replaced_during_a_run_is_noticed_without_checksums(split: Manifest) -> None:
    """As an object whose ETag has changed is."""
    as_old(split)
    manifest = load_manifest(STORE, split.url)
    assert manifest.retimed == ()
    content = path_of(split, 1).read_bytes()
    path_of(split, 1).write_bytes(content)  # even with equal bytes: nothing else is known of them
    lost, messages = damaged_samples(manifest)
    assert lost == [(1, sample) for sample in range(10)]
    assert f"{split.shard_url(1)}: got a file of {len(content)} bytes, changed at 20" in messages[0]
    assert damaged_samples(load_manifest(STORE, split.url)) == ([], [])  # another run
    path_of(split, 1).write_bytes(content + bytes(10_240))
    assert damaged_samples(load_manifest(STORE, split.url))[0] == lost


def test_copies_of_a_split_are_read(split: Manifest, tmp_path: Path) -> None:
    """Whatever times they got; those without checksums tell that their shards have other ones."""
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path / "split", copy, copy_function=shutil.copyfile)
    assert damaged_samples(load_manifest(STORE, copy.as_uri())) == ([], [])
    unverified = load_manifest(STORE, copy.as_uri(), verify=False)
    assert unverified.retimed == tuple(shard.name for shard in split.shards)
    assert damaged_samples(unverified) == ([], [])
    assert load_manifest(STORE, split.url, verify=False).retimed == ()


def test_a_split_moves_between_disk_and_s3(split: Manifest, s3: Store, tmp_path: Path) -> None:
    """The disk's times are no ETags there, nor the other way round."""
    for path in (tmp_path / "split").glob("[!.]*"):
        s3.write(f"s3://data/moved/{path.name}", path.read_bytes())
    moved = load_manifest(s3, "s3://data/moved", verify=False)
    assert bytes(stream.fetch_run(s3, moved, (1, 0, 10)).content) == bytes(
        stream.fetch_run(STORE, split, (1, 0, 10)).content
    )
    assert [shard.etag for shard in moved.shards] == [
        s3.stat(moved.shard_url(number)).etag for number in range(3)
    ]
    assert moved.retimed == ()
    cached = Store(s3.config, DiskCache(tmp_path / "cache", 2**30))
    stream.fetch_run(cached, moved, (1, 0, 10))
    parts = [path.stat().st_size for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert max(parts) > moved.shards[1].size_bytes
    content = s3.read(moved.shard_url(1))
    for other in (content[:-512] + b"x" * 512, content + bytes(512)):
        s3.write(moved.shard_url(1), other)
        again = load_manifest(s3, "s3://data/moved", verify=False)
        replaced = stream.fetch_run(s3, moved, (1, 0, 10)).error
        assert "another ETag" in str(replaced)
        is_longer = len(other) > len(content)
        assert (stream.fetch_run(s3, again, (1, 0, 10)).error is not None) == is_longer
    url = "s3://data/packed-there"
    pack(photo_samples(30), s3, url, classes=CLASSES, samples_per_shard=10)
    (tmp_path / "back").mkdir()
    for entry in s3.list(f"{url}/"):
        (tmp_path / "back" / entry.url.rpartition("/")[2]).write_bytes(s3.read(entry.url))
    back = load_manifest(STORE, (tmp_path / "back").as_uri(), verify=False)
    assert back.retimed == ()
    assert damaged_samples(back) == ([], [])
    assert back.fingerprint == moved.fingerprint == split.fingerprint


def test_a_flipped_bit_on_s3_is_noticed_where_the_etag_is_right(s3: Store) -> None:
    """That of the damaged object: only the bytes tell."""
    url = "s3://data/rotten"
    manifest = pack(photo_samples(10), s3, url, classes=CLASSES, samples_per_shard=10)
    content = bytearray(s3.read(manifest.shard_url(0)))
    start, length = manifest.shards[0].byte_range(3, 1)
    content[start + length // 2] ^= 1
    s3.write(manifest.shard_url(0), bytes(content))
    values = decode_json(s3.read(f"{url}/index.json"))
    values["shards"][0]["etag"] = s3.stat(manifest.shard_url(0)).etag
    s3.write(f"{url}/index.json", encode_json(values))
    run = stream.fetch_run(s3, load_manifest(s3, url), (0, 0, 10))
    lost = [number for number in range(10) if "__damage__" in run.sample(number)]
    assert lost == [3]
