"""MB/s of our windows against bare parallel range GETs of the same objects, by boto3 itself."""

import os
import statistics
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
from botocore.config import Config
from rich.console import Console
from rich.table import Table

from datasets.images.augment import Augment
from datasets.loading.loader import TrainLoader
from datasets.loading.stream import REQUEST_BYTES, fetch_run, split_range
from datasets.order import Order
from datasets.packing.pack import pack
from datasets.shards.manifest import Manifest
from datasets.storage.store import Store, StoreConfig
from orchestration.stack import services
from orchestration.stack.services import Secrets
from tests.bench.rates import compare

THREADS = 4
COPIES = 6  # of the images: 360 MB in all


def bench_s3(console: Console, images: list[bytes], rounds: int) -> None:
    secrets = Secrets(access_key="bench", secret_key="benchbench", ray_token="", mlflow_token="")
    os.environ.update(services.s3_environment(secrets))
    with tempfile.TemporaryDirectory() as folder:
        port = services.free_ports(1)[0]
        url = f"http://127.0.0.1:{port}"
        command = services.s3_command(Path(folder), port, secrets)
        server = subprocess.Popen(
            command.arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env={**os.environ, **command.environment}, cwd=folder,
        )  # fmt: skip
        try:
            deadline = time.monotonic() + 60
            while not services.is_ready("s3", url):
                assert time.monotonic() < deadline, "the S3 server did not start"
                time.sleep(0.2)
            _measure(console, url, images, rounds)
        finally:
            server.kill()  # its data go with the folder
            server.wait(20)


def _measure(console: Console, endpoint: str, images: list[bytes], rounds: int) -> None:
    store = Store(StoreConfig(endpoint_url=endpoint, region="us-east-1", addressing="path"))
    samples = (
        {"__key__": f"{i:06d}", "jpg": content, "cls": b"0"}
        for i, content in enumerate(images * COPIES)
    )
    # Shards of about ImageNet's usual size, so that a window's runs are as long as there.
    manifest = pack(samples, store, "s3://data/x", classes=["a"], samples_per_shard=1280)
    order = Order(
        seed=0, samples_per_shard=manifest.samples_per_shard, num_lanes=2, pieces=2, slices=8
    )
    runs = [
        run
        for lane in range(order.num_lanes)
        for window in order.windows(0, lane)
        for run in window.runs
    ]
    aligned = [
        (number, at, min(REQUEST_BYTES, shard.size_bytes - at))
        for number, shard in enumerate(manifest.shards)
        for at in range(0, shard.size_bytes, REQUEST_BYTES)
    ]
    same = [
        (shard, begin, end - begin)
        for shard, first, count in runs
        for begin, end in split_range(*manifest.shards[shard].byte_range(first, count))
    ]

    def ours() -> int:
        with ThreadPoolExecutor(THREADS) as pool:
            for _ in pool.map(lambda run: fetch_run(store, manifest, run), runs):
                pass
        return sum(length for _, _, length in same)

    def samples_too() -> int:
        with ThreadPoolExecutor(THREADS) as pool:
            for run in pool.map(lambda run: fetch_run(store, manifest, run), runs):
                for number in range(run.first, run.first + len(run.offsets) - 1):
                    assert "jpg" in run.sample(number)
        return sum(length for _, _, length in same)

    rates = compare(
        {
            "boto3, the same ranges": lambda: _raw(endpoint, manifest, same),
            "boto3, aligned 8 MiB ranges": lambda: _raw(endpoint, manifest, aligned),
            "our windows": ours,
            "our windows, cut into samples": samples_too,
        },
        rounds,
    )
    _first_batches(console, store, manifest, order)
    base = rates["boto3, the same ranges"]
    table = Table(f"S3 on loopback, {THREADS} at once", "MB/s", "times base")
    for name, values in rates.items():
        ratio = statistics.median(a / b for a, b in zip(values, base, strict=True))
        table.add_row(name, f"{statistics.median(values) / 1e6:.0f}", f"{ratio:.2f}")
    console.print(table)


def _first_batches(console: Console, store: Store, manifest: Manifest, order: Order) -> None:
    """Seconds to the first batch of 64 at an epoch's beginning and deep in it."""
    last = manifest.num_samples // 64
    found: dict[float, list[float]] = {0.0: [], 0.01: [], 0.5: [], 0.99: []}
    for _ in range(5):
        for share, seconds in found.items():
            began = time.perf_counter()
            with TrainLoader(
                store, manifest, order, rank=0, world_size=1, global_batch_size=64,
                micro_batch_size=64, input_size=299, augment=Augment(),
                first_step=int(share * last),
            ) as loader:  # fmt: skip
                next(iter(loader))
                seconds.append(time.perf_counter() - began)
    words = ", ".join(
        f"{statistics.median(seconds):.2f} s at {100 * share:.0f} %"
        for share, seconds in found.items()
    )
    console.print(f"first batch of 64 from S3: {words} of an epoch")


def _raw(endpoint: str, manifest: Manifest, parts: list[tuple[int, int, int]]) -> int:
    """(shard, start, length) parts into memory, by boto3 alone."""
    client = boto3.client(
        "s3", endpoint_url=endpoint, region_name="us-east-1",
        config=Config(
            s3={"addressing_style": "path"}, max_pool_connections=THREADS,
            response_checksum_validation="when_required",
        ),
    )  # fmt: skip

    def get(part: tuple[int, int, int]) -> int:
        shard, start, length = part
        bucket, _, key = manifest.shard_url(shard).removeprefix("s3://").partition("/")
        wanted = f"bytes={start}-{start + length - 1}"
        body = client.get_object(Bucket=bucket, Key=key, Range=wanted)["Body"]
        return len(b"".join(iter(lambda: body.read(2**20), b"")))

    with ThreadPoolExecutor(THREADS) as pool:
        return sum(pool.map(get, parts))
