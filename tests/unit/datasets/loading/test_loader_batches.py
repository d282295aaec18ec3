"""The loader: the same global batches on any number of ranks and threads, from any step."""

import threading
from collections import Counter
from concurrent.futures import Future
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset as wds

from datasets.errors import DataError
from datasets.images.augment import Augment
from datasets.loading.batch import MicroBatch
from datasets.loading.loader import EvalLoader
from datasets.loading.stream import (
    SampleRuns,
    build_pipeline,
    fetch_run,
    stream,
    train_requests,
    with_bytes,
)
from datasets.order import Run
from datasets.packing.pack import pack
from datasets.packing.sources import digits
from datasets.shards.manifest import Manifest, load_manifest
from datasets.storage.checksums import decode_json, encode_json
from datasets.storage.store import Store
from tests.unit.datasets.loaders import BATCH, MICRO, PIXELS, order_of, train_loader

Packed = tuple[Store, Manifest]
AUGMENT = Augment(area=(0.5, 1.0))


def steps(
    packed: Packed, world_size: int, *, first: int, count: int, threads: int = 1
) -> list[dict[int, MicroBatch]]:
    """The micro-batches of each step by index, gathered from every rank."""
    gathered: list[dict[int, MicroBatch]] = [{} for _ in range(count)]
    for rank in range(world_size):
        with train_loader(
            *packed, order=order_of(packed[1], lanes=5), first_step=first, rank=rank,
            world_size=world_size, augment=AUGMENT, threads=threads,
        ) as loader:  # fmt: skip
            for number, batches in enumerate(islice(loader, count)):
                for batch in batches:
                    assert batch.index not in gathered[number]
                    gathered[number][batch.index] = batch
    return gathered


def assert_same(
    expected: list[dict[int, MicroBatch]], batches: list[dict[int, MicroBatch]]
) -> None:
    for a, b in zip(expected, batches, strict=True):
        assert sorted(a) == sorted(b) == list(range(BATCH // MICRO))
        for j in a:
            assert torch.equal(a[j].samples, b[j].samples)
            assert a[j].keys == b[j].keys
            assert torch.equal(a[j].images, b[j].images)
            assert torch.equal(a[j].targets, b[j].targets)
            assert torch.equal(a[j].mirrored, b[j].mirrored)


# 4 and 5 ranks do not divide the six micro-batches; 33 steps reach into the second epoch.
@pytest.mark.parametrize(("world_size", "threads"), [(2, 1), (3, 2), (4, 3), (5, 1), (6, 2)])
def test_same_batches_on_any_cluster(packed: Packed, world_size: int, threads: int) -> None:
    one_rank = steps(packed, 1, first=0, count=33)
    assert_same(one_rank, steps(packed, world_size, first=0, count=33, threads=threads))


@pytest.mark.parametrize("first", [1, 7, 29, 30, 31, 200])
def test_resume_is_the_tail_on_another_world_size(packed: Packed, first: int) -> None:
    assert_same(
        steps(packed, 1, first=first - 1, count=4)[1:],
        steps(packed, 3, first=first, count=3),
    )


def test_every_sample_once_an_epoch(packed: Packed) -> None:
    _, manifest = packed
    seen = torch.cat(
        [batch.samples for step in steps(packed, 2, first=0, count=60) for batch in step.values()]
    )
    counts = Counter(map(tuple, seen.tolist()))
    assert len(counts) == manifest.num_samples
    # 60 steps are 2,880 samples: each of the 1,437 twice, and six of the third epoch.
    assert sorted(counts.values()) == [2] * (1437 - 6) + [3] * 6


def test_batches_hold_the_right_labels_and_layout(packed: Packed) -> None:
    _, labels = digits_by_key()
    store, manifest = packed
    requests = train_requests(
        range(100), order_of(manifest, lanes=5), partial(fetched, store, manifest)
    )
    keys = [sample["__key__"] for sample in build_pipeline(stream(requests, lookahead=3))]
    assert len(set(keys)) == 100
    batch = steps(packed, 1, first=0, count=1)[0][0]
    expected = [labels[keys[p]] for p in range(0, BATCH, BATCH // MICRO)]
    assert batch.targets.tolist() == expected
    assert batch.images.shape == (MICRO, 3, PIXELS, PIXELS)
    assert batch.images.dtype == torch.uint8
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.weights.tolist() == [1.0] * MICRO


def fetched(store: Store, manifest: Manifest, runs: tuple[Run, ...]) -> SampleRuns:
    futures: SampleRuns = {}
    for run in runs:
        futures[run[0]] = Future()
        futures[run[0]].set_result(fetch_run(store, manifest, run))
    return futures


def digits_by_key() -> tuple[dict[str, bytes], dict[str, int]]:
    samples, _ = digits("train")
    rows = list(samples)
    return {r["__key__"]: r["png"] for r in rows}, {r["__key__"]: int(r["cls"]) for r in rows}


@pytest.mark.parametrize("world_size", [1, 2, 7])
def test_evaluation_scores_every_sample_once(packed: Packed, world_size: int) -> None:
    store, manifest = packed
    seen = []
    for rank in range(world_size):
        with (
            torch.inference_mode(),  # as evaluations iterate
            EvalLoader(
                store, manifest, rank=rank, world_size=world_size, batch_size=100,
                input_size=PIXELS, threads=2,
            ) as loader,
        ):  # fmt: skip
            for batch in loader:
                assert len(batch.targets) == 100
                seen += batch.samples[batch.weights > 0].tolist()
    assert len(seen) == manifest.num_samples
    assert len({tuple(row) for row in seen}) == manifest.num_samples


def test_webdatasets_own_stages_follow_our_source(packed: Packed) -> None:
    store, manifest = packed
    requests = train_requests(range(40), order_of(manifest), partial(fetched, store, manifest))
    pipeline = wds.DataPipeline(
        stream(requests, lookahead=4),
        wds.map(with_bytes),
        wds.decode("rgb8"),
        wds.to_tuple("png", "cls"),
        wds.batched(8),
    )
    images, labels = next(iter(pipeline))
    assert np.asarray(images).shape == (8, 8, 8, 3)
    assert len(labels) == 8


def test_what_we_pack_opens_in_plain_webdataset(packed: Packed) -> None:
    _, manifest = packed
    urls = [manifest.shard_url(i).removeprefix("file://") for i in range(len(manifest.shards))]
    images, labels = digits_by_key()
    samples = list(wds.WebDataset(urls, shardshuffle=False))
    assert [s["__key__"] for s in samples] == list(images)
    assert all(s["png"] == images[s["__key__"]] for s in samples)
    assert all(int(s["cls"]) == labels[s["__key__"]] for s in samples)


def test_packing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    store = Store()
    fingerprints = []
    for name in ("one", "two"):
        samples, classes = digits("val")
        url = (tmp_path / name).as_uri()
        manifest = pack(samples, store, url, classes=classes, samples_per_shard=128)
        assert [s.num_samples for s in manifest.shards] == [128, 128, 104]
        fingerprints.append(manifest.fingerprint)
        assert load_manifest(store, url).fingerprint == manifest.fingerprint
    assert fingerprints[0] == fingerprints[1]


def test_digits_split_is_seeded_and_whole() -> None:
    train, classes = digits("train")
    val, _ = digits("val")
    keys = [s["__key__"] for s in train], [s["__key__"] for s in val]
    assert (len(keys[0]), len(keys[1])) == (1437, 360)
    assert len({*keys[0], *keys[1]}) == 1797
    assert classes == tuple("0123456789")


def test_manifest_mistakes_are_one_line(tmp_path: Path, packed: Packed) -> None:
    store, manifest = packed
    with pytest.raises(DataError, match=r"got no shards and no index\.json"):
        load_manifest(store, (tmp_path / "empty").as_uri())
    (tmp_path / "x.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"got 1 tar shards without index\.json"):
        load_manifest(store, tmp_path.as_uri())
    index = store.read(f"{manifest.url}/index.json")
    offsets = store.read(f"{manifest.url}/index.offsets")
    checksums = store.read(f"{manifest.url}/index.checksums")
    values = decode_json(index)
    for name, content, message in (
        ("index.json", b"{", "damaged"),
        ("index.json", b"[]", "damaged"),
        ("index.json", encode_json(values | {"format": 9}), "format 9"),
        ("index.json", encode_json(values | {"num_samples": 1436}), "do not add up"),
        (
            "index.json",
            index.replace(b"1437", b"1436"),
            r"got values with the checksum \w{8} where",
        ),
        ("index.offsets", offsets[:-4], "another checksum"),
        ("index.checksums", checksums[4:], "another checksum"),
    ):
        store.write(f"{tmp_path.as_uri()}/index.json", index)
        store.write(f"{tmp_path.as_uri()}/index.offsets", offsets)
        store.write(f"{tmp_path.as_uri()}/index.checksums", checksums)
        store.write(f"{tmp_path.as_uri()}/{name}", content)
        with pytest.raises(DataError, match=message):
            load_manifest(store, tmp_path.as_uri())


@pytest.mark.parametrize("damage", ["cut", "replaced", "header"])
def test_damaged_shard_stops_at_its_sample_and_leaves_no_thread(
    tmp_path: Path, damage: str
) -> None:
    store, url = Store(), tmp_path.as_uri()
    samples, classes = digits("val")
    manifest = pack(samples, store, url, classes=classes, samples_per_shard=90)
    shard = tmp_path / manifest.shards[2].name
    content = bytearray(shard.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2 // 512 * 512]
    elif damage == "replaced":
        content = content[1024:] + bytes(1024)
    else:
        content[512 * 40 : 512 * 41] = b"\xff" * 512
    shard.write_bytes(content)
    with (
        pytest.raises(DataError, match=manifest.shards[2].name),
        EvalLoader(
            store, manifest, rank=0, world_size=1, batch_size=30, input_size=PIXELS
        ) as loader,
    ):
        list(loader)
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name.startswith(("fetch", "decode"))]


def test_a_damaged_header_costs_its_sample_alone(tmp_path: Path) -> None:
    """The next sample's offset does not depend on the damaged one."""
    store, url = Store(), tmp_path.as_uri()
    samples, classes = digits("val")
    manifest = pack(samples, store, url, classes=classes, samples_per_shard=90)
    content = bytearray((tmp_path / manifest.shards[2].name).read_bytes())
    start, _ = manifest.shards[2].byte_range(33, 1)
    content[start : start + 100] = b"\xff" * 100
    (tmp_path / manifest.shards[2].name).write_bytes(content)
    with EvalLoader(
        store, manifest, rank=0, world_size=1, batch_size=30, input_size=PIXELS, is_skipping=True
    ) as loader:
        lost = [
            tuple(row) for batch in loader for row in batch.samples[batch.weights == 0].tolist()
        ]
    assert lost == [(2, 33)]
    assert loader.damages.counts == {"shard": 1}


@pytest.mark.parametrize("world_size", [1, 3])
def test_skipped_damage_keeps_every_place(packed: Packed, tmp_path: Path, world_size: int) -> None:
    """A bad image, a bad label and a lost shard: all other samples keep their places and pixels, on
    any number of ranks; the damaged ones have weight zero and are counted."""
    store, url = Store(), tmp_path.as_uri()
    rows, classes = digits("train")
    samples = list(rows)
    samples[5] = {**samples[5], "png": b"no image"}
    samples[250] = {**samples[250], "cls": b"cat"}
    manifest = pack(samples, store, url, classes=classes, samples_per_shard=100)
    (tmp_path / manifest.shards[7].name).unlink()
    bad = {(0, 5), (2, 50)} | {(7, sample) for sample in range(100)}
    whole = steps(packed, 1, first=0, count=29)
    skipped: Counter[str] = Counter()
    seen = 0
    for rank in range(world_size):
        with train_loader(
            store, manifest, order=order_of(manifest, lanes=5), rank=rank, world_size=world_size,
            augment=AUGMENT, is_skipping=True,
        ) as loader:  # fmt: skip
            for number, batches in enumerate(islice(loader, 29)):
                for batch in batches:
                    assert torch.equal(batch.samples, whole[number][batch.index].samples)
                    lost = torch.tensor([tuple(row) in bad for row in batch.samples.tolist()])
                    assert torch.equal(batch.weights == 0, lost)
                    expected = whole[number][batch.index].images[~lost]
                    assert torch.equal(batch.images[~lost], expected)
                    seen += int(lost.sum())
            skipped += loader.damages.counts
            assert len(loader.damages.first) <= 5
    assert skipped["image"] <= 1
    assert skipped["label"] <= 1
    assert skipped.total() == seen >= 90  # only of these steps, though threads run ahead
    with pytest.raises(DataError), train_loader(store, manifest) as loader:
        list(islice(loader, 29))
