"""Loader processes: the same batches as without, damage and deaths told, nothing left behind."""

import contextlib
import multiprocessing
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from datasets.errors import DataError, LoaderError, StoreError
from datasets.images.augment import Augment
from datasets.loading.batch import MicroBatch
from datasets.loading.loader import TrainLoader
from datasets.order import Order
from datasets.packing.pack import pack
from datasets.packing.sources import digits
from datasets.shards.manifest import Manifest
from datasets.storage.store import Store
from tests import forks
from tests.waiting import wait_for

Packed = tuple[Store, Manifest]
AUGMENT = Augment(area=(0.4, 1.0), colour=1.0, operations=2)


def loader(
    store: Store, manifest: Manifest, *, workers: int, rank: int = 0, world_size: int = 1,
    first: int = 0, lanes: int = 6, is_skipping: bool = False,
) -> TrainLoader:  # fmt: skip
    order = Order(
        seed=3, samples_per_shard=manifest.samples_per_shard, num_lanes=lanes, pieces=3, slices=4
    )
    return TrainLoader(
        store, manifest, order, rank=rank, world_size=world_size, global_batch_size=48,
        micro_batch_size=8, input_size=16, augment=AUGMENT, workers=workers,
        is_skipping=is_skipping, start_position=48 * first,
    )  # fmt: skip


def taken(made: TrainLoader, count: int) -> list[list[MicroBatch]]:
    with made:
        return list(islice(made, count))


def assert_same(one: list[list[MicroBatch]], other: list[list[MicroBatch]]) -> None:
    for a, b in zip(
        [batch for step in one for batch in step], [batch for step in other for batch in step],
        strict=True,
    ):  # fmt: skip
        assert a.index == b.index
        assert a.keys == b.keys
        assert len(a.keys) == len(a.targets)
        for name in ("images", "targets", "weights", "samples", "mirrored", "colours"):
            assert torch.equal(getattr(a, name), getattr(b, name)), name


def many(*values: Any) -> Any:
    """A case of the full tier alone: each of its processes takes seconds to import torch."""
    return pytest.param(*values, marks=pytest.mark.exhaustive)


@pytest.mark.parametrize(
    ("workers", "rank", "world_size", "first"),
    [
        many(1, 0, 1, 0),
        many(2, 1, 2, 3),
        (3, 0, 1, 28),
        many(5, 2, 4, 29),
        many(4, 0, 6, 100),
    ],
)
def test_any_number_of_processes_gives_the_same_batches(
    packed: Packed, workers: int, rank: int, world_size: int, first: int
) -> None:
    """Also over an epoch's end (29.9 steps are one), where parts do not divide the lanes, and with
    everything that is drawn for a sample."""
    alone, beside = (
        taken(loader(*packed, workers=n, rank=rank, world_size=world_size, first=first), 5)
        for n in (0, workers)
    )
    assert_same(alone, beside)


def test_more_ranks_than_micro_batches_have_empty_steps(packed: Packed) -> None:
    assert taken(loader(*packed, workers=2, rank=7, world_size=8), 3) == [[], [], []]


@pytest.mark.parametrize("workers", [1, many(3)])
def test_damage_is_counted_or_raised_as_without_processes(tmp_path: Path, workers: int) -> None:
    rows, classes = digits("train")
    samples = list(rows)
    samples[5] = {**samples[5], "png": b"no image"}
    samples[250] = {**samples[250], "cls": b"cat"}
    made = pack(samples, Store(), tmp_path.as_uri(), classes=classes, samples_per_shard=100)
    (tmp_path / made.shards[7].name).unlink()
    found = []
    for number in (0, workers):
        with loader(Store(), made, workers=number, is_skipping=True) as one:
            steps = list(islice(one, 29))
        found.append((steps, one.damages.counts, sorted(one.damages.first)))
    assert_same(found[0][0], found[1][0])
    assert found[0][1:] == found[1][1:]
    assert found[0][1]["shard"] > 80
    with pytest.raises(DataError, match=r"\.tar: got no such file"):
        taken(loader(Store(), made, workers=min(workers, 2)), 29)


def test_a_refusing_store_is_told_in_one_line(s3: Store, packed: Packed) -> None:
    assert_told_in_one_line(s3, "s3://nobucket/x", "got no bucket nobucket", packed)


@pytest.mark.exhaustive  # it is asked again and again, with pauses
def test_a_store_that_is_away_is_told_in_one_line(packed: Packed) -> None:
    assert_told_in_one_line(Store(), "http://127.0.0.1:9/x", "got no answer", packed)


def assert_told_in_one_line(store: Store, url: str, words: str, packed: Packed) -> None:
    _, manifest = packed
    away = Manifest(url=url, classes=manifest.classes, shards=manifest.shards)
    with pytest.raises(StoreError, match=words) as caught:
        taken(loader(store, away, workers=2), 1)
    assert "\n" not in str(caught.value)


def children() -> list[psutil.Process]:
    """The loader processes of this one."""
    found = []
    for process in psutil.Process().children():
        with contextlib.suppress(psutil.Error):  # it ends as it is looked at
            if "spawn_main" in " ".join(process.cmdline()):
                found.append(process)
    return found


def test_a_killed_process_is_noticed_and_none_is_left(packed: Packed) -> None:
    """In a thread, as Ray Train runs a rank: on a main thread torch's signal handler speaks, in
    whatever line runs just then."""
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        with ThreadPoolExecutor(1) as thread:
            thread.submit(kill_one_and_go_on, packed).result(60)
    finally:
        signal.signal(signal.SIGCHLD, handler)


def kill_one_and_go_on(packed: Packed) -> None:
    before = len(children())
    made = loader(*packed, workers=2)
    with made:
        steps = iter(made)
        next(steps)
        victims = children()[before:]
        assert len(victims) == 2
        victims[0].kill()
        with pytest.raises(LoaderError, match=r"data\.loader_workers: got .*died"):
            list(islice(steps, 2000))
    wait_for(lambda: len(children()) <= before, 20, lambda: str(children()))


def rank_process(url: str, pids: "Connection[list[int], list[int]]") -> None:
    from datasets.shards.manifest import load_manifest

    store = Store()
    with loader(store, load_manifest(store, url), workers=2) as made:
        steps = iter(made)
        next(steps)
        pids.send([process.pid for process in children()])
        while True:
            next(steps)
            time.sleep(0.01)


def test_processes_end_with_their_killed_rank(packed: Packed) -> None:
    mine, its = multiprocessing.Pipe(duplex=False)
    rank = forks.start(rank_process, packed[1].url, its)
    assert mine.poll(60)
    workers = mine.recv()
    assert len(workers) == 2
    assert rank.pid is not None
    os.kill(rank.pid, signal.SIGKILL)
    rank.join(10)
    wait_for(lambda: not any(psutil.pid_exists(pid) for pid in workers), 30, lambda: str(workers))
