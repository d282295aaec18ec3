"""Loader processes: the same batches as without, damage and deaths reported, none left behind."""

import contextlib
import multiprocessing
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import chain, islice
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
from datasets.packing.pack import pack
from datasets.packing.sources import digits
from datasets.shards.manifest import Manifest
from datasets.storage.store import Store
from tests import forks
from tests.unit.datasets.loaders import train_loader
from tests.waiting import wait_for

Packed = tuple[Store, Manifest]
loader = partial(train_loader, augment=Augment(area=(0.4, 1.0), colour=1.0, operations=2))


def first_steps(loader: TrainLoader, count: int) -> list[list[MicroBatch]]:
    with loader:
        return list(islice(loader, count))


def assert_same(expected: list[list[MicroBatch]], steps: list[list[MicroBatch]]) -> None:
    for a, b in zip(chain(*expected), chain(*steps), strict=True):
        assert a.index == b.index
        assert a.keys == b.keys
        assert len(a.keys) == len(a.targets)
        for name in ("images", "targets", "weights", "samples", "mirrored", "colours"):
            assert torch.equal(getattr(a, name), getattr(b, name)), name


def many(*values: Any) -> Any:
    """Only in the full tier: each process takes seconds to import torch."""
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
    """Also over an epoch's end (after 29.9 steps), if parts do not divide the lanes, and with
    every random augmentation."""
    without, with_processes = (
        first_steps(
            loader(*packed, workers=n, rank=rank, world_size=world_size, first_step=first), 5
        )
        for n in (0, workers)
    )
    assert_same(without, with_processes)


def test_more_ranks_than_micro_batches_have_empty_steps(packed: Packed) -> None:
    assert first_steps(loader(*packed, workers=2, rank=7, world_size=8), 3) == [[], [], []]


@pytest.mark.parametrize("workers", [1, many(3)])
def test_damage_is_counted_or_raised_as_without_processes(tmp_path: Path, workers: int) -> None:
    rows, classes = digits("train")
    samples = list(rows)
    samples[5] = {**samples[5], "png": b"no image"}
    samples[250] = {**samples[250], "cls": b"cat"}
    manifest = pack(samples, Store(), tmp_path.as_uri(), classes=classes, samples_per_shard=100)
    (tmp_path / manifest.shards[7].name).unlink()
    content = bytearray((tmp_path / manifest.shards[3].name).read_bytes())
    start, length = manifest.shards[3].byte_range(40, 1)
    content[start + length - 1] ^= 1  # of its padding: it decodes as before
    (tmp_path / manifest.shards[3].name).write_bytes(content)
    results = []
    for number in (0, workers):
        skipping = loader(Store(), manifest, workers=number, is_skipping=True)
        steps = first_steps(skipping, 29)
        results.append((steps, skipping.damages.counts, sorted(skipping.damages.first)))
    assert_same(results[0][0], results[1][0])
    assert results[0][1:] == results[1][1:]
    assert results[0][1]["shard"] > 80
    lost = {
        tuple(row)
        for step in results[0][0]
        for batch in step
        for row in batch.samples[batch.weights == 0].tolist()
    }
    assert (3, 40) in lost
    with pytest.raises(DataError, match=r"\.tar: got no such file"):
        first_steps(loader(Store(), manifest, workers=min(workers, 2)), 29)


def test_a_refusing_store_is_reported_in_one_line(s3: Store, packed: Packed) -> None:
    assert_reported_in_one_line(s3, "s3://nobucket/x", "got no bucket nobucket", packed)


@pytest.mark.exhaustive  # retries with pauses
def test_an_unreachable_store_is_reported_in_one_line(packed: Packed) -> None:
    assert_reported_in_one_line(Store(), "http://127.0.0.1:9/x", "got no answer", packed)


def assert_reported_in_one_line(store: Store, url: str, message: str, packed: Packed) -> None:
    manifest = replace(packed[1], url=url)
    with pytest.raises(StoreError, match=message) as caught:
        first_steps(loader(store, manifest, workers=2), 1)
    assert "\n" not in str(caught.value)


def children() -> list[psutil.Process]:
    """The loader processes of this one."""
    processes = []
    for process in psutil.Process().children():
        with contextlib.suppress(psutil.Error):  # it may just end
            if "spawn_main" in " ".join(process.cmdline()):
                processes.append(process)
    return processes


def test_a_killed_process_is_noticed_and_none_is_left(packed: Packed) -> None:
    """In a thread, as Ray Train runs a rank: in a main thread torch's signal handler would raise,
    anywhere."""
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        with ThreadPoolExecutor(1) as thread:
            thread.submit(kill_one_and_continue, packed).result(60)
    finally:
        signal.signal(signal.SIGCHLD, handler)


def kill_one_and_continue(packed: Packed) -> None:
    before = len(children())
    with loader(*packed, workers=2) as killed:
        steps = iter(killed)
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
    with loader(store, load_manifest(store, url), workers=2) as endless:
        steps = iter(endless)
        next(steps)
        pids.send([process.pid for process in children()])
        while True:
            next(steps)
            time.sleep(0.01)


def test_processes_end_with_their_killed_rank(packed: Packed) -> None:
    receiver, sender = multiprocessing.Pipe(duplex=False)
    rank = forks.start(rank_process, packed[1].url, sender)
    assert receiver.poll(60)
    workers = receiver.recv()
    assert len(workers) == 2
    assert rank.pid is not None
    os.kill(rank.pid, signal.SIGKILL)
    rank.join(10)
    wait_for(lambda: not any(psutil.pid_exists(pid) for pid in workers), 30, lambda: str(workers))
