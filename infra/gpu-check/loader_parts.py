"""Parts that measure the data path. Each function is a part and returns its result."""

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from measure import DEVICE

from datasets.images.augment import Augment
from datasets.loading.batch import empty_buffer
from datasets.loading.device import to_device
from datasets.loading.loader import TrainLoader
from datasets.order import Order
from datasets.packing.pack import pack
from datasets.storage.store import Store

NUM_CLASSES = 4


def data(tiny: bool) -> dict[str, Any]:
    """Images per second of the training loader from file:// shards, by threads and processes."""
    try:
        from tests.bench.images import make_images

        list(make_images(1))
    except ImportError as error:  # scikit-image is a requirement of the benchmarks only
        return {"skipped": str(error)}
    count, batch_size, seconds = (40, 8, 1) if tiny else (1280, 256, 6)
    samples = (
        {"__key__": f"{i:06d}", "jpg": jpeg, "cls": str(i % NUM_CLASSES).encode()}
        for i, jpeg in enumerate(make_images(count))
    )
    cores = os.cpu_count() or 1
    settings = [("threads", n) for n in (1, 2, 4, 8, 16) if n <= cores]
    settings += [("workers", n) for n in (2, 4, 8, 15) if n < cores]
    result = {}
    with tempfile.TemporaryDirectory() as folder:
        split = pack(
            samples,
            Store(),
            Path(folder).as_uri(),
            classes=[str(i) for i in range(NUM_CLASSES)],
            samples_per_shard=count // 4,
        )
        order = Order(
            seed=0, samples_per_shard=split.samples_per_shard, num_lanes=4 if tiny else 16, pieces=2
        )
        for kind, number in settings[:2] if tiny else settings:
            with TrainLoader(
                Store(),
                split,
                order,
                rank=0,
                world_size=1,
                global_batch_size=batch_size,
                micro_batch_size=batch_size,
                input_size=299,
                augment=Augment(),
                **{kind: number},
            ) as loader:
                batches = iter(loader)
                for _ in range(2):
                    next(batches)
                start, images = time.perf_counter(), 0
                while time.perf_counter() - start < seconds:
                    images += sum(len(batch.targets) for batch in next(batches))
                result[f"{number} {kind}"] = round(images / (time.perf_counter() - start), 1)
    return result


def copies(tiny: bool) -> dict[str, int]:
    """Whether batches arrive intact while pinned buffers are filled and freed at full speed."""
    expected, means = [], []
    for number in range(4 if tiny else 300):
        value = number % 251
        buffer = empty_buffer(32, 64 if tiny else 299)
        buffer.images.fill_(value)
        (batch,) = buffer.micro_batches([0], 32)
        expected.append(float(value))
        means.append(to_device(batch, DEVICE).images.to(torch.float32).mean())
    wrong = sum(float(mean) != value for mean, value in zip(means, expected, strict=True))
    return {"batches": len(means), "wrong": wrong}
