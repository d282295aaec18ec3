"""The loader: the same global batches on any number of ranks and threads, from any step."""

import threading
from collections import Counter
from concurrent.futures import Future
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset as wds

from datasets.errors import DataError
from datasets.images.augment import Augment
from datasets.loading.batch import MicroBatch
from datasets.loading.loader import EvalLoader, TrainLoader
from datasets.loading.stream import SampleRuns, build_pipeline, fetch_run, stream, train_requests
from datasets.order import Order, Window
from datasets.packing.pack import pack
from datasets.packing.sources import digits
from datasets.shards.manifest import Manifest, load_manifest
from datasets.storage.store import Store

Packed = tuple[Store, Manifest]
BATCH, MICRO, PIXELS = 48, 8, 16


def order_of(manifest: Manifest, lanes: int = 5) -> Order:
    return Order(
        seed=3, samples_per_shard=manifest.samples_per_shard, num_lanes=lanes, pieces=3, slices=4
    )


def steps(
    packed: Packed, world_size: int, *, first: int, count: int, threads: int = 1, lanes: int = 5
) -> list[dict[int, MicroBatch]]:
    """The micro-batches of each step by index, gathered from every rank."""
    store, manifest = packed
    gathered: list[dict[int, MicroBatch]] = [{} for _ in range(count)]
    for rank in range(world_size):
        with TrainLoader(
            store, manifest, order_of(manifest, lanes), rank=rank, world_size=world_size,
            global_batch_size=BATCH, micro_batch_size=MICRO, input_size=PIXELS,
            augment=Augment(area=(0.5, 1.0)), threads=threads, start_position=first * BATCH,
        ) as loader:  # fmt: skip
            for number, batches in enumerate(islice(loader, count)):
                for batch in batches:
                    assert batch.index not in gathered[number]
                    gathered[number][batch.index] = batch
    return gathered


def assert_same(one: list[dict[int, MicroBatch]], other: list[dict[int, MicroBatch]]) -> None:
    for a, b in zip(one, other, strict=True):
        assert sorted(a) == sorted(b) == list(range(BATCH // MICRO))
        for j in a:
            assert torch.equal(a[j].samples, b[j].samples)
            assert a[j].keys == b[j].keys
            assert torch.equal(a[j].images, b[j].images)
            assert torch.equal(a[j].targets, b[j].targets)
            assert torch.equal(a[j].mirrored, b[j].mirrored)


# 4 and 5 ranks do not divide the six micro-batches; 33 steps run on into the second epoch.
@pytest.mark.parametrize(("world_size", "threads"), [(2, 1), (3, 2), (4, 3), (5, 1), (6, 2)])
def test_same_batches_on_any_cluster(packed: Packed, world_size: int, threads: int) -> None:
    alone = steps(packed, 1, first=0, count=33)
    assert_same(alone, steps(packed, world_size, first=0, count=33, threads=threads))


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
    counts: dict[tuple[int, int], int] = {}
    for shard, sample in seen.tolist():
        counts[shard, sample] = counts.get((shard, sample), 0) + 1
    assert len(counts) == manifest.num_samples
    # 60 steps are 2,880 samples: each of the 1,437 twice, and six of the third epoch.
    assert sorted(counts.values()) == [2] * (1437 - 6) + [3] * 6


def test_batches_hold_the_right_labels_and_layout(packed: Packed) -> None:
    images, labels = _digits_by_key()
    store, manifest = packed
    tickets = train_requests(range(100), order_of(manifest), lambda w: _ready(store, manifest, w))
    keys = [s["__key__"] for s in build_pipeline(stream(tickets, lookahead=3))]
    assert len(set(keys)) == 100
    batch = steps(packed, 1, first=0, count=1)[0][0]
    expected = [labels[keys[p]] for p in range(0, BATCH, BATCH // MICRO)]
    assert batch.targets.tolist() == expected
    assert batch.images.shape == (MICRO, 3, PIXELS, PIXELS)
    assert batch.images.dtype == torch.uint8
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.weights.tolist() == [1.0] * MICRO
    assert images


def _ready(store: Store, manifest: Manifest, window: Window) -> SampleRuns:
    futures: SampleRuns = {}
    for run in window.runs:
        futures[run[0]] = Future()
        futures[run[0]].set_result(fetch_run(store, manifest, run))
    return futures


def _digits_by_key() -> tuple[dict[str, bytes], dict[str, int]]:
    samples, _ = digits("train")
    rows = list(samples)
    return {r["__key__"]: r["png"] for r in rows}, {r["__key__"]: int(r["cls"]) for r in rows}


@pytest.mark.parametrize("world_size", [1, 2, 7])
def test_evaluation_scores_every_sample_once(packed: Packed, world_size: int) -> None:
    store, manifest = packed
    seen = []
    for rank in range(world_size):
        with (
            torch.inference_mode(),  # as an evaluation takes them
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
    tickets = train_requests(range(40), order_of(manifest), lambda w: _ready(store, manifest, w))
    pipeline = wds.DataPipeline(
        stream(tickets, lookahead=4), wds.decode("rgb8"), wds.to_tuple("png", "cls"), wds.batched(8)
    )
    images, labels = next(iter(pipeline))
    assert np.asarray(images).shape == (8, 8, 8, 3)
    assert len(labels) == 8


def test_what_we_pack_opens_in_plain_webdataset(packed: Packed) -> None:
    _, manifest = packed
    urls = [manifest.shard_url(i).removeprefix("file://") for i in range(len(manifest.shards))]
    images, labels = _digits_by_key()
    found = list(wds.WebDataset(urls, shardshuffle=False))
    assert [s["__key__"] for s in found] == list(images)
    assert all(s["png"] == images[s["__key__"]] for s in found)
    assert all(int(s["cls"]) == labels[s["__key__"]] for s in found)


def test_packing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    store = Store()
    fingerprints = []
    for name in ("one", "two"):
        samples, classes = digits("val")
        url = (tmp_path / name).as_uri()
        made = pack(samples, store, url, classes=classes, samples_per_shard=128)
        assert [s.num_samples for s in made.shards] == [128, 128, 104]
        fingerprints.append(made.fingerprint)
        assert load_manifest(store, url).fingerprint == made.fingerprint
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
    for name, content, words in (
        ("index.json", b"{", "damaged"),
        ("index.json", index.replace(b'"format": 1', b'"format": 9'), "format 9"),
        ("index.json", index.replace(b"1437", b"1436"), "do not add up"),
        ("index.offsets", offsets[:-4], "another checksum"),
    ):
        store.write(f"{tmp_path.as_uri()}/index.json", index)
        store.write(f"{tmp_path.as_uri()}/index.offsets", offsets)
        store.write(f"{tmp_path.as_uri()}/{name}", content)
        with pytest.raises(DataError, match=words):
            load_manifest(store, tmp_path.as_uri())


@pytest.mark.parametrize("damage", ["cut", "replaced", "header"])
def test_damaged_shard_stops_at_its_sample_and_leaves_no_thread(
    tmp_path: Path, damage: str
) -> None:
    store, url = Store(), tmp_path.as_uri()
    samples, classes = digits("val")
    made = pack(samples, store, url, classes=classes, samples_per_shard=90)
    shard = tmp_path / made.shards[2].name
    content = bytearray(shard.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2 // 512 * 512]
    elif damage == "replaced":
        content = content[1024:] + bytes(1024)
    else:
        content[512 * 40 : 512 * 41] = b"\xff" * 512
    shard.write_bytes(content)
    with (
        pytest.raises(DataError, match=made.shards[2].name),
        EvalLoader(store, made, rank=0, world_size=1, batch_size=30, input_size=PIXELS) as loader,
    ):
        list(loader)
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name.startswith(("fetch", "decode"))]


def test_a_damaged_header_costs_its_sample_alone(tmp_path: Path) -> None:
    """Offsets say where the next sample begins, whatever the one before looks like."""
    store, url = Store(), tmp_path.as_uri()
    samples, classes = digits("val")
    made = pack(samples, store, url, classes=classes, samples_per_shard=90)
    content = bytearray((tmp_path / made.shards[2].name).read_bytes())
    start, _ = made.shards[2].byte_range(33, 1)
    content[start : start + 100] = b"\xff" * 100
    (tmp_path / made.shards[2].name).write_bytes(content)
    with EvalLoader(
        store, made, rank=0, world_size=1, batch_size=30, input_size=PIXELS, is_skipping=True
    ) as loader:
        lost = [
            tuple(row) for batch in loader for row in batch.samples[batch.weights == 0].tolist()
        ]
    assert lost == [(2, 33)]
    assert loader.damages.counts == {"shard": 1}


@pytest.mark.parametrize("world_size", [1, 3])
def test_skipped_damage_keeps_every_place(packed: Packed, tmp_path: Path, world_size: int) -> None:
    """A bad image, a bad label and a lost shard: all other samples stand where they stood, with
    the same pixels, on any number of ranks; the damaged ones have weight zero and are counted."""
    store, url = Store(), tmp_path.as_uri()
    rows, classes = digits("train")
    samples = list(rows)
    samples[5] = {**samples[5], "png": b"no image"}
    samples[250] = {**samples[250], "cls": b"cat"}
    made = pack(samples, store, url, classes=classes, samples_per_shard=100)
    (tmp_path / made.shards[7].name).unlink()
    bad = {(0, 5), (2, 50)} | {(7, sample) for sample in range(100)}
    whole = steps(packed, 1, first=0, count=29)
    skipped: Counter[str] = Counter()
    seen = 0
    for rank in range(world_size):
        with TrainLoader(
            store, made, order_of(made), rank=rank, world_size=world_size,
            global_batch_size=BATCH, micro_batch_size=MICRO, input_size=PIXELS,
            augment=Augment(area=(0.5, 1.0)), is_skipping=True,
        ) as loader:  # fmt: skip
            for number, batches in enumerate(islice(loader, 29)):
                for batch in batches:
                    assert torch.equal(batch.samples, whole[number][batch.index].samples)
                    lost = torch.tensor([tuple(row) in bad for row in batch.samples.tolist()])
                    assert torch.equal(batch.weights == 0, lost)
                    kept = whole[number][batch.index].images[~lost]
                    assert torch.equal(batch.images[~lost], kept)
                    seen += int(lost.sum())
            skipped += loader.damages.counts
            assert len(loader.damages.first) <= 5
    assert skipped["image"] <= 1
    assert skipped["label"] <= 1
    assert skipped.total() == seen >= 90  # of these steps alone, though threads run ahead
    with pytest.raises(DataError), steps_of(store, made) as loader:
        list(islice(loader, 29))


def steps_of(store: Store, manifest: Manifest) -> TrainLoader:
    """A loader that does not skip."""
    return TrainLoader(
        store, manifest, order_of(manifest), rank=0, world_size=1, global_batch_size=BATCH,
        micro_batch_size=MICRO, input_size=PIXELS, augment=Augment(),
    )  # fmt: skip
