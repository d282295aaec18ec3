"""What grows with the data set and what does not: a billion samples, thirty epochs, any step."""

import io
import json
import subprocess
import sys
import tracemalloc
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.loading.positions import plan_step
from datasets.loading.share import Share, loader_bytes
from datasets.order import Order
from datasets.packing.pack import pack
from datasets.shards.manifest import Manifest
from datasets.storage.store import Store
from tests.unit.datasets.loaders import order_of, train_loader

ROOT = Path(__file__).resolve().parents[3]


def test_a_billion_samples_in_a_hundred_thousand_shards_over_4096_ranks() -> None:
    """The order takes a few bytes per shard on a rank, wherever it starts."""
    counts = np.full(100_000, 10_000)
    batch, lanes = 4096 * 32, 4096
    tracemalloc.start()
    order = Order(seed=0, samples_per_shard=counts, num_lanes=lanes, pieces=4, slices=16)
    share = Share(rank=4095, world_size=4096, global_batch_size=batch, micro_batch_size=32)
    for step in (0, 7000, 500_000):  # the last in epoch 65
        positions = plan_step(share, step, order).positions
        assert len(positions) == 32
        assert share.num_lanes(lanes) == 1
        epoch, place = divmod(int(positions[0]), order.num_samples)
        window = next(order.windows(epoch, place % lanes, place // lanes))
        assert len(window.samples) <= 4 * (10_000 // 16 + 1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20e6  # 200 bytes a shard


@pytest.fixture(scope="module")
def photo_split(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """300 images of 30 kB, enough to show a leak."""
    random = np.random.default_rng(0)
    samples = []
    for number in range(300):
        buffer = io.BytesIO()
        pixels = random.integers(0, 256, (130, 150, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(buffer, "JPEG", quality=92)
        samples.append({"__key__": f"{number:04d}", "jpg": buffer.getvalue(), "cls": b"0"})
    url = tmp_path_factory.mktemp("photos").as_uri()
    return pack(samples, Store(), url, classes=["a"], samples_per_shard=38)


LEAK = """
import json, sys, weakref
from itertools import islice
import psutil
from datasets.loading import stream, views
from datasets.images.augment import Augment
from datasets.loading.loader import TrainLoader
from datasets.shards.manifest import load_manifest
from datasets.order import Order
from datasets.storage.store import Store

live = {"now": 0, "peak": 0}

def follow(owner, size):
    live["now"] += size
    live["peak"] = max(live["peak"], live["now"])
    weakref.finalize(owner, lambda: live.update(now=live["now"] - size))

def buffer(size, make=stream.buffer):
    view = make(size)
    follow(view.obj, size)
    return view

def empty_buffer(*count, make=views.empty_buffer, **options):
    batch = make(*count, **options)
    follow(batch.images.untyped_storage(), batch.images.nbytes)
    return batch

stream.buffer, views.empty_buffer = buffer, empty_buffer
manifest = load_manifest(Store(), sys.argv[1])
order = Order(seed=0, samples_per_shard=manifest.samples_per_shard, num_lanes=6, pieces=2, slices=5)
with TrainLoader(
    Store(), manifest, order, rank=0, world_size=1, global_batch_size=60, micro_batch_size=20,
    input_size=150, augment=Augment(colour=1.0, operations=1), threads=1,
) as loader:
    steps = iter(loader)
    sizes = []
    for epoch in range(int(sys.argv[2])):
        for step in islice(steps, 5):
            pass
        sizes.append(psutil.Process().memory_info().rss)
print(json.dumps({"sizes": sizes, "peak": live["peak"]}))
"""


def sizes_below_what_plan_states(photo_split: Manifest, epochs: int) -> list[int]:
    """RSS of a loader's process after each epoch. Its buffers stay below what `plan` states."""
    done = subprocess.run(
        [sys.executable, "-c", LEAK, photo_split.url, str(epochs)],
        cwd=ROOT, capture_output=True, text=True, timeout=200, check=True,
    )  # fmt: skip
    measured = json.loads(done.stdout)
    stated = loader_bytes(
        Share(rank=0, world_size=1, global_batch_size=60, micro_batch_size=20),
        num_samples=300,
        shard_samples=38,
        sample_bytes=photo_split.size_bytes / 300,
        lanes=6,
        pieces=2,
        slices=5,
        input_size=150,
    )
    assert 0.3 * stated < measured["peak"] <= stated
    sizes: list[int] = measured["sizes"]
    assert len(sizes) == epochs
    return sizes


def test_memory_is_below_what_plan_states(photo_split: Manifest) -> None:
    sizes_below_what_plan_states(photo_split, 4)


@pytest.mark.exhaustive
def test_memory_is_flat_over_epochs_and_below_what_plan_states(photo_split: Manifest) -> None:
    sizes = sizes_below_what_plan_states(photo_split, 30)
    # The process's heaps settle over some thousand images and then vary by a few rows. An epoch's
    # files are 10 MB, so a leak of a sixth of them per epoch would show.
    assert np.mean(sizes[20:]) - np.mean(sizes[10:20]) < 16e6, sizes


@pytest.mark.parametrize("share_of_epoch", [0.01, 0.5, 0.99])
def test_to_resume_anywhere_reads_no_more_than_to_begin(
    photo_split: Manifest, share_of_epoch: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes requested up to the first batch: a window per lane and the look-ahead, anywhere."""
    requested: list[int] = []
    read_into = Store.read_into

    def counted(self: Store, url: str, view: memoryview, *rest: int) -> None:
        requested.append(len(view))
        read_into(self, url, view, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Store, "read_into", counted)
    order = order_of(photo_split, seed=0, pieces=2, slices=10)
    totals = []
    for first in (0, int(25 * share_of_epoch)):
        requested.clear()
        with train_loader(
            Store(), photo_split, order=order, first_step=first, global_batch_size=12,
            micro_batch_size=12, input_size=32,
        ) as loader:  # fmt: skip
            next(islice(loader, 1))
        totals.append(sum(requested))
    fresh, resumed = totals
    assert resumed <= 2.0 * fresh  # a lane may have to open two windows for the look-ahead
    assert resumed < 0.5 * photo_split.size_bytes
